"""Arrays as the kernels take them."""

from functools import cache
from typing import Any

import numpy as np

from ..array_library import Array
from ..grid import sigma_grid
from .vectors import table_length

_HALF = np.dtype(np.float16)

#: In the intervals of a fine grid, where the slots begin.
FIRST_SLOT = np.uint32(3)

#: The most intervals that are found by counting all knots, the faster way on coarse grids.
_MOST_COUNTED = 32


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
    """Return the intervals of a grid as the kernels take them: [2, L], of a fine grid [3, L].

    The first row are their left knots, then infinity, the second one over their widths. A fine grid
    is cut into slots of one width, so narrow that no two inner knots fall into one: the third row
    are the first slot's left end, one over the width, the number of the last slot, and for each
    slot the number of inner knots that fall into the slots before it.
    """
    knots = grid(num_grids, dtype)
    slots = _slots(knots[1:-1]) if num_grids > _MOST_COUNTED else np.empty(0, dtype)
    result = np.zeros((2 + bool(len(slots)), table_length(max(num_grids, len(slots)))), dtype)
    result[0] = np.inf
    result[:2, :num_grids] = knots[:-1], 1 / np.diff(knots)
    result[2:, : len(slots)] = slots
    return result


def _slots(inner_knots: Array) -> Array:
    """Return the third row of the intervals, computed as the kernels compute a slot."""
    first, density = inner_knots[0], 1 / np.diff(inner_knots).min()
    while True:
        slot = ((inner_knots - first) * density).astype(np.int64)
        if len(set(slot.tolist())) == len(slot):
            break
        density *= inner_knots.dtype.type(1.1)
    before = np.searchsorted(slot, np.arange(slot[-1] + 1))
    return np.array([first, density, slot[-1], *before], inner_knots.dtype)


def intervals_of(tables: Array, dtype: np.dtype[Any]) -> Array:
    """Return the intervals of tables."""
    return intervals(tables.shape[1] - 1, dtype)


def is_gathered(nbytes: int) -> bool:
    """Tell whether tables of so many bytes are read faster sample by sample than cell by cell.

    Both give the same bits. Grouping by cell pays where tables outgrow the caches; the limit was
    measured, see ``bench/results/cpu_engine.md``.
    """
    return nbytes <= 2**23
