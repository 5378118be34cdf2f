"""An allocator serves one call, whatever ends it."""

from __future__ import annotations

from typing import Any

import interrupts
import numpy as np
from problems import nan_filled

import lmkan_cupy
from lmkan_cupy import allocation

X = np.zeros((2, 3), np.float32)
TABLES = np.zeros((2, 4, 4, 5), np.float32)


def test_serves_the_call_and_no_other() -> None:
    allocated: list[Any] = []

    def allocate(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Any) -> Any:
        allocated.append(np.empty(shape, dtype))
        return allocated[-1]

    y = allocation.served_by(allocate, lmkan_cupy.forward, X, tables=TABLES)
    lmkan_cupy.forward(X, TABLES)
    assert len(allocated) == 1
    assert allocated[0] is y


def test_an_interrupt_leaves_no_allocator_behind() -> None:
    """It would keep the results of all later calls."""

    def call() -> None:
        allocation.served_by(nan_filled, allocation.empty, (2,), X.dtype, X)

    points = 0
    for _ in interrupts.everywhere(call, allocation):
        points += 1
        assert allocation._allocate.get(None) is None
    assert points > 10
