"""Arrays as the kernels take them."""

from functools import cache
from typing import Any

import numpy as np

from ..array_library import Array
from ..grid import sigma_grid

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


def grid_of(tables: Array, dtype: np.dtype[Any]) -> Array:
    """Return the knots of tables."""
    return grid(tables.shape[1] - 1, dtype)
