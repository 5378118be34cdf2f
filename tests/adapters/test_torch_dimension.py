"""Layers of functions of one and of three variables, in all that torch's layers do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import FLOAT64, Sizes, first_short, make_problem

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANConv2d, LMKANLinear = adapter.LMKANBlock, adapter.LMKANConv2d, adapter.LMKANLinear
nn = torch.nn

#: Kernels of the other dimensions in float64 take long to compile.
DIMENSIONS = pytest.mark.parametrize("dimension", first_short([1, 3]))


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


@pytest.mark.long
@pytest.mark.parametrize("engine", ["torch", None])
@DIMENSIONS
def test_derivatives_of_both_orders(
    rng: np.random.Generator, dimension: int, engine: str | None
) -> None:
    problem = make_problem(rng, Sizes(3, 4, 2, 3), FLOAT64, dimension=dimension)
    x, tables = (torch.from_numpy(each).requires_grad_() for each in (problem.x, problem.tables))

    def layer(x: Any, tables: Any) -> Any:
        return adapter.lmkan(x, tables, engine=engine)

    torch.testing.assert_close(
        layer(x, tables).detach().numpy(), lmkan_cupy.forward(problem.x, problem.tables)
    )
    assert torch.autograd.gradcheck(layer, (x, tables))
    assert torch.autograd.gradgradcheck(layer, (x, tables))


@pytest.mark.long
@DIMENSIONS
def test_penalty_in_plain_torch(rng: np.random.Generator, dimension: int) -> None:
    tables = make_problem(rng, Sizes(0, 5, 3, 6), FLOAT64, dimension=dimension).tables
    penalty, grad = lmkan_cupy.hessian_penalty_and_grad(tables)
    layer = LMKANLinear(5, 3, 6, dimension=dimension, engine="torch", dtype=torch.float64)
    layer.tables.data = torch.from_numpy(tables)
    plain = adapter.hessian_penalty(layer)
    plain.backward()
    torch.testing.assert_close(plain.detach().numpy(), penalty)
    torch.testing.assert_close(layer.tables.grad.numpy(), grad)


@pytest.mark.long
@pytest.mark.parametrize("residual", ["linear", "relu"])
@DIMENSIONS
def test_linear_layer(dimension: int, residual: str) -> None:
    layer = LMKANLinear(
        5, 4, 4, dimension=dimension, residual=residual, init_scale=2.0, dtype=torch.float64
    )
    assert layer.tables.shape == (-(-5 // dimension), *[5] * dimension, 4)
    assert f"num_grids=4, dimension={dimension}" in repr(layer)
    x = torch.randn(7, 5, dtype=torch.float64)
    y = layer(x)
    layer.fold_()
    torch.testing.assert_close(layer(x), y)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(x).square().sum().backward()
    optimizer.step()
    y = layer(x).detach()
    layer.refine_(8, optimizer)
    torch.testing.assert_close(layer(x), y)
    assert optimizer.state[layer.tables]["exp_avg"].shape == layer.tables.shape
    layer(x).square().sum().backward()
    optimizer.step()


@pytest.mark.long
@pytest.mark.parametrize("groups", [1, 2])
@DIMENSIONS
def test_convolution(dimension: int, groups: int) -> None:
    """The layer on the columns of `unfold`, group by group; then folded and refined."""
    layer = LMKANConv2d(
        *(4, 6, 2),
        groups=groups,
        num_grids=4,
        dimension=dimension,
        residual="linear",
        init_scale=2.0,
        dtype=torch.float64,
    )
    features = 4 // groups * 4
    shape = (-(-features // dimension), *[5] * dimension, 6 // groups)
    assert layer.tables.shape == (shape if groups == 1 else (groups, *shape))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = layer(x)
    columns = nn.functional.unfold(x, 2).mT.chunk(groups, -1)
    tables = layer.tables[None] if groups == 1 else layer.tables
    parts = [adapter.lmkan(*each) for each in zip(columns, tables, strict=True)]
    branch = nn.functional.conv2d(x, layer.weight, layer.bias, groups=groups)
    torch.testing.assert_close(y, torch.cat(parts, -1).mT.reshape(y.shape) + branch)
    penalties = [lmkan_cupy.hessian_penalty(each.detach().numpy()) for each in tables]
    assert adapter.hessian_penalty(layer).item() == pytest.approx(sum(map(float, penalties)))
    layer.fold_()
    layer.refine_(8)
    torch.testing.assert_close(layer(x), y)


def network_of_all_dimensions() -> Any:
    return nn.Sequential(
        LMKANBlock(5, 7, 30, dimension=1, residual="linear", init_scale=2.0),
        LMKANBlock(7, 4, 4, dimension=3, residual="linear", init_scale=2.0),
        LMKANLinear(4, 2, 8, init_scale=2.0),
    )


@pytest.mark.long
def test_a_network_trains_and_is_fused() -> None:
    model, x = network_of_all_dimensions(), torch.randn(200, 5)
    target = torch.stack([x[:, 0] * x[:, 1], x.sin().sum(1)], 1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    losses = []
    for _ in range(60):
        error = (model(x) - target).square().mean()
        (error + 1e-4 * adapter.hessian_penalty(model)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(error.item())
    assert losses[-1] < 0.5 * losses[0]

    model.eval()
    fused = adapter.fuse(copy.deepcopy(model))
    torch.testing.assert_close(fused(x), model(x).detach(), rtol=1e-4, atol=1e-4)
    forces = [
        torch.autograd.grad(each(inputs).sum(), inputs)[0]
        for each in (fused, model)
        for inputs in [x.clone().requires_grad_()]
    ]
    assert (forces[0] - forces[1]).abs().median() < 1e-4


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch itself
@pytest.mark.long
@pytest.mark.parametrize("is_fused", [False, True])
def test_onnx(is_fused: bool, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = network_of_all_dimensions().eval()
    exported = adapter.fuse(model) if is_fused else model
    file = tmp_path / "model.onnx"
    batch = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(
        exported, (torch.randn(4, 5),), file, dynamo=True, dynamic_shapes=batch, verbose=False
    )
    session = onnxruntime.InferenceSession(file)
    x = torch.randn(33, 5)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(y, model(x).detach().numpy(), rtol=1e-4, atol=1e-4)


@DIMENSIONS
def test_compiled_shapes(dimension: int) -> None:
    """Shapes alone, as compilers see them, and every rule of a custom operator."""
    x, tables = torch.randn(3, 4, requires_grad=True), LMKANLinear(4, 2, 3, dimension=dimension)
    with torch.device("meta"):
        layer = LMKANLinear(4, 2, 3, dimension=dimension)
        assert layer(torch.empty(6, 4)).shape == (6, 2)
    operator: Any = torch.ops.lmkan_cupy.forward.default
    torch.library.opcheck(operator, (x, tables.tables))


def test_no_such_dimension() -> None:
    with pytest.raises(ValueError, match="LMKANLinear: dimension must be 1, 2 or 3, got 4"):
        LMKANLinear(4, 2, dimension=4)


class TestPictures:
    @pytest.fixture(autouse=True)
    def without_a_display(self) -> Any:
        pytest.importorskip("matplotlib").use("Agg")
        yield
        pytest.importorskip("matplotlib.pyplot").close("all")

    def test_a_function_of_one_variable_is_a_curve(self) -> None:
        layer = LMKANLinear(3, 4, 20, dimension=1)
        ax = adapter.plot_function(layer, 2, 1)
        (curve,) = ax.lines
        points, values = curve.get_data()
        tables = layer.tables.detach().numpy()
        np.testing.assert_array_equal(values, lmkan_cupy.evaluate(tables, 2, 1, points))
        knots = lmkan_cupy.sigma_grid(20)
        np.testing.assert_allclose([points[0], points[-1]], knots[[0, -1]], rtol=1e-6)
        np.testing.assert_allclose(ax.xaxis.get_minor_locator().locs, knots, rtol=1e-6)
        assert ax.get_xlabel() == "input 2"

    def test_bands_hold_half_of_the_samples_and_nearly_all(self) -> None:
        layer, data = (
            LMKANLinear(3, 4, 20, dimension=1),
            np.random.default_rng(0).normal(size=(5000, 3)),
        )
        ax = adapter.plot_function(layer, 1, 0, data=data)
        shares = [
            np.mean((data[:, 1] >= left) & (data[:, 1] <= left + band.get_width()))
            for band in ax.patches
            for left in [band.get_x()]
        ]
        np.testing.assert_allclose(shares, [0.95, 0.5], atol=1e-3)

    @pytest.mark.long
    def test_a_layer(self) -> None:
        assert len(adapter.plot_layer(LMKANLinear(3, 4, 20, dimension=1), most=5).axes) == 5

    def test_functions_of_three_variables_are_refused(self) -> None:
        with pytest.raises(ValueError, match="functions of three inputs cannot be drawn"):
            adapter.plot_function(LMKANLinear(3, 4, 4, dimension=3), 0, 0)
