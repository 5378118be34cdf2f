"""Properties that every layer has, for random shapes, dtypes, memory layouts and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tolerances
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import Array
from problems import (
    DTYPES,
    HALF_TABLES,
    LAYOUTS,
    SMALL,
    Dtypes,
    Problem,
    Sizes,
    all_results,
    away_from_knots,
    first_short,
    make_problem,
)
from tolerances import Expected, host, to_float64

import lmkan_cupy

RNGS = st.integers(0, 2**32 - 1).map(np.random.default_rng)
GRIDS = st.integers(3, 12)
FEATURES = st.integers(1, 9)


@st.composite
def draw_problems(
    draw: st.DrawFn,
    dtypes: list[Dtypes] = DTYPES,
    num_grids: st.SearchStrategy[int] = GRIDS,
    in_features: st.SearchStrategy[int] = FEATURES,
    smooth: bool = False,
) -> Problem:
    """Arguments as NumPy arrays; some of x are outside the grid, and on knots unless `smooth`.

    Half tables only in the long run: theirs are kernels of their own, which take long to compile.
    """
    if settings.get_current_profile_name() == "short":
        dtypes = [each for each in dtypes if each != HALF_TABLES]
    sizes = Sizes(
        batch=draw(st.integers(0, 40)),
        in_features=draw(in_features),
        out_features=draw(st.integers(1, 70)),
        num_grids=draw(num_grids),
    )
    problem = make_problem(draw(RNGS), sizes, draw(st.sampled_from(dtypes)))
    x_dtype = problem.x.dtype
    knots = lmkan_cupy.sigma_grid(sizes.num_grids, dtype=x_dtype)
    coordinates = st.floats(-60, 60, width=8 * x_dtype.itemsize) | st.sampled_from(knots)
    x = draw(hnp.arrays(x_dtype, problem.x.shape, elements=coordinates))
    return problem._replace(x=away_from_knots(x, knots) if smooth else x)


problems = draw_problems()
smooth_problems = draw_problems(smooth=True)
layouts = st.sampled_from(sorted(LAYOUTS))


def dot(first: Any, second: Any) -> float:
    return float(np.sum(to_float64(first) * to_float64(second)))


def dot_bound(exact: Any, expected: Expected) -> float:
    """The largest error of <exact, result> if the result is within its bounds."""
    return float(np.sum(np.abs(to_float64(exact)) * expected.bound))


class TestBranches:
    """A layer can be exactly an affine function or a ReLU, on the whole real line."""

    @given(problem=draw_problems(), rng=RNGS)
    def test_folding_a_linear_branch_changes_nothing(
        self, xp: Any, problem: Problem, rng: np.random.Generator
    ) -> None:
        self.check(xp, problem, rng, lmkan_cupy.fold_linear, lambda x: x)

    @given(problem=draw_problems(num_grids=st.sampled_from([4, 8, 10])), rng=RNGS)
    def test_folding_a_relu_branch_changes_nothing(
        self, xp: Any, problem: Problem, rng: np.random.Generator
    ) -> None:
        self.check(xp, problem, rng, lmkan_cupy.fold_relu, lambda x: np.maximum(x, 0))

    @given(problem=draw_problems(), rng=RNGS)
    def test_affine_functions_are_reproduced(
        self, xp: Any, problem: Problem, rng: np.random.Generator
    ) -> None:
        problem = problem._replace(tables=np.zeros_like(problem.tables))
        self.check(xp, problem, rng, lmkan_cupy.fold_linear, lambda x: x)

    @staticmethod
    def check(
        xp: Any,
        problem: Problem,
        rng: np.random.Generator,
        fold: Callable[..., Any],
        activation: Callable[[Array], Array],
    ) -> None:
        x, tables, *_ = problem
        weight = rng.normal(size=(tables.shape[3], x.shape[1])).astype(x.dtype)
        bias = rng.normal(size=len(weight)).astype(x.dtype)
        folded = fold(*map(xp.asarray, (tables, weight, bias)))

        branch = activation(to_float64(x)) @ to_float64(weight).T + to_float64(bias)
        errors = tolerances.fold(tables, weight, bias, activation, x.dtype).bound
        Expected(
            tolerances.forward(x, tables).value + branch,
            tolerances.forward(x, folded, errors).bound,
        ).check(lmkan_cupy.forward(xp.asarray(x), folded))


@given(problem=problems, factor=st.integers(1, 4))
def test_refining_to_a_multiple_changes_nothing(xp: Any, problem: Problem, factor: int) -> None:
    x, tables, *_ = problem
    num_grids = factor * (tables.shape[1] - 1)
    refined = lmkan_cupy.refine(xp.asarray(tables), num_grids)
    errors = tolerances.refine(tables, num_grids, x.dtype).bound
    Expected(
        tolerances.forward(x, tables).value, tolerances.forward(x, refined, errors).bound
    ).check(lmkan_cupy.forward(xp.asarray(x), refined))


@given(problem=problems)
def test_forward_is_linear_in_tables(xp: Any, problem: Problem) -> None:
    """Doubling is exact, and so is a sum of tables of whole numbers."""
    x, tables, _, _, ggt = problem.on(xp)
    y = lmkan_cupy.forward(x, tables)
    np.testing.assert_array_equal(host(lmkan_cupy.forward(x, 2 * tables)), 2 * host(y))

    first, second = xp.rint(8 * tables), xp.rint(8 * ggt).astype(tables.dtype)
    separately = [to_float64(lmkan_cupy.forward(x, each)) for each in (first, second)]
    bounds = [tolerances.forward(x, each).bound for each in (first, second, first + second)]
    Expected(sum(separately), sum(bounds)).check(lmkan_cupy.forward(x, first + second))


@given(problem=draw_problems(in_features=st.sampled_from([2, 6, 12])), rng=RNGS)
def test_permuting_pairs_with_their_tables_changes_nothing(
    xp: Any, problem: Problem, rng: np.random.Generator
) -> None:
    x, tables, *_ = problem.on(xp)
    order = rng.permutation(len(tables))
    features = np.stack([2 * order, 2 * order + 1], axis=1).ravel()
    expected = tolerances.forward(x, tables)
    expected.check(lmkan_cupy.forward(x[:, xp.asarray(features)], tables[xp.asarray(order)]))


@given(problem=problems)
def test_table_gradient_is_the_adjoint(xp: Any, problem: Problem) -> None:
    """<g, F_Z(x)> = <F^T g, Z> for every x, also at knots."""
    x, tables, grad_y, _, directions = problem.on(xp)
    directions = directions.astype(tables.dtype)
    y = lmkan_cupy.forward(x, directions)
    _, grad_tables = lmkan_cupy.backward(grad_y, x, tables)
    bound = dot_bound(grad_y, tolerances.forward(x, directions))
    bound += dot_bound(directions, tolerances.backward(grad_y, x, tables)[1])
    assert abs(dot(grad_y, y) - dot(directions, grad_tables)) <= bound


@given(problem=smooth_problems)
def test_input_gradient_is_the_adjoint(xp: Any, problem: Problem) -> None:
    """<g, J dx> = <J^T g, dx>."""
    x, tables, grad_y, dx, _ = problem.on(xp)
    along_dx = lmkan_cupy.jvp(dx, None, x, tables)
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables, need_tables=False)
    bound = dot_bound(grad_y, tolerances.jvp(dx, xp.zeros_like(tables), x, tables))
    bound += dot_bound(dx, tolerances.backward(grad_y, x, tables)[0])
    assert abs(dot(grad_y, along_dx) - dot(dx, grad_x)) <= bound


@given(problem=smooth_problems)
def test_backward_is_linear_in_the_tables(xp: Any, problem: Problem) -> None:
    """grad_x is linear in T, so <ggx, grad_x> = <T, its derivative in T>."""
    x, tables, grad_y, ggx, _ = problem.on(xp)
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables, need_tables=False)
    *_, derivative = lmkan_cupy.backward_backward(ggx, None, grad_y, x, tables)
    no_ggt = xp.zeros_like(tables)
    bound = dot_bound(tables, tolerances.backward_backward(ggx, no_ggt, grad_y, x, tables)[2])
    bound += dot_bound(ggx, tolerances.backward(grad_y, x, tables)[0])
    assert abs(dot(tables, derivative) - dot(ggx, grad_x)) <= bound


@given(problem=problems)
def test_penalty_by_polarisation(xp: Any, problem: Problem) -> None:
    """R is quadratic: R(T + D) - R(T - D) = 2 <grad R(T), D>, and R(2 T) = 4 R(T) to the bit."""
    tables, directions = (xp.rint(8 * each) for each in (problem.on(xp).tables, problem.on(xp).ggt))
    directions = directions.astype(tables.dtype)
    x_dtype = problem.x.dtype
    ahead, behind = tables + directions, tables - directions
    difference = dot(1, lmkan_cupy.hessian_penalty(ahead)) - dot(
        1, lmkan_cupy.hessian_penalty(behind)
    )
    penalty, grad = lmkan_cupy.hessian_penalty_and_grad(tables)
    bound = 2 * dot_bound(directions, tolerances.hessian_penalty(tables, x_dtype)[1])
    for shifted in (ahead, behind):
        bound += tolerances.hessian_penalty(shifted, x_dtype)[0].bound
    assert abs(difference - 2 * dot(grad, directions)) <= bound
    assert host(lmkan_cupy.hessian_penalty(2 * tables)) == 4 * host(penalty)


def assert_same_bits(actual: Any, expected: Any) -> None:
    actual, expected = host(actual), host(expected)
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


class TestSameBits:
    @given(problem=problems, layout=layouts)
    def test_in_repeated_runs_and_any_layout(self, xp: Any, problem: Problem, layout: str) -> None:
        laid_out = problem.on(xp, layout)
        contiguous = Problem(*map(xp.ascontiguousarray, laid_out))
        for again in (laid_out, contiguous):
            for actual, expected in zip(all_results(again), all_results(contiguous), strict=True):
                assert_same_bits(actual, expected)

    @pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3), (2, 0)], ids=str)
    def test_in_any_leading_axes(
        self, xp: Any, rng: np.random.Generator, leading: tuple[int, ...]
    ) -> None:
        batch = int(np.prod(leading))
        flat = make_problem(rng, SMALL._replace(batch=batch)).on(xp)

        def shaped(array: Any) -> Any:
            return array.reshape(*leading, array.shape[-1]) if array.ndim == 2 else array

        for actual, expected in zip(
            all_results(Problem(*map(shaped, flat))), all_results(flat), strict=True
        ):
            assert_same_bits(actual, shaped(expected))

    @given(problem=problems, layout=layouts)
    def test_in_out_and_allocated_results(self, xp: Any, problem: Problem, layout: str) -> None:
        x, tables, grad_y, *_ = laid_out = problem.on(xp, layout)
        y, _, grad_x, grad_tables, *_ = all_results(laid_out)
        out_y, out_x, out_tables = (xp.full_like(each, np.nan) for each in (y, grad_x, grad_tables))
        assert lmkan_cupy.forward(x, tables, out=out_y) is out_y
        grads = lmkan_cupy.backward(grad_y, x, tables, out_x=out_x, out_tables=out_tables)
        assert grads[0] is out_x
        assert grads[1] is out_tables
        assert_same_bits(out_y, y)
        assert_same_bits(out_x, grad_x)
        assert_same_bits(out_tables, grad_tables)

    @given(problem=problems, rng=RNGS)
    def test_whatever_the_other_samples_are(
        self, xp: Any, problem: Problem, rng: np.random.Generator
    ) -> None:
        """A tenth of the samples stay; all others get other values, some of them infinite."""
        kept = rng.random(len(problem.x)) < 0.1
        others = make_problem(rng, Sizes(*problem.x.shape, problem.grad_y.shape[1], 3)).x
        others[rng.random(others.shape) < 0.1] = np.inf
        changed = np.where(kept[:, None], problem.x, others.astype(problem.x.dtype))
        for before, after in zip(
            by_sample(problem.on(xp)), by_sample(problem._replace(x=changed).on(xp)), strict=True
        ):
            assert_same_bits(before[kept], after[kept])

    @given(problem=problems, cut=st.integers(0, 40))
    def test_whatever_the_batch(self, xp: Any, problem: Problem, cut: int) -> None:
        """Two calls on parts of a batch give the rows of one call on all of it."""
        whole = by_sample(problem.on(xp))
        parts = [
            by_sample(
                problem._replace(
                    x=problem.x[rows], grad_y=problem.grad_y[rows], ggx=problem.ggx[rows]
                ).on(xp)
            )
            for rows in (slice(None, cut), slice(cut, None))
        ]
        for expected, *actual in zip(whole, *parts, strict=True):
            assert_same_bits(np.concatenate(actual), expected)


def by_sample(problem: Problem) -> list[Array]:
    """The results of `forward` and `backward` that have one row for each sample."""
    x, tables, grad_y, *_ = problem
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables, need_tables=False)
    return [host(lmkan_cupy.forward(x, tables)), host(grad_x)]


@pytest.mark.parametrize("batch", [1023, 2049, 4095, 4097, 9000])
def test_large_batches_are_their_parts(xp: Any, rng: np.random.Generator, batch: int) -> None:
    """As `test_whatever_the_batch`, with more samples than the engines take in one block."""
    problem = make_problem(rng, Sizes(batch, 4, 5, 6))
    whole = by_sample(problem.on(xp))
    rows = slice(batch // 2 - 3, None)
    part = problem._replace(x=problem.x[rows], grad_y=problem.grad_y[rows])
    for expected, actual in zip(whole, by_sample(part.on(xp)), strict=True):
        assert_same_bits(actual, expected[rows])


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_arguments_may_be_read_only(rng: np.random.Generator, dtypes: Dtypes) -> None:
    """As arrays of memory maps and other frameworks are. CuPy has no read-only arrays."""
    problem = make_problem(rng, SMALL, dtypes)
    expected = all_results(problem)
    for array in problem:
        array.flags.writeable = False
    for result, same in zip(all_results(problem), expected, strict=True):
        assert_same_bits(result, same)


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_arguments_are_left_alone(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    problem = make_problem(rng, SMALL, dtypes)
    given_arrays = problem.on(xp)
    all_results(given_arrays)
    for array, untouched in zip(given_arrays, problem, strict=True):
        assert_same_bits(array, untouched)
