"""`bias`, where `nn.Linear` and `nn.Conv2d` take it: whether a residual branch has one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")

LMKANBlock, LMKANConv2d, LMKANLinear = adapter.LMKANBlock, adapter.LMKANConv2d, adapter.LMKANLinear
nn = torch.nn

LAYERS: dict[str, Callable[..., Any]] = {
    "linear": lambda **options: LMKANLinear(6, 4, 4, **options),
    "convolution": lambda **options: LMKANConv2d(6, 4, 3, groups=2, num_grids=4, **options),
}
INPUTS = {"linear": (9, 6), "convolution": (2, 6, 5, 5)}


@pytest.fixture(autouse=True)
def repeatable() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("residual", ["linear", "relu", "relu_last"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_branch_without_bias(name: str, residual: str) -> None:
    options = {"residual": residual, "dtype": torch.float64}
    layer, twin = LAYERS[name](bias=False, **options), LAYERS[name](**options)
    assert layer.bias is None
    assert [*layer.state_dict()] == ["tables", "weight"]
    twin.load_state_dict({**layer.state_dict(), "bias": torch.zeros(4)})
    x = torch.randn(INPUTS[name], dtype=torch.float64)
    y = layer(x)
    torch.testing.assert_close(y, twin(x), rtol=0, atol=0)
    if residual != "relu_last":
        torch.testing.assert_close(layer.fold_()(x), y)
        assert [*layer.state_dict()] == ["tables"]


@pytest.mark.parametrize("name", LAYERS)
def test_without_a_branch_constants_are_in_the_tables(name: str) -> None:
    for bias in (True, False):
        layer = LAYERS[name](bias=bias)
        assert layer.bias is None
        assert [*layer.state_dict()] == ["tables"]


def test_it_stands_where_a_convolution_has_it() -> None:
    arguments = 6, 4, 3, 1, 0, 1, 2, False
    assert nn.Conv2d(*arguments).bias is None
    assert LMKANConv2d(*arguments, residual="linear").bias is None
    assert LMKANConv2d(*arguments[:-1], residual="linear").bias is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [LMKANLinear, LMKANBlock])
def test_it_is_no_grid(kind: Any, bias: bool) -> None:
    """The third argument of `nn.Linear` is not that of an lmKAN layer."""
    text = f"LMKANLinear: num_grids, the third argument, .* got {bias}; bias={bias} is given by"
    with pytest.raises(TypeError, match=text):
        kind(6, 4, bias)
    with pytest.raises(TypeError, match="num_grids must be a whole number, got False"):
        LMKANConv2d(6, 4, 3, num_grids=False)
    with pytest.raises(TypeError, match="LMKANConv2d: groups must be a whole number, got True"):
        LMKANConv2d(6, 4, 3, groups=True)
