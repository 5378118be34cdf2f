"""What torch's counter of FLOPs says of the layers: twice the multiply-adds of `flops`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from problems import first_short

import lmkan_cupy

torch = pytest.importorskip("torch")
adapter = pytest.importorskip("lmkan_cupy.adapters.torch")
counting = pytest.importorskip("torch.utils.flop_counter")

LMKANBlock, LMKANConv2d, LMKANLinear = adapter.LMKANBlock, adapter.LMKANConv2d, adapter.LMKANLinear


def counted(call: Callable[[], Any]) -> int:
    with counting.FlopCounterMode(display=False) as counter:
        call()
    total: int = counter.get_total_flops()
    return total


@pytest.mark.parametrize("dimension", first_short([2, 1, 3]))
def test_forward_and_backward(dimension: int) -> None:
    layer = LMKANLinear(5, 7, 4, dimension=dimension)
    x = torch.randn(3, 11, 5)
    once = 2 * 33 * lmkan_cupy.flops(5, 7, dimension=dimension)
    assert counted(lambda: layer(x)) == once
    assert counted(lambda: layer(x).sum().backward()) == 2 * once  # and the tables
    assert counted(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * once  # and x


def test_a_branch_and_a_block_are_counted_with_it() -> None:
    block, x = LMKANBlock(5, 7, 4, residual="linear"), torch.randn(33, 5)
    assert counted(lambda: block(x)) == 2 * 33 * (lmkan_cupy.flops(5, 7) + 5 * 7)


def test_a_convolution() -> None:
    layer, x = LMKANConv2d(4, 6, 3, groups=2, num_grids=4), torch.randn(2, 4, 7, 5)
    once = 2 * (2 * 5 * 3) * 2 * lmkan_cupy.flops(2 * 9, 3)
    assert counted(lambda: layer(x)) == once
    assert counted(lambda: layer(x.requires_grad_()).sum().backward()) == 3 * once


def test_a_fused_network() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), LMKANBlock(5, 7, 4))
    fused, x = adapter.fuse(model.eval()), torch.randn(33, 6, requires_grad=True)
    once = 2 * 33 * (6 * 5 + lmkan_cupy.flops(5, 7))
    assert counted(lambda: fused(x)) == once
    assert counted(lambda: fused(x).sum().backward()) == 3 * once


@pytest.mark.parametrize(
    ("of_x", "of_tables", "jvp", "backward_backward"),
    [(True, False, 1, 3), (False, True, 1, 2), (True, True, 2, 5)],
)
def test_further_derivatives(of_x: bool, of_tables: bool, jvp: int, backward_backward: int) -> None:
    x, tables = torch.randn(33, 5), LMKANLinear(5, 7, 4).tables.detach()
    once, operators = 2 * 33 * lmkan_cupy.flops(5, 7), torch.ops.lmkan_cupy
    direction = (x if of_x else None), (tables if of_tables else None)
    pulled = (*direction, torch.randn(33, 7), x, tables)
    assert counted(lambda: operators.jvp(*direction, x, tables)) == jvp * once
    assert counted(lambda: operators.backward_backward(*pulled)) == backward_backward * once
