"""`network_forward` and `network_value_and_grad` against the same steps one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import pytest
from problems import DTYPES, FLOAT32, FLOAT64, HALF_TABLES, LAYOUTS, Dtypes, first_short
from special_values import BAD_VALUES
from tolerances import host

import lmkan_cupy
from lmkan_cupy import array_checks, cpu_engine, network
from lmkan_cupy.cpu_engine import compiling, network_kernels, threads

#: Odd and even sizes, one output, a wide layer; a grid for each layer.
_SIZES = (5, 9, 1, 70, 33, 3)
_GRIDS = (8, 3, 24, 10, 40)

_BATCHES = [0, 1, 3, 33, 1000, 9000]


def _layers(
    rng: np.random.Generator, dtypes: Dtypes = FLOAT32, sizes: tuple[int, ...] = _SIZES
) -> list[Any]:
    layers = []
    for inputs, outputs, num_grids in zip(sizes, sizes[1:], _GRIDS, strict=False):
        shape = ((inputs + 1) // 2, num_grids + 1, num_grids + 1, outputs)
        layers.append(rng.uniform(-2, 2, shape).astype(dtypes.tables))
    return layers


def _linear(
    rng: np.random.Generator, inputs: int, outputs: int, dtypes: Dtypes = FLOAT32
) -> tuple[Any, Any]:
    weight = rng.normal(size=(outputs, inputs)).astype(dtypes.x)
    return weight, rng.normal(size=outputs).astype(dtypes.x)


def _rows(rng: np.random.Generator, batch: int, dtypes: Dtypes = FLOAT32) -> Any:
    return rng.normal(0, 2, (batch, _SIZES[0])).astype(dtypes.x)


def _equal(got: Any, expected: Any) -> None:
    np.testing.assert_array_equal(host(got), host(expected))


def _on(xp: Any, layers: list[Any]) -> list[Any]:
    return [
        tuple(map(xp.asarray, layer)) if isinstance(layer, tuple) else xp.asarray(layer)
        for layer in layers
    ]


def _one_by_one(x: Any, layers: list[Any], grad_y: Any, **options: Any) -> tuple[Any, Any]:
    """y and grad_x, bit by bit: every layer of tables by `forward` and `backward`."""
    arguments = {"shift": None, "scale": None, "bound": None, **options}
    checked = array_checks.check_network("test", x, layers, **arguments)
    features = network.features_of_layers(checked, x)
    return features[-1], network.pull_back_by_layers(checked, features, grad_y)


@pytest.mark.parametrize("bound", [None, 1.5, (None, 2.0, 0.5, None, 1.0)], ids=str)
@pytest.mark.parametrize("batch", _BATCHES)
@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
def test_same_bits_as_the_steps_one_by_one(
    xp: Any, rng: np.random.Generator, dtypes: Dtypes, batch: int, bound: Any
) -> None:
    layers = _on(xp, _layers(rng, dtypes))
    x = xp.asarray(_rows(rng, batch, dtypes))
    grad_y = xp.asarray(rng.normal(size=(batch, _SIZES[-1])).astype(dtypes.x))
    options: dict[str, Any] = {
        "bound": bound,
        "shift": xp.asarray(rng.normal(size=_SIZES[0]).astype(dtypes.x)),
        "scale": xp.asarray(rng.uniform(0.5, 2, _SIZES[0]).astype(dtypes.x)),
    }
    expected, expected_grad = _one_by_one(x, layers, grad_y, **options)
    y = lmkan_cupy.network_forward(x, layers, **options)
    assert y.dtype == x.dtype
    _equal(y, expected)
    y, grad_x = lmkan_cupy.network_value_and_grad(x, layers, grad_y=grad_y, **options)
    _equal(y, expected)
    _equal(grad_x, expected_grad)


@pytest.mark.parametrize("dtypes", first_short([FLOAT32, FLOAT64]), ids=str)
def test_linear_layers(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    """First, between tables, last, and without a bias; in float64 they are NumPy's."""
    weight, _ = _linear(rng, 5, 21, dtypes)
    layers = _on(xp, [_linear(rng, 5, 5, dtypes), *_layers(rng, dtypes, (5, 5)), weight])
    layers[-1] = (layers[-1], None)
    x = xp.asarray(_rows(rng, 40, dtypes))
    grad_y = xp.asarray(rng.normal(size=(40, 21)).astype(dtypes.x))
    expected, expected_grad = _one_by_one(x, layers, grad_y, bound=2.0)
    y, grad_x = lmkan_cupy.network_value_and_grad(x, layers, grad_y=grad_y, bound=2.0)
    _equal(lmkan_cupy.network_forward(x, layers, bound=2.0), y)
    rounding = 100 * np.finfo(dtypes.x).eps
    np.testing.assert_allclose(host(y), host(expected), rounding, rounding * 100)
    np.testing.assert_allclose(host(grad_x), host(expected_grad), rounding, rounding * 100)


