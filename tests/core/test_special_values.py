"""Inputs far outside the grid, on its knots, NaN and infinite."""

from __future__ import annotations

from typing import Any

import numpy as np
import oracle
import pytest
import tolerances
from problems import DTYPES, FLOAT64, SMALL, Dtypes, Problem, Sizes, first_short, make_problem
from special_values import BAD_VALUES, around_knots
from tolerances import check_each, host, to_float64

import lmkan_cupy


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("size", [10, 90, 1e4, 1e15])
def test_far_outside(xp: Any, rng: np.random.Generator, size: float, dtypes: Dtypes) -> None:
    """The outermost cells continue. float32 can hold products of 1e15, but not exp(1e15)."""
    problem = make_problem(rng, SMALL, dtypes)
    problem = problem._replace(x=problem.x * np.asarray(size, dtypes.x))
    x, tables, grad_y, ggx, ggt = problem.on(xp)
    tolerances.forward(x, tables).check(lmkan_cupy.forward(x, tables))
    tolerances.jvp(ggx, ggt, x, tables).check(lmkan_cupy.jvp(ggx, ggt, x, tables))
    check_each(
        lmkan_cupy.backward(grad_y, x, tables),
        tolerances.backward(grad_y, x, tables),
    )
    check_each(
        lmkan_cupy.backward_backward(ggx, ggt, grad_y, x, tables),
        tolerances.backward_backward(ggx, ggt, grad_y, x, tables),
    )


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("num_grids", [3, 8, 40])
class TestOnKnots:
    def test_value(self, xp: Any, rng: np.random.Generator, num_grids: int, dtypes: Dtypes) -> None:
        points = around_knots(num_grids, dtypes.x)
        x = xp.asarray(np.stack(np.meshgrid(points, points), axis=-1).reshape(-1, 2))
        tables = xp.asarray(make_problem(rng, Sizes(0, 2, 3, num_grids), dtypes).tables)
        tolerances.forward(x, tables).check(lmkan_cupy.forward(x, tables))

    def test_table_value_is_the_value_at_its_knot(
        self, xp: Any, rng: np.random.Generator, num_grids: int, dtypes: Dtypes
    ) -> None:
        tables = make_problem(rng, Sizes(0, 2, 3, num_grids), dtypes).tables
        knots = lmkan_cupy.sigma_grid(num_grids, dtype=dtypes.x)
        x = np.stack(np.meshgrid(knots, knots, indexing="ij"), axis=-1)
        y = lmkan_cupy.forward(xp.asarray(x), xp.asarray(tables))
        bound = tolerances.forward(x.reshape(-1, 2), tables).bound.reshape(y.shape)
        tolerances.Expected(to_float64(tables[0]), bound).check(y)

    def test_slope_is_one_of_both_sides(
        self, xp: Any, rng: np.random.Generator, num_grids: int, dtypes: Dtypes
    ) -> None:
        """The first coordinate runs over the knots, the second stays in a cell."""
        tables = xp.asarray(make_problem(rng, Sizes(0, 2, 3, num_grids), dtypes).tables)
        points = around_knots(num_grids, dtypes.x)
        x = np.stack([points, np.full_like(points, 0.1)], axis=1)
        step = np.asarray([1e-3, 0], dtypes.x)
        grad_y = xp.asarray(rng.normal(size=(len(x), 3)).astype(dtypes.x))
        slope = lmkan_cupy.backward(grad_y, xp.asarray(x), tables)[0][:, 0]
        before, after = (tolerances.backward(grad_y, x + side, tables)[0] for side in (-step, step))
        distance = [np.abs(host(slope) - side.value[:, 0]) for side in (before, after)]
        bound = np.maximum(before.bound, after.bound)[:, 0]
        assert (np.minimum(*distance) <= bound).all()


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_zero_belongs_to_the_cell_on_its_right(
    xp: Any, rng: np.random.Generator, zero: float, dtypes: Dtypes
) -> None:
    """sigma(0) = 1/2 without rounding, so for even G the slope at 0 is that of one known side."""
    problem = make_problem(rng, Sizes(1, 4, 3, 8), dtypes)
    x, tables, grad_y, *_ = problem._replace(x=np.full_like(problem.x, zero)).on(xp)
    check_each(
        lmkan_cupy.backward(grad_y, x, tables),
        tolerances.backward(grad_y, x, tables),
    )


