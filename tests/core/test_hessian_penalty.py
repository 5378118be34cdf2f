"""The Hessian penalty and its gradient against the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, SMALL, Dtypes, Sizes, first_short, make_problem
from tolerances import check_each, host

import lmkan_cupy

SIZES = [Sizes(0, 1, 1, 3), Sizes(0, 2, 1, 4), Sizes(0, 5, 7, 10), Sizes(0, 12, 33, 40)]


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    tables = make_problem(rng, sizes, dtypes).on(xp).tables
    results = lmkan_cupy.hessian_penalty_and_grad(tables)
    for result in results:
        assert isinstance(result, xp.ndarray)
        assert result.dtype == dtypes.x
    check_each(results, tolerances.hessian_penalty(tables, dtypes.x))


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_separate_calls_give_the_same(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    tables = make_problem(rng, SMALL, dtypes).on(xp).tables
    penalty, grad = lmkan_cupy.hessian_penalty_and_grad(tables)
    np.testing.assert_array_equal(host(lmkan_cupy.hessian_penalty(tables)), host(penalty))
    np.testing.assert_array_equal(host(lmkan_cupy.hessian_penalty_grad(tables)), host(grad))


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_scale_is_of_the_gradient_alone(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    """Scaling by a power of two is exact."""
    tables = make_problem(rng, SMALL, dtypes).on(xp).tables
    penalty, grad = lmkan_cupy.hessian_penalty_and_grad(tables)
    same_penalty, scaled = lmkan_cupy.hessian_penalty_and_grad(tables, -0.25)
    np.testing.assert_array_equal(host(same_penalty), host(penalty))
    np.testing.assert_array_equal(host(scaled), -0.25 * host(grad))
    np.testing.assert_array_equal(
        host(lmkan_cupy.hessian_penalty_grad(tables, -0.25)), host(scaled)
    )


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_a_gradient_is_added_to(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    """An element is a sum of at most ten terms, each rounded together with the value added to."""
    tables = make_problem(rng, SMALL, dtypes).on(xp).tables
    total = xp.ones(tables.shape, dtypes.x)
    penalty, result = lmkan_cupy.hessian_penalty_and_grad(tables, 0.5, add_to=total)
    assert result is total
    expected_penalty, expected_grad = tolerances.hessian_penalty(tables, dtypes.x)
    expected_total = tolerances.Expected(
        1 + 0.5 * expected_grad.value,
        0.5 * expected_grad.bound + 10 * np.finfo(dtypes.x).eps,
    )
    check_each([penalty, total], [expected_penalty, expected_total])


@pytest.mark.parametrize("dtypes", DTYPES[:2], ids=str)
@pytest.mark.parametrize("num_grids", [3, 10, 40])
def test_zero_for_affine_tables(
    xp: Any, rng: np.random.Generator, num_grids: int, dtypes: Dtypes
) -> None:
    """Zero except for the rounding of the tables, which is less than the bound."""
    weight, bias = rng.normal(size=(4, 5)).astype(dtypes.x), rng.normal(size=4).astype(dtypes.x)
    zeros = np.zeros((3, num_grids + 1, num_grids + 1, 4), dtypes.x)
    tables = lmkan_cupy.fold_linear(zeros, weight, bias)
    around_zero = [
        tolerances.Expected(np.zeros_like(expected.value), 2 * expected.bound)
        for expected in tolerances.hessian_penalty(tables, dtypes.x)
    ]
    check_each(lmkan_cupy.hessian_penalty_and_grad(xp.asarray(tables)), around_zero)


def test_one_spike_by_hand(xp: Any) -> None:
    """The middle of a grid of 4, whose inner intervals all have the width log 2."""
    tables = xp.zeros((1, 5, 5, 1))
    tables[0, 2, 2, 0] = 1
    second, mixed = (1 + 4 + 1) / np.log(2) ** 4, 4 * (1 / (4 * np.log(2) ** 2)) ** 2
    penalty = lmkan_cupy.hessian_penalty(tables)
    assert penalty.shape == ()
    assert host(penalty) == pytest.approx((2 * second + 2 * mixed) / 9, rel=1e-14)
