"""ONNX export of lmKAN layers: standard operators, and the same numbers in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tolerances

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANConv2d, LMKANLinear = adapter.LMKANBlock, adapter.LMKANConv2d, adapter.LMKANLinear
plain_torch, nn = adapter.plain_torch, torch.nn


def network(engine: str | None) -> tuple[Any, Any]:
    model = nn.Sequential(
        LMKANBlock(5, 8, 8, residual="relu", init_scale=2.0, engine=engine),
        LMKANLinear(8, 3, 8, residual="linear", init_scale=2.0, engine=engine),
    )
    return model, (5,)


def folded_network() -> tuple[Any, Any]:
    model, shape = network(None)
    model[0].layer.fold_()
    model[1].fold_()
    return model, shape


def convolutions() -> tuple[Any, Any]:
    model = nn.Sequential(
        LMKANConv2d(3, 4, 3, 2, 1, num_grids=8, init_scale=2.0),
        nn.ReLU(),
        LMKANConv2d(4, 6, 2, dilation=2, groups=2, init_scale=2.0),
        LMKANConv2d(6, 2, 1, residual="linear"),
    )
    return model, (3, 12, 12)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch itself
@pytest.mark.parametrize(
    "make",
    [lambda: network(None), lambda: network("torch"), folded_network, convolutions],
    ids=["network", "torch-engine", "folded", "convolutions"],
)
def test_same_numbers(make: Callable[[], tuple[Any, Any]], tmp_path: Path) -> None:
    """For another batch size than the exported one, within the promised error bound."""
    torch.manual_seed(0)
    model, shape = make()
    model.eval()
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        (torch.randn(4, *shape),),
        file,
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    nodes = onnx.load(file).graph.node
    assert {node.domain for node in nodes} == {""}

    session = onnxruntime.InferenceSession(file)
    x = torch.randn(33, *shape)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    expected = model(x).detach().numpy()
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(50, 5), (4, 7, 6), (0, 2)])
def test_the_exported_operations_are_the_oracles(
    shape: tuple[int, ...], dtype: str, rng: np.random.Generator
) -> None:
    """Also outside of the grid, where the functions continue, and for a NaN."""
    x = 3 * rng.normal(size=shape).astype(dtype)
    tables = rng.normal(size=((shape[-1] + 1) // 2, 9, 9, 4)).astype(dtype)
    y = plain_torch.forward_for_onnx(torch.from_numpy(x), torch.from_numpy(tables)).numpy()
    assert y.shape == (*shape[:-1], 4)
    tolerances.forward(x.reshape(-1, shape[-1]), tables).check(y.reshape(-1, 4))
    x[..., 0] = np.nan
    y = plain_torch.forward_for_onnx(torch.from_numpy(x), torch.from_numpy(tables)).numpy()
    assert np.isnan(y).all()