def test_a_network_of_one_linear_layer_cuts_nothing(xp: Any) -> None:
    weight = xp.asarray([[1.0, 2.0], [0.0, -1.0]])
    x = xp.asarray([[3.0, np.inf], [4.0, 5.0]])
    y = lmkan_cupy.network_forward(x, [(weight, xp.asarray([1.0, 0.0]))], bound=1.0)
    _equal(y, [[np.inf, -np.inf], [15.0, -5.0]])


@pytest.mark.parametrize("bad", BAD_VALUES.values(), ids=BAD_VALUES)
@pytest.mark.parametrize("feature", range(_SIZES[0]))
def test_a_bad_value_stays_in_its_row(
    xp: Any, rng: np.random.Generator, feature: int, bad: float
) -> None:
    """Without a bound the row is not finite; with one, an infinity is cut and a NaN passes."""
    layers, x = _on(xp, _layers(rng)), _rows(rng, 6)
    clean = host(lmkan_cupy.network_forward(xp.asarray(x), layers))
    clean_cut = host(lmkan_cupy.network_forward(xp.asarray(x), layers, bound=2.0))
    x[3, feature] = bad
    y, grad_x = lmkan_cupy.network_value_and_grad(xp.asarray(x), layers)
    others = np.arange(6) != 3
    _equal(host(y)[others], clean[others])
    assert not np.isfinite(host(y)[3]).any()
    assert np.isfinite(host(grad_x)[others]).all()

    y, grad_x = lmkan_cupy.network_value_and_grad(xp.asarray(x), layers, bound=2.0)
    _equal(host(y)[others], clean_cut[others])
    assert np.isnan(host(y)[3]).all() == np.isnan(bad)
    assert np.isfinite(host(y)[3]).all() == np.isinf(bad)
    if np.isinf(bad):
        assert host(grad_x)[3, feature] == 0


def test_what_is_cut_has_no_gradient(xp: Any, rng: np.random.Generator) -> None:
    """Exactly at the bound a value is not cut."""
    layers = _on(xp, _layers(rng, FLOAT64, (2, 3)))
    x = xp.asarray([[2.0, 0.3], [2.1, 0.3], [-2.0, 0.3], [-7.0, 0.3]])
    _, grad_x = lmkan_cupy.network_value_and_grad(x, layers, bound=2.0)
    _equal(host(grad_x)[:, 0] == 0, [False, True, False, True])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_leading_axes(xp: Any, rng: np.random.Generator, layout: str) -> None:
    layers, x = _layers(rng), _rows(rng, 12)
    expected = lmkan_cupy.network_forward(
        xp.asarray(np.broadcast_to(x[:1], x.shape) if layout == "broadcast" else x), _on(xp, layers)
    )
    laid_out = [LAYOUTS[layout](xp, xp.asarray(each)) for each in [x, *layers]]
    if layout == "broadcast":  # repeats values, so the layers stay as they are
        laid_out[1:] = _on(xp, layers)
    _equal(lmkan_cupy.network_forward(laid_out[0], laid_out[1:]), expected)

    cube = xp.asarray(x).reshape(3, 2, 2, _SIZES[0])
    y = lmkan_cupy.network_forward(cube, _on(xp, layers))
    assert y.shape == (3, 2, 2, _SIZES[-1])
    single = lmkan_cupy.network_forward(cube[1, 0, 1], _on(xp, layers))
    _equal(single, y[1, 0, 1])


def test_out_is_filled_and_returned(xp: Any, rng: np.random.Generator) -> None:
    layers, x = _on(xp, _layers(rng)), xp.asarray(_rows(rng, 12))
    out = xp.full((12, _SIZES[-1]), np.nan, "float32")
    assert lmkan_cupy.network_forward(x, layers, out=out) is out
    _equal(out, lmkan_cupy.network_forward(x, layers))


