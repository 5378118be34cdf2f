"""`load_network`: a fitted network without torch, in both formats, and what it predicts."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import fresh_process
import numpy as np
import oracle
import pytest
import scipy.sparse
from oracle import Array
from problems import first_short
from safetensors.numpy import save_file
from tolerances import host

import lmkan_cupy
from lmkan_cupy.fitted import FittedNetwork

FEATURES = ["a", "b", "c"]
MEAN, SCALE = np.array([1.0, -20.0, 3e6]), np.array([0.5, 4.0, 2e6])

#: Grid intervals of the layers, and features before, between and after them.
GRIDS, SIZES = (8, 5), (3, 7, 2)


def _tables(rng: np.random.Generator, sizes: tuple[int, ...] = SIZES) -> list[Array]:
    return [
        rng.uniform(-1, 1, ((inputs + 1) // 2, num_grids + 1, num_grids + 1, outputs))
        for (inputs, outputs), num_grids in zip(pairwise(sizes), GRIDS, strict=True)
    ]


def _network(rng: np.random.Generator, dtype: str = "float32", xp: Any = np) -> FittedNetwork:
    layers = [xp.asarray(each.astype(dtype)) for each in _tables(rng)]
    statistics = (MEAN, SCALE, np.array([10.0, -3.0]), np.array([2.0, 0.1]))
    return FittedNetwork(FEATURES, ["y", "z"], 2.0, layers, *map(xp.asarray, statistics))


@pytest.fixture
def network(rng: np.random.Generator) -> FittedNetwork:
    return _network(rng)


def _rows(rng: np.random.Generator, *shape: int) -> Array:
    """Features in their units, up to three standard deviations from the mean."""
    return MEAN + SCALE * rng.uniform(-3, 3, (*shape, 3))


def _exact(network: FittedNetwork, rows: Array) -> Array:
    """The predictions in float64, by the oracle."""
    h = (rows - host(network.feature_mean)) / host(network.feature_scale)
    for tables in map(host, network.layers):
        at = oracle.basis(
            np.clip(h, -network.bound, network.bound), oracle.sigma_grid(tables.shape[1] - 1)
        )
        h = oracle.forward(at, tables.astype(np.float64))
    return np.asarray(host(network.target_mean) + host(network.target_scale) * h)


def _written(network: FittedNetwork, folder: Path) -> Path:
    for name, content in network.files().items():
        (folder / name).write_bytes(content)
    return folder


def test_predictions_are_the_oracles(xp: Any, rng: np.random.Generator) -> None:
    network, rows = _network(rng, "float64", xp), _rows(rng, 50)
    np.testing.assert_allclose(host(network.predict(rows)), _exact(network, rows), rtol=1e-9)


@pytest.mark.parametrize("dtype", first_short(["float64", "float32", "float16"], 2))
def test_all_but_the_layers_is_float64(xp: Any, rng: np.random.Generator, dtype: str) -> None:
    network, rows = _network(rng, dtype, xp), _rows(rng, 50)
    x = ((rows - MEAN) / SCALE).astype("float64" if dtype == "float64" else "float32")
    y = lmkan_cupy.network_forward(xp.asarray(x), network.layers, bound=2.0)
    predictions = network.predict(rows)
    assert type(predictions) is type(y)
    assert predictions.dtype == np.float64
    expected = host(network.target_mean) + host(network.target_scale) * host(y)
    np.testing.assert_array_equal(host(predictions), expected)


@pytest.mark.parametrize("dtype", first_short(["float64", "float32", "float16"], 2))
def test_a_folder_gives_back_the_network(
    rng: np.random.Generator, xp: Any, tmp_path: Path, dtype: str
) -> None:
    network, rows = _network(rng, dtype, xp), _rows(rng, 20)
    again = lmkan_cupy.load_network(_written(network, tmp_path), xp=xp)
    assert (again.feature_names, again.target_names, again.bound) == (FEATURES, ["y", "z"], 2.0)
    for one, other in zip(again.layers, network.layers, strict=True):
        assert type(one) is type(other)
        assert one.dtype == dtype
        np.testing.assert_array_equal(host(one), host(other))
    np.testing.assert_array_equal(host(again.predict(rows)), host(network.predict(rows)))
    assert again.files() == network.files()


def test_format_2(rng: np.random.Generator, tmp_path: Path) -> None:
    """The first normalisation stands for itself there, and there is one target."""
    tables = _tables(rng, (3, 7, 1))
    mean, variance = rng.normal(size=3), rng.uniform(0.5, 2, 3)
    arrays = {
        **{f"network.{k}.layer.tables": each for k, each in enumerate(tables)},
        "network.0.norm.running_mean": mean.astype("float32"),
        "network.0.norm.running_var": variance.astype("float32"),
        "network.0.norm.num_batches_tracked": np.array(7),
        "feature_mean": MEAN,
        "feature_scale": SCALE,
        "target_mean": np.array([10.0]),
        "target_scale": np.array([2.0]),
    }
    save_file(arrays, tmp_path / "model.safetensors")
    description = {"feature_names": FEATURES, "target_name": "y", "width": 7, "layers": 2}
    description |= {"format_version": 2, "num_grids": 8, "bound": 2.0}
    (tmp_path / "model.json").write_text(json.dumps(description))

    network = lmkan_cupy.load_network(tmp_path)
    assert (network.feature_names, network.target_names) == (FEATURES, ["y"])
    rows = _rows(rng, 50)
    norm_mean = arrays["network.0.norm.running_mean"].astype(np.float64)
    deviation = np.sqrt(arrays["network.0.norm.running_var"].astype(np.float64) + 1e-5)
    equivalent = FittedNetwork(
        *(FEATURES, ["y"], 2.0, tables, MEAN + SCALE * norm_mean, SCALE * deviation),
        *(np.array([10.0]), np.array([2.0])),
    )
    np.testing.assert_allclose(network.predict(rows), _exact(equivalent, rows), rtol=1e-9)
    np.testing.assert_allclose(network.feature_mean, equivalent.feature_mean, rtol=1e-15)
    np.testing.assert_allclose(network.feature_scale, equivalent.feature_scale, rtol=1e-15)


def test_no_framework_is_needed(network: FittedNetwork, tmp_path: Path) -> None:
    _written(network, tmp_path)
    code = """
        import sys
        sys.modules |= dict.fromkeys(["torch", "pandas", "sklearn", "scipy", "cupy", "filelock"])
        import lmkan_cupy
        network = lmkan_cupy.load_network(".")
        print(network.predict([1.5, -18.0, 3e6]).tolist())
    """
    predicted = network.predict([1.5, -18.0, 3e6]).tolist()
    assert json.loads(fresh_process.run(code, tmp_path)) == predicted


def test_rows_in_all_forms(network: FittedNetwork, rng: np.random.Generator) -> None:
    """A single row, several axes, lists, whole numbers, columns by name."""
    rows = _rows(rng, 4, 5)
    expected = network.predict(rows)
    assert expected.shape == (4, 5, 2)
    np.testing.assert_array_equal(network.predict(rows[1, 2]), expected[1, 2])
    np.testing.assert_array_equal(network.predict(rows.tolist()), expected)
    np.testing.assert_array_equal(network.predict(np.asfortranarray(rows)), expected)
    np.testing.assert_array_equal(network.predict(rows.astype(object)), expected)
    assert network.predict(rows[:0]).shape == (0, 5, 2)
    whole = rows.round().astype(np.int64)
    np.testing.assert_array_equal(network.predict(whole), network.predict(whole.astype(float)))

    columns = dict(zip("cab", np.moveaxis(rows[0][:, [2, 0, 1]], 1, 0), strict=True))
    columns["text"] = np.array(["no number"] * 5)
    np.testing.assert_array_equal(network.predict(columns), expected[0])
    one = {name: float(each[3]) for name, each in columns.items() if name != "text"}
    np.testing.assert_array_equal(network.predict(one), expected[0, 3])


def test_data_frames(network: FittedNetwork, rng: np.random.Generator) -> None:
    """Columns in another order, and others beside them."""
    pandas = pytest.importorskip("pandas")
    rows = _rows(rng, 5)
    frame = pandas.DataFrame(rows[:, [2, 0, 1]], columns=["c", "a", "b"], index=[*"vwxyz"])
    frame.insert(1, "text", "no number")
    np.testing.assert_array_equal(network.predict(frame), network.predict(rows))
    mixed = frame.astype({"c": "int64", "a": object, "b": "Float64"})
    rounded = np.column_stack([rows[:, :2], rows[:, 2].astype(int)])
    np.testing.assert_array_equal(network.predict(mixed), network.predict(rounded))


def test_values_outside_of_the_grid(network: FittedNetwork) -> None:
    """What is beyond the bound, or too large for float32, is cut; a NaN stays in its row."""
    for far in (1e3, 1e60, 1e308, np.inf):
        rows = np.array([[far, -20.0, 3e6], [1.0, -far, 3e6]])
        at_bound = np.array([[1.0 + 2 * 0.5, -20.0, 3e6], [1.0, -20.0 - 2 * 4.0, 3e6]])
        np.testing.assert_array_equal(network.predict(rows), network.predict(at_bound))
    rows = np.array([[1.0, -20.0, 3e6]] * 3)
    rows[1, 2] = np.nan
    finite = np.isfinite(network.predict(rows))
    np.testing.assert_array_equal(finite, [[True, True], [False, False], [True, True]])


_ROW = np.array([[1.0, -20.0, 3e6]])
_MASKED = np.ma.masked_less(_ROW, 0)
_ERRORS: dict[str, tuple[Any, type[Exception], str]] = {
    "two-features": (_ROW[:, :2], ValueError, r"rows must have 3 features, got shape \(1, 2\)"),
    "a-number": (1.0, ValueError, r"rows must have 3 features, got shape \(\)"),
    "missing": ({"a": 1.0, "b": 2.0}, KeyError, "rows must have the feature 'c'"),
    "masked": (_MASKED, ValueError, "rows must not have masked elements, got 1"),
    "masked-column": (
        {"a": _ROW[0], "b": _MASKED[0], "c": _ROW[0]},
        ValueError,
        r"rows\['b'\] must not have masked elements, got 1",
    ),
    "sparse": (scipy.sparse.csr_array(_ROW), TypeError, "rows must be dense, got a sparse csr"),
    "text": ([["1", "2", "3"]], TypeError, "rows must hold numbers, got <U1"),
    "text-among-numbers": (
        np.array([[1.0, "2", 3.0]], object),
        TypeError,
        "rows must hold numbers, got <U",
    ),
    "text-column": (
        {"a": ["1"], "b": [2.0], "c": [3.0]},
        TypeError,
        r"rows\['a'\] must hold numbers, got <U1",
    ),
    "nothing": ([[None, 1.0, 2.0]], TypeError, "rows must hold numbers, got object"),
    "complex": (_ROW * 1j, TypeError, "rows must hold numbers, got complex128"),
    "lengths": (
        {"a": [1.0, 2.0], "b": [2.0], "c": [3.0]},
        ValueError,
        r"features must have one shape, got \[\(1,\), \(2,\)\]",
    ),
}


@pytest.mark.parametrize(("rows", "error", "sentence"), _ERRORS.values(), ids=_ERRORS)
def test_rows_that_cannot_be(
    network: FittedNetwork, rows: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=f"predict: {sentence}"):
        network.predict(rows)


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"bound": np.inf}, ValueError, "bound must be finite, got inf"),
        ({"bound": 0.0}, ValueError, "bound must be None or positive, got 0.0"),
        ({"layers": []}, ValueError, "there must be at least one layer"),
        ({"feature_names": [1, "b", "c"]}, TypeError, "names of columns must be text, got 1"),
        ({"feature_names": ["a", "b"]}, ValueError, r"feature_mean must have shape \(2,\)"),
        ({"target_scale": np.ones(3)}, ValueError, r"target_scale must have shape \(2,\)"),
        (
            {"target_names": ["y"], "target_mean": np.ones(1), "target_scale": np.ones(1)},
            ValueError,
            "the last layer must have 1 outputs, one for each target, got 2",
        ),
    ],
)
def test_networks_that_cannot_be(
    network: FittedNetwork, changes: dict[str, Any], error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        replace(network, **changes)
