"""`backward` against the oracle; for layouts, leading axes and `out_*` see test_properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, SIZES, Dtypes, Sizes, first_short, make_problem
from tolerances import check_each, host

import lmkan_cupy


def test_one_cell_by_hand(xp: Any) -> None:
    """The middle of a cell of width log 2: equal weights, slopes by differences of edge means."""
    tables = xp.zeros((1, 5, 5, 1))
    tables[0, 1:3, 2:4, 0] = xp.asarray([[1.0, 2.0], [3.0, 8.0]])
    width = np.log(2)
    x = xp.asarray([[-width / 2, width / 2]])
    grad_x, grad_tables = lmkan_cupy.backward(xp.asarray([[4.0]]), x, tables)
    slopes = [(3 + 8 - 1 - 2) / 2, (2 + 8 - 1 - 3) / 2]
    np.testing.assert_allclose(host(grad_x), 4 * np.array([slopes]) / width, rtol=1e-14)
    np.testing.assert_allclose(host(grad_tables)[0, 1:3, 2:4, 0], 1, rtol=1e-14)
    assert host(grad_tables).sum() == pytest.approx(4)


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    x, tables, grad_y, *_ = make_problem(rng, sizes, dtypes).on(xp)
    grads = lmkan_cupy.backward(grad_y, x, tables)
    for grad in grads:
        assert isinstance(grad, xp.ndarray)
        assert grad.dtype == dtypes.x  # half tables too have float32 gradients
    check_each(grads, tolerances.backward(grad_y, x, tables))


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_what_is_not_needed_changes_nothing(
    xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, sizes, dtypes).on(xp)
    grad_x, grad_tables = lmkan_cupy.backward(grad_y, x, tables)

    only_x, nothing = lmkan_cupy.backward(grad_y, x, tables, need_tables=False)
    assert nothing is None
    np.testing.assert_array_equal(host(only_x), host(grad_x))

    nothing, only_tables = lmkan_cupy.backward(grad_y, x, tables, need_x=False)
    assert nothing is None
    np.testing.assert_array_equal(host(only_tables), host(grad_tables))


def test_nothing_needed(xp: Any, rng: np.random.Generator) -> None:
    x, tables, grad_y, *_ = make_problem(rng).on(xp)
    grads = lmkan_cupy.backward(grad_y, x, tables, need_x=False, need_tables=False)
    assert grads == (None, None)


def test_all_samples_in_one_cell(xp: Any, rng: np.random.Generator) -> None:
    """Every sample adds to the same four knots."""
    x, tables, grad_y, *_ = make_problem(rng, Sizes(1000, 4, 3, 8)).on(xp)
    x = 0.1 + 0.001 * x
    grads = lmkan_cupy.backward(grad_y, x, tables)
    check_each(grads, tolerances.backward(grad_y, x, tables))
    assert (host(grads[1]) != 0).any(axis=-1).sum() == 2 * 4


def test_many_equal_samples(xp: Any, rng: np.random.Generator) -> None:
    """One running sum would round at every sample, always in the same direction."""
    problem = make_problem(rng, Sizes(1, 2, 1, 3))
    x, grad_y = (np.repeat(each, 200_000, axis=0) for each in (problem.x, problem.grad_y))
    x, tables, grad_y, *_ = problem._replace(x=x, grad_y=grad_y).on(xp)
    grads = lmkan_cupy.backward(grad_y, x, tables)
    check_each(grads, tolerances.backward(grad_y, x, tables))