def test_without_grad_y_the_outputs_are_summed(xp: Any, rng: np.random.Generator) -> None:
    layers, x = _on(xp, _layers(rng)), xp.asarray(_rows(rng, 12))
    ones = xp.ones((12, _SIZES[-1]), "float32")
    for got, expected in zip(
        lmkan_cupy.network_value_and_grad(x, layers),
        lmkan_cupy.network_value_and_grad(x, layers, grad_y=ones),
        strict=True,
    ):
        _equal(got, expected)


@pytest.mark.long
def test_half_and_single_tables_in_one_network(xp: Any, rng: np.random.Generator) -> None:
    halves = _layers(rng, HALF_TABLES)
    widened = [each.astype(np.float32) for each in halves]
    mixed = [halves[0], widened[1], halves[2], widened[3], halves[4]]
    x = xp.asarray(_rows(rng, 40))
    _equal(
        lmkan_cupy.network_forward(x, _on(xp, mixed)),
        lmkan_cupy.network_forward(x, _on(xp, widened)),
    )


_X = np.zeros((4, 3), np.float32)
_TABLES = np.zeros((2, 5, 5, 6), np.float32)
_WEIGHT = np.zeros((2, 6), np.float32)
_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"layers": []}, ValueError, "layers must hold at least one layer, got none"),
    ({"layers": _TABLES}, TypeError, "layers must be a list or tuple of layers, got ndarray"),
    ({"layers": [None]}, TypeError, r"layers\[0\] must be a NumPy or CuPy array"),
    (
        {"layers": [_TABLES, _TABLES]},
        ValueError,
        r"layers\[1\] has 2 pairs, but gets 6 features \(3 pairs\)",
    ),
    (
        {"layers": [_TABLES.astype("float64")]},
        TypeError,
        r"x must be float64 where layers\[0\] is float64, got float32",
    ),
    ({"layers": [_TABLES[0][0]]}, ValueError, r"layers\[0\] must have shape \[pairs, knots"),
    (
        {"layers": [_TABLES, (_WEIGHT[:, :5], None)]},
        ValueError,
        r"layers\[1\]\[0\] must have shape \[out_features, 6\], got \(2, 5\)",
    ),
    (
        {"layers": [_TABLES, (_WEIGHT, np.zeros(3, np.float32))]},
        ValueError,
        r"layers\[1\]\[1\] must have shape \(2,\), got \(3,\)",
    ),
    (
        {"layers": [_TABLES, (_WEIGHT.astype("float64"), None)]},
        TypeError,
        r"layers\[1\]\[0\] must be float32 as x is, got float64",
    ),
    (
        {"layers": [_TABLES, (_WEIGHT,)]},
        ValueError,
        r"layers\[1\] must be tables or \(weight, bias\), got 1 items",
    ),
    ({"bound": 0.0}, ValueError, "bound must be None or positive, got 0.0"),
    ({"bound": np.nan}, ValueError, "bound must be None or positive, got nan"),
    ({"bound": [1.0, 2.0]}, ValueError, "one for each of 1 layers, got 2"),
    ({"bound": "3"}, TypeError, "bound must be None or a number, got '3'"),
    ({"shift": np.zeros(2, np.float32)}, ValueError, r"shift must have shape \(3,\), got \(2,\)"),
    ({"scale": np.zeros(3)}, TypeError, "scale must be float32, got float64"),
    ({"x": np.zeros((4, 3), np.int64)}, TypeError, "x must be float32 or float64, got int64"),
    ({"x": np.float32(0) * np.zeros(())}, TypeError, "x must be"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), _ERRORS)
@pytest.mark.parametrize("function", ["network_forward", "network_value_and_grad"])
def test_errors(
    function: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {"x": _X, "layers": [_TABLES], **arguments}
    with pytest.raises(error, match=f"^{function}: .*{message}"):
        getattr(lmkan_cupy, function)(**arguments)


def test_out_must_not_overlap(rng: np.random.Generator) -> None:
    tables = np.zeros((2, 5, 5, 3), np.float32)
    with pytest.raises(ValueError, match="network_forward: out must not share memory with x"):
        lmkan_cupy.network_forward(_X, [tables], out=_X)
    bias = np.zeros(12, np.float32).reshape(4, 3)
    weight = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match=r"out must not share memory with layers\[0\]\[1\]"):
        lmkan_cupy.network_forward(_X, [(weight, bias[0])], out=bias)


