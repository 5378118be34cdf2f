"""A `state_dict` of folded layers in a model that is not folded, and the other way round."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANConv2d, LMKANLinear = adapter.LMKANBlock, adapter.LMKANConv2d, adapter.LMKANLinear


def model(**options: Any) -> Any:
    options = {"num_grids": 4, **options}
    return torch.nn.Sequential(
        LMKANConv2d(2, 3, 2, **options), torch.nn.Flatten(), LMKANBlock(12, 5, **options)
    ).eval()


@pytest.mark.parametrize(
    "options",
    [
        {"residual": "linear"},
        {"residual": "relu", "bias": False},
        {"residual": "linear", "tables_weight": 0.5},
        {"tables_weight": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("assign", [False, True])
def test_loading_folds(
    options: dict[str, Any], assign: bool, caplog: pytest.LogCaptureFixture
) -> None:
    saved, other = model(**options), model(**options)
    for layer in (saved[0], saved[2].layer):
        layer.fold_()
    caplog.set_level(logging.INFO, "lmkan_cupy")
    other.load_state_dict(saved.state_dict(), assign=assign)
    x = torch.randn(7, 2, 3, 3)
    torch.testing.assert_close(other(x), saved(x), rtol=0, atol=0)
    assert [*other.state_dict()] == [*saved.state_dict()]
    assert other[0].residual is None
    assert [each.message for each in caplog.records] == [
        f"load_state_dict: {name} was saved folded, and is folded with it"
        for name in ("0", "2.layer")
    ]


def test_a_part_of_a_branch_folds_nothing() -> None:
    layer = LMKANLinear(4, 3, 4, residual="linear")
    state = layer.state_dict()
    del state["bias"]
    with pytest.raises(RuntimeError, match=r'Missing key.* "bias"'):
        layer.load_state_dict(state)
    missing, _ = layer.load_state_dict({"bias": layer.bias.detach()}, strict=False)
    assert missing == ["tables", "weight"]
    assert layer.residual == "linear"


def test_another_grid_is_refused_before_anything_is_folded() -> None:
    layer = LMKANLinear(4, 3, 4, residual="linear")
    with pytest.raises(RuntimeError, match="size mismatch for tables"):
        layer.load_state_dict(LMKANLinear(4, 3, 8).state_dict())
    assert layer.residual == "linear"


def test_a_branch_does_not_go_into_a_folded_layer() -> None:
    saved = model(residual="linear")
    folded = copy.deepcopy(saved)
    folded[2].layer.fold_()
    with pytest.raises(RuntimeError) as error:
        folded.load_state_dict(saved.state_dict())
    assert str(error.value) == (
        "load_state_dict: 2.layer was saved with a residual branch, which this one lacks: make it "
        "with the `residual` that it had, and call fold_() after loading"
    )