BAD_SAMPLE = 2


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("feature", [0, 3, 4], ids=["first-of-pair", "second-of-pair", "odd-last"])
@pytest.mark.parametrize("value", BAD_VALUES.values(), ids=BAD_VALUES)
class TestNonFinite:
    """One bad coordinate in a batch of 7 samples of 5 features."""

    @pytest.fixture
    def good(self, rng: np.random.Generator, dtypes: Dtypes) -> Problem:
        return make_problem(rng, Sizes(7, 5, 3, 8), dtypes)

    @pytest.fixture
    def bad(self, good: Problem, feature: int, value: float) -> Problem:
        x = good.x.copy()
        x[BAD_SAMPLE, feature] = value
        return good._replace(x=x)

    def test_forward(self, xp: Any, good: Problem, bad: Problem) -> None:
        expected = host(lmkan_cupy.forward(xp.asarray(good.x), xp.asarray(good.tables)))
        y = host(lmkan_cupy.forward(xp.asarray(bad.x), xp.asarray(bad.tables)))
        others = np.arange(len(y)) != BAD_SAMPLE
        assert not np.isfinite(y[BAD_SAMPLE]).any()
        np.testing.assert_array_equal(y[others], expected[others])

    def test_derivative_along_a_direction(self, xp: Any, good: Problem, bad: Problem) -> None:
        expected, dy = (
            host(lmkan_cupy.jvp(xp.asarray(each.ggx), None, *map(xp.asarray, each[:2])))
            for each in (good, bad)
        )
        others = np.arange(len(dy)) != BAD_SAMPLE
        assert not np.isfinite(dy[BAD_SAMPLE]).any()
        np.testing.assert_array_equal(dy[others], expected[others])

    @pytest.fixture
    def of_pair(self, good: Problem, feature: int) -> Any:
        """True [7, 5] for both coordinates of the pair with the bad one."""
        of_pair = np.zeros(good.x.shape, bool)
        of_pair[BAD_SAMPLE, feature // 2 * 2 : feature // 2 * 2 + 2] = True
        return of_pair

    def test_gradient_of_x(self, xp: Any, good: Problem, bad: Problem, of_pair: Any) -> None:
        (expected, _), (grad_x, _) = (
            map(host, lmkan_cupy.backward(*map(xp.asarray, (each.grad_y, each.x, each.tables))))
            for each in (good, bad)
        )
        assert not np.isfinite(grad_x[of_pair]).any()
        np.testing.assert_array_equal(grad_x[~of_pair], expected[~of_pair])

    def test_gradient_of_tables(self, xp: Any, bad: Problem, feature: int, value: float) -> None:
        _, grad_tables = lmkan_cupy.backward(*map(xp.asarray, (bad.grad_y, bad.x, bad.tables)))
        # The other coordinate of the pair keeps its interval, and the bad one is in an outermost
        # interval. The last of an odd number of features is paired with 0.
        partner = (*bad.x[BAD_SAMPLE], 0.0)[feature ^ 1]
        knots = oracle.sigma_grid(8)
        cell = [0, int(np.searchsorted(knots[1:-1], partner, side="right"))]
        if value == np.inf:
            cell[0] = 7
        i, j = cell if feature % 2 == 0 else reversed(cell)
        poisoned = np.zeros(bad.tables.shape, bool)
        poisoned[feature // 2, i : i + 2, j : j + 2] = True
        np.testing.assert_array_equal(~np.isfinite(host(grad_tables)), poisoned)

    def test_backward_backward(self, xp: Any, good: Problem, bad: Problem, of_pair: Any) -> None:
        expected, results = (
            lmkan_cupy.backward_backward(
                *map(xp.asarray, (each.ggx, each.ggt, each.grad_y, each.x, each.tables))
            )
            for each in (good, bad)
        )
        of_sample = np.zeros(bad.grad_y.shape, bool)
        of_sample[BAD_SAMPLE] = True
        for result, value, hit in zip(results, expected, (of_sample, of_pair), strict=False):
            assert not np.isfinite(host(result)[hit]).any()
            np.testing.assert_array_equal(host(result)[~hit], host(value)[~hit])


def test_evaluate_of_non_finite_points(xp: Any, rng: np.random.Generator) -> None:
    tables = xp.asarray(make_problem(rng, Sizes(0, 2, 1, 6), FLOAT64).tables)
    with np.errstate(invalid="ignore"):  # NumPy warns of inf - inf
        values = lmkan_cupy.evaluate(tables, 0, 0, xp.asarray(list(BAD_VALUES.values())), 0.5)
    assert not np.isfinite(host(values)).any()
