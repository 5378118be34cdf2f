"""The bounds themselves: a plain computation keeps them, a slightly wrong one does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import tolerances
from oracle import Array
from problems import DTYPES, FLOAT32, FLOAT64, Dtypes, Problem, Sizes, make_problem

SIZES = [Sizes(500, 5, 3, 40), Sizes(500, 128, 2, 8)]


def plain_forward(x: Array, tables: Array, position_dtype: Any) -> Array:
    """The forward of lmkan_cupy/README.md in the dtype of x, with positions in `position_dtype`."""
    knots = tolerances.knots_of(tables, x.dtype)
    num_grids = len(knots) - 1
    cell = np.clip(np.floor(num_grids * oracle.sigma(x)).astype(int), 0, num_grids - 1)
    position = ((x - knots[cell]) / (knots[cell + 1] - knots[cell])).astype(position_dtype)
    i, j = oracle.by_group(cell, 2)
    u, v = oracle.by_group(position, 2)
    if x.shape[1] % 2:  # the constant 0 that completes the last pair
        j[:, -1] = num_grids // 2
        left, right = knots[num_grids // 2 : num_grids // 2 + 2]
        v[:, -1] = -left / (right - left)
    u, v, pair = u[..., None], v[..., None], np.arange(len(tables))
    y = (1 - u) * (1 - v) * tables[pair, i, j] + (1 - u) * v * tables[pair, i, j + 1]
    y += u * (1 - v) * tables[pair, i + 1, j] + u * v * tables[pair, i + 1, j + 1]
    return y.sum(axis=1, dtype=x.dtype)


def problem_at_knots(rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> Problem:
    """Every other input is a knot or one of the two numbers next to it."""
    problem = make_problem(rng, sizes, dtypes)
    knots = tolerances.knots_of(problem.tables, dtypes.x)
    at_knots = rng.choice(knots, problem.x.shape)
    aside = np.nextafter(at_knots, rng.choice([-9, 0, 9], problem.x.shape).astype(dtypes.x))
    return problem._replace(x=np.where(rng.random(problem.x.shape) < 0.5, aside, problem.x))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
def test_plain_computation_is_within_bounds(
    rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes
) -> None:
    x, tables, *_ = problem_at_knots(rng, sizes, dtypes)
    tolerances.forward(x, tables).check(plain_forward(x, tables, dtypes.x))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize(
    ("dtypes", "narrower"), [(FLOAT32, "float16"), (FLOAT64, "float32")], ids=["float32", "float64"]
)
def test_a_step_in_less_precision_is_out_of_bounds(
    rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes, narrower: str
) -> None:
    x, tables, *_ = make_problem(rng, sizes, dtypes)
    with pytest.raises(AssertionError, match="elements out of bounds"):
        tolerances.forward(x, tables).check(plain_forward(x, tables, narrower))


def test_nan_is_out_of_bounds() -> None:
    expected = tolerances.Expected(np.zeros(3), np.ones(3))
    with pytest.raises(AssertionError, match=r"1 of 3 .* at \(1,\): got nan, expected 0.0"):
        expected.check(np.array([0.5, np.nan, -1.0]))


def test_cell_choice_widens_the_bound_at_knots_only() -> None:
    """By about G eps times the second difference of the tables, as in lmkan_cupy/README.md."""
    tables = np.zeros((1, 41, 41, 1))
    tables[0, 1::2] = 1  # second differences of 2
    knots = tolerances.knots_of(tables, "float32")
    at_knot = np.array([[knots[30], 0.3]], np.float32)
    aside = at_knot + np.float32(0.01)
    widening = tolerances.forward(at_knot, tables).bound - tolerances.forward(aside, tables).bound
    figure = 40 * np.finfo(np.float32).eps * 2
    assert figure < widening.item() < 3 * figure


def test_storage_in_half_precision() -> None:
    exact = tolerances.Expected(np.array([1 / 3, 1e-6]), np.zeros(2))
    exact.stored("float16").check(np.array([1 / 3, 1e-6]).astype(np.float16))
    with pytest.raises(AssertionError, match="2 of 2"):
        exact.check(np.array([1 / 3, 1e-6]).astype(np.float16))
