"""An allocator serves one call, whatever ends it; large arrays begin with a cache line."""

from __future__ import annotations

from typing import Any

import interrupts
import numpy as np
import pytest
from problems import nan_filled

import lmkan_cupy
from lmkan_cupy import allocation

FROM_LIBRARY = allocation._from_library
"""What the tests replace, see `conftest`."""

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


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("bytes_", [4096, 4104, 100_000])
def test_large_arrays_begin_with_a_cache_line(
    monkeypatch: pytest.MonkeyPatch, dtype: str, bytes_: int
) -> None:
    monkeypatch.setattr(allocation, "_from_library", FROM_LIBRARY)
    itemsize = np.dtype(dtype).itemsize
    kept = []
    for _ in range(8):  # memory that is free begins anywhere
        array = allocation.empty((bytes_ // itemsize // 4, 4), np.dtype(dtype), X)
        assert array.shape == (bytes_ // itemsize // 4, 4)
        assert array.dtype == dtype
        assert array.flags.c_contiguous
        assert array.flags.writeable
        if array.nbytes >= 4096:
            assert array.ctypes.data % 64 == 0
        kept.append(array)
        array[...] = len(kept)
    for number, array in enumerate(kept, 1):
        assert (array == number).all()


@pytest.mark.parametrize("shape", [(), (0, 4), (3,)])
def test_small_arrays(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    monkeypatch.setattr(allocation, "_from_library", FROM_LIBRARY)
    array = allocation.empty(shape, X.dtype, X)
    assert (array.shape, array.dtype) == (shape, X.dtype)


@pytest.mark.parametrize("offset", [0, 4, 32])
def test_aligned(monkeypatch: pytest.MonkeyPatch, offset: int) -> None:
    """What begins with a cache line is taken as it is, all else copied."""
    monkeypatch.setattr(allocation, "_from_library", FROM_LIBRARY)
    memory = np.empty(8192 + 128, np.uint8)
    begin = -memory.ctypes.data % 64 + offset
    array = memory[begin : begin + 8192].view(np.float32).reshape(32, 64)
    array[...] = np.arange(2048).reshape(32, 64)
    result = allocation.aligned(array)
    assert (result is array) == (offset == 0)
    assert result.ctypes.data % 64 == 0
    np.testing.assert_array_equal(result, array)
    transposed = allocation.aligned(array.T)
    assert transposed.flags.c_contiguous
    assert transposed.ctypes.data % 64 == 0
    np.testing.assert_array_equal(transposed, array.T)
    small = array[0, 1:5]
    assert allocation.aligned(small) is small
