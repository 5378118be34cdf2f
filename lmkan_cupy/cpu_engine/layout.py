"""Arrays as the kernels take them."""

from functools import cache
from typing import Any

import numpy as np

from ..array_library import Array
from ..grid import sigma_grid
from .vectors import table_length

_HALF = np.dtype(np.float16)


def stored(tables: Array) -> Array:
    """Return tables as the kernels take them: float16 as 16-bit words, as Numba has no float16."""
    words: Array = tables.view(np.uint16) if tables.dtype == _HALF else tables
    return words


def contiguous(array: Array) -> Array:
    """Return the array C-contiguous, copied only where needed."""
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


@cache
def grid(num_grids: int, dtype: np.dtype[Any]) -> Array:
    """Return the knots of a grid, made once and kept, as making them takes microseconds."""
    return sigma_grid(num_grids, dtype=dtype)


@cache
def intervals(num_grids: int, dtype: np.dtype[Any]) -> Array:
    """Return the intervals [2, L] of a grid: their left knots and one over their widths.

    L is G rounded up to whole vectors, as the kernels take it; what is left is 0.
    """
    knots = grid(num_grids, dtype)
    result = np.zeros((2, table_length(num_grids)), dtype)
    result[:, :num_grids] = knots[:-1], 1 / np.diff(knots)
    return result


def intervals_of(tables: Array, dtype: np.dtype[Any]) -> Array:
    """Return the intervals of tables."""
    return intervals(tables.shape[1] - 1, dtype)


def is_gathered(nbytes: int) -> bool:
    """Tell whether tables of so many bytes are read faster sample by sample than cell by cell.

    Both give the same bits. Grouping by cell pays where tables outgrow the caches; the limit was
    measured, see ``bench/results/cpu_engine.md``.
    """
    return nbytes <= 2**23
