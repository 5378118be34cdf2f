"""`forward` against the oracle; for layouts, leading axes and `out` see test_properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, SIZES, Dtypes, Sizes, make_problem
from tolerances import host

import lmkan_cupy


def test_one_cell_by_hand(xp: Any) -> None:
    """x = (-half, half) with half = log(2) / 2 lies in the middle of cell (1, 2) of a grid of 4."""
    tables = xp.zeros((1, 5, 5, 2))
    tables[0, 1:3, 2:4, 0] = xp.asarray([[1.0, 2.0], [3.0, 8.0]])
    half = np.log(2) / 2
    y = lmkan_cupy.forward(xp.asarray([[-half, half]]), tables)
    np.testing.assert_allclose(host(y), [[(1 + 2 + 3 + 8) / 4, 0]], rtol=1e-15)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    x, tables, *_ = make_problem(rng, sizes, dtypes).on(xp)
    y = lmkan_cupy.forward(x, tables)
    assert isinstance(y, xp.ndarray)
    assert y.dtype == dtypes.x
    tolerances.forward(x, tables).check(y)


def test_every_half_precision_number_is_read_exactly(xp: Any) -> None:
    """Subnormal ones, too: 0 is a knot, so at x = 0 a function is equal to one table value."""
    every_word = np.arange(2**16, dtype=np.uint16).view(np.float16)
    finite = every_word[np.isfinite(every_word)]
    tables = xp.asarray(np.broadcast_to(finite, (1, 5, 5, len(finite))))
    y = lmkan_cupy.forward(xp.zeros(2, "float32"), tables)
    np.testing.assert_array_equal(host(y), finite.astype(np.float32))
