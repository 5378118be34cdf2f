"""`forward` against the oracle: values, dtypes, memory layouts, leading axes, `out`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, FLOAT64, LAYOUTS, SIZES, SMALL, Dtypes, Sizes, make_problem
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


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(xp: Any, rng: np.random.Generator, layout: str, dtypes: Dtypes) -> None:
    x, tables, *_ = make_problem(rng, SMALL, dtypes).on(xp, layout)
    tolerances.forward(x, tables).check(lmkan_cupy.forward(x, tables))


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3)], ids=str)
def test_leading_axes(xp: Any, rng: np.random.Generator, leading: tuple[int, ...]) -> None:
    batch = int(np.prod(leading))
    x, tables, *_ = make_problem(rng, SMALL._replace(batch=batch), FLOAT64).on(xp)
    y = lmkan_cupy.forward(x.reshape(*leading, x.shape[1]), tables)
    assert y.shape == (*leading, tables.shape[3])
    np.testing.assert_array_equal(host(y).reshape(batch, -1), host(lmkan_cupy.forward(x, tables)))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_out_is_overwritten(
    xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes
) -> None:
    x, tables, *_ = make_problem(rng, sizes, dtypes).on(xp)
    out = xp.full((sizes.batch, sizes.out_features), np.nan, dtypes.x)
    assert lmkan_cupy.forward(x, tables, out=out) is out
    np.testing.assert_array_equal(host(out), host(lmkan_cupy.forward(x, tables)))


def test_arguments_are_left_alone(xp: Any, rng: np.random.Generator) -> None:
    problem = make_problem(rng)
    x, tables, *_ = problem.on(xp)
    lmkan_cupy.forward(x, tables)
    np.testing.assert_array_equal(host(x), problem.x)
    np.testing.assert_array_equal(host(tables), problem.tables)
