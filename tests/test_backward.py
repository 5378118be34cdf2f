"""`backward` against the oracle: values, what is needed, memory layouts, leading axes, `out`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, FLOAT64, LAYOUTS, SIZES, SMALL, Dtypes, Sizes, make_problem
from tolerances import host

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


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    x, tables, grad_y, *_ = make_problem(rng, sizes, dtypes).on(xp)
    grads = lmkan_cupy.backward(grad_y, x, tables)
    for grad, expected in zip(grads, tolerances.backward(grad_y, x, tables), strict=True):
        assert isinstance(grad, xp.ndarray)
        assert grad.dtype == dtypes.x  # half tables too have float32 gradients
        expected.check(grad)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(xp: Any, rng: np.random.Generator, layout: str, dtypes: Dtypes) -> None:
    x, tables, grad_y, *_ = make_problem(rng, SMALL, dtypes).on(xp, layout)
    grads = lmkan_cupy.backward(grad_y, x, tables)
    for grad, expected in zip(grads, tolerances.backward(grad_y, x, tables), strict=True):
        expected.check(grad)


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3)], ids=str)
def test_leading_axes(xp: Any, rng: np.random.Generator, leading: tuple[int, ...]) -> None:
    batch = int(np.prod(leading))
    x, tables, grad_y, *_ = make_problem(rng, SMALL._replace(batch=batch), FLOAT64).on(xp)
    grad_x, grad_tables = lmkan_cupy.backward(
        grad_y.reshape(*leading, grad_y.shape[1]), x.reshape(*leading, x.shape[1]), tables
    )
    flat_grad_x, flat_grad_tables = lmkan_cupy.backward(grad_y, x, tables)
    assert grad_x.shape == (*leading, x.shape[1])
    np.testing.assert_array_equal(host(grad_x).reshape(x.shape), host(flat_grad_x))
    np.testing.assert_array_equal(host(grad_tables), host(flat_grad_tables))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
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


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_out_is_overwritten(
    xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, sizes, dtypes).on(xp)
    out_x = xp.full(x.shape, np.nan, dtypes.x)
    out_tables = xp.full(tables.shape, np.nan, dtypes.x)
    grad_x, grad_tables = lmkan_cupy.backward(grad_y, x, tables, out_x=out_x, out_tables=out_tables)
    assert grad_x is out_x
    assert grad_tables is out_tables
    allocated_x, allocated_tables = lmkan_cupy.backward(grad_y, x, tables)
    np.testing.assert_array_equal(host(out_x), host(allocated_x))
    np.testing.assert_array_equal(host(out_tables), host(allocated_tables))


def test_all_samples_in_one_cell(xp: Any, rng: np.random.Generator) -> None:
    """Every sample adds to the same four knots."""
    x, tables, grad_y, *_ = make_problem(rng, Sizes(1000, 4, 3, 8)).on(xp)
    x = 0.1 + 0.001 * x
    grads = lmkan_cupy.backward(grad_y, x, tables)
    for grad, expected in zip(grads, tolerances.backward(grad_y, x, tables), strict=True):
        expected.check(grad)
    assert (host(grads[1]) != 0).any(axis=-1).sum() == 2 * 4


def test_arguments_are_left_alone(xp: Any, rng: np.random.Generator) -> None:
    problem = make_problem(rng)
    x, tables, grad_y, *_ = problem.on(xp)
    lmkan_cupy.backward(grad_y, x, tables)
    np.testing.assert_array_equal(host(x), problem.x)
    np.testing.assert_array_equal(host(tables), problem.tables)
    np.testing.assert_array_equal(host(grad_y), problem.grad_y)