def _grouped(steps: np.ndarray[Any, Any], dtypes: Dtypes) -> list[bool]:
    """Which layers are evaluated cell by cell."""
    return [
        step["forward"]
        == compiling.step_address(
            network_kernels.grouped_forward,
            np.dtype(dtypes.x),
            np.dtype("uint16" if dtypes.tables == "float16" else dtypes.tables),
            2,
        )
        for step in steps
    ]


@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
def test_large_tables_are_grouped_by_cell(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtypes: Dtypes
) -> None:
    """From 1024 rows on, and only tables of more than 8 MiB; nothing changes by a bit."""
    seen: list[list[bool]] = []
    real = cpu_engine.network._steps

    def steps(*arguments: Any, **options: Any) -> Any:
        made = real(*arguments, **options)
        seen.append(_grouped(made[0], dtypes))
        return made

    monkeypatch.setattr(cpu_engine.network, "_steps", steps)
    at_limit = 2**23 // (8 * 16**2 * np.dtype(dtypes.tables).itemsize)
    x = rng.normal(0, 2, (1024, 16)).astype(dtypes.x)
    for outputs in (at_limit, at_limit + 1):
        layers = []
        for inputs, count, knots in ((16, outputs, 16), (outputs, 3, 4)):
            shape = ((inputs + 1) // 2, knots, knots, count)
            layers.append(rng.uniform(-1, 1, shape).astype(dtypes.tables))
        for rows in (1023, 1024):
            grad_y = np.ones((rows, 3), dtypes.x)
            expected = _one_by_one(x[:rows], layers, grad_y, bound=1.5)
            _equal(lmkan_cupy.network_forward(x[:rows], layers, bound=1.5), expected[0])
            got = lmkan_cupy.network_value_and_grad(x[:rows], layers, bound=1.5)
            for one, other in zip(got, expected, strict=True):
                _equal(one, other)
            assert seen == [[outputs > at_limit and rows >= 1024, False]] * 2
            seen.clear()


def test_several_grouped_layers_and_threads(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gathered, grouped, grouped with another grid, linear, gathered."""
    sizes = ((7, 16, 9), (16, 1100, 16), (1100, 260, 4))
    layers: list[Any] = [
        rng.uniform(-1, 1, ((inputs + 1) // 2, knots, knots, outputs)).astype("float32")
        for inputs, outputs, knots in sizes
    ]
    assert [each.nbytes > 2**23 for each in layers] == [False, True, True]
    x = rng.normal(0, 2, (2600, 7)).astype("float32")
    grad_y = rng.normal(size=(2600, 260)).astype("float32")
    expected = _one_by_one(x, layers, grad_y, bound=2.0)
    layers += [_linear(rng, 260, 6), *_layers(rng, sizes=(6, 3))]
    first = lmkan_cupy.network_forward(x[:1500], layers, bound=2.0)
    for number in (1, 2, 3):
        monkeypatch.setattr(threads, "num_threads", lambda number=number: number)
        got = lmkan_cupy.network_value_and_grad(x, layers[:3], grad_y=grad_y, bound=2.0)
        for one, other in zip(got, expected, strict=True):
            _equal(one, other)
        _equal(lmkan_cupy.network_forward(x[:1500], layers, bound=2.0), first)


def test_the_first_call_of_a_process(tmp_path: Path) -> None:
    """It needs nothing that another call, or another package, has made."""
    code = """
        import sys
        sys.modules |= dict.fromkeys(["torch", "cupy", "jax", "scipy", "ml_dtypes"])
        import lmkan_cupy, numpy
        tables = [lmkan_cupy.init_tables(5, 6, 8, rng=0), lmkan_cupy.init_tables(6, 2, 24, rng=1)]
        x = numpy.random.default_rng(0).normal(size=(40, 5)).astype("float32")
        y = lmkan_cupy.{function}(x, tables)
        y = y[0] if isinstance(y, tuple) else y
        assert (y == lmkan_cupy.forward(lmkan_cupy.forward(x, tables[0]), tables[1])).all()
    """
    for function in ("network_forward", "network_value_and_grad"):
        fresh_process.run(code.format(function=function), tmp_path)
