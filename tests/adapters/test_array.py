"""`LMKANLayer` and `evaluate`: the core's numbers, the steps of Adam, and errors of use."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lmkan_cupy.adapters.array import LMKANLayer, evaluate
from problems import FLOAT64, SMALL, Dtypes, first_short, make_problem
from tolerances import host

import lmkan_cupy


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_and_backward_are_the_core(xp: Any, rng: np.random.Generator, dtype: str) -> None:
    x, _, grad_y, *_ = make_problem(rng, SMALL, Dtypes(dtype, dtype)).on(xp)
    layer = LMKANLayer(5, 7, 10, dtype=dtype, rng=3, xp=xp)
    tables = lmkan_cupy.init_tables(5, 7, 10, dtype=dtype, rng=3, xp=xp)
    np.testing.assert_array_equal(host(layer.tables), host(tables))

    y, grad_x = layer.forward(x), layer.backward(grad_y)
    expected_grad_x, expected_grad_tables = lmkan_cupy.backward(grad_y, x, tables)
    np.testing.assert_array_equal(host(y), host(lmkan_cupy.forward(x, tables)))
    np.testing.assert_array_equal(host(grad_x), host(expected_grad_x))
    np.testing.assert_array_equal(host(layer.grad_tables), host(expected_grad_tables))


def test_the_penalty_is_part_of_the_gradient(xp: Any, rng: np.random.Generator) -> None:
    x, _, grad_y, *_ = make_problem(rng, SMALL, FLOAT64).on(xp)
    layer = LMKANLayer(5, 7, 10, dtype="float64", rng=3, xp=xp)
    layer.forward(x)
    layer.backward(grad_y, penalty=0.25)
    _, grad_tables = lmkan_cupy.backward(grad_y, x, layer.tables)
    expected = grad_tables + lmkan_cupy.hessian_penalty_grad(layer.tables, 0.25)
    np.testing.assert_allclose(host(layer.grad_tables), host(expected), rtol=1e-12, atol=1e-14)


def test_ten_grids_by_default(xp: Any) -> None:
    layer = LMKANLayer(4, 3, xp=xp)
    assert layer.tables.shape == (2, 11, 11, 3)
    assert layer.tables.dtype == "float32"


def test_adam_steps_are_those_of_torch(xp: Any, rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    layer = LMKANLayer(5, 7, 10, dtype="float64", rng=3, xp=xp)
    parameter = torch.nn.Parameter(torch.from_numpy(host(layer.tables).copy()))
    optimizer = torch.optim.Adam([parameter], lr=0.01)
    for _ in range(20):
        x, _, grad_y, *_ = make_problem(rng, SMALL, FLOAT64).on(xp)
        layer.forward(x)
        layer.backward(grad_y)
        parameter.grad = torch.from_numpy(host(layer.grad_tables))
        layer.adam_step(0.01)
        optimizer.step()
    torch.testing.assert_close(torch.from_numpy(host(layer.tables)), parameter.detach())


def test_fits_a_function(xp: Any, rng: np.random.Generator) -> None:
    """Five hundred steps bring the error of a smooth product far below its size."""
    layer = LMKANLayer(2, 1, 8, rng=3, xp=xp)
    for _ in range(500):
        x = xp.asarray(rng.uniform(-2, 2, (256, 2)).astype("float32"))
        error = layer.forward(x) - x[:, :1] * xp.cos(x[:, 1:])
        layer.backward(2 * error / len(x))
        layer.adam_step(0.02)
    assert (error**2).mean() < 0.01


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (
            lambda layer: layer.forward(np.zeros((3, 6), "float32")),
            ValueError,
            r"LMKANLayer.forward: x must have 5 features on its last axis, got x.shape=\(3, 6\)",
        ),
        (
            lambda layer: layer.backward(np.zeros((3, 2), "float32")),
            RuntimeError,
            "LMKANLayer.backward: call forward first",
        ),
        (
            lambda layer: layer.adam_step(0.1),
            RuntimeError,
            "LMKANLayer.adam_step: call backward first",
        ),
    ],
    ids=["six-features-for-five", "backward-first", "step-first"],
)
def test_errors_of_use(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(LMKANLayer(5, 2))


def test_half_precision_is_an_error() -> None:
    with pytest.raises(TypeError, match="dtype must be float32 or float64, got float16"):
        LMKANLayer(5, 2, dtype="float16")


@pytest.mark.parametrize("dtype", first_short(["float32", "float64"]))
def test_evaluate_is_one_layer_after_the_other(
    xp: Any, rng: np.random.Generator, dtype: str
) -> None:
    options = {"dtype": dtype, "rng": rng, "xp": xp}
    layers = [LMKANLayer(5, 7, 10, **options), LMKANLayer(7, 3, 4, **options)]
    x = xp.asarray(rng.normal(0, 2, (3, 4, 5)).astype(dtype))
    hidden = layers[0].forward(x)
    y = evaluate(layers, x)
    assert y.dtype == dtype
    np.testing.assert_array_equal(host(y), host(layers[1].forward(hidden)))
    cut = layers[0].forward(xp.clip(x, -0.5, 0.5))
    np.testing.assert_array_equal(
        host(evaluate(layers, x, bound=(0.5, None))), host(layers[1].forward(cut))
    )


def test_layers_that_do_not_follow_each_other() -> None:
    """Six features make as many pairs as five."""
    x, six, five = np.zeros((2, 6), "float32"), LMKANLayer(6, 6), LMKANLayer(5, 2)
    with pytest.raises(
        ValueError,
        match=r"evaluate: layers\[1\] must get 5 features on the last axis, got shape \(2, 6\)",
    ):
        evaluate([six, five], x)
    with pytest.raises(ValueError, match=r"layers\[0\] must get 6 features .*, got shape \(\)"):
        evaluate([six], x[0, 0])
    with pytest.raises(ValueError, match="layers must hold at least one layer, got none"):
        evaluate([], x)
