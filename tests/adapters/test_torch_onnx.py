"""ONNX export of lmKAN layers: standard operators, and the same numbers in onnxruntime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import first_short

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANConv2d, LMKANLinear = adapter.LMKANBlock, adapter.LMKANConv2d, adapter.LMKANLinear
nn = torch.nn


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


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # of torch itself
@pytest.mark.parametrize(
    "make",
    first_short([lambda: network(None), lambda: network("torch"), folded_network, convolutions]),
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
