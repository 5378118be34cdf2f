"""Functions of one and three variables: everything against the oracle, and against d = 2."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import tolerances
from oracle import Array
from problems import (
    DTYPES,
    FLOAT32,
    SMALL,
    Dtypes,
    Sizes,
    all_results,
    first_short,
    make_problem,
)
from tolerances import check_each

import lmkan_cupy

SIZES = {
    1: [
        Sizes(0, 4, 3, 5),
        Sizes(1, 1, 1, 3),
        Sizes(33, 5, 7, 10),
        Sizes(33, 12, 65, 200),
        Sizes(1000, 7, 33, 8),
        Sizes(9000, 4, 33, 100),
        Sizes(40, 31, 5, 5),
    ],
    3: [
        Sizes(0, 4, 3, 5),
        Sizes(1, 1, 1, 3),
        Sizes(33, 5, 7, 10),
        Sizes(1000, 7, 33, 8),
        Sizes(5000, 4, 33, 4),
        Sizes(40, 31, 5, 3),
    ],
}
"""Groups that are complete, or lack one or two inputs; beyond any block of samples or groups."""

RTOL = 2e-6
"""A few roundings of float32, for results worked out by hand."""

DIMENSIONS = pytest.mark.parametrize("dimension", first_short([1, 3]))
CASES = pytest.mark.parametrize(
    ("dimension", "sizes"),
    [
        pytest.param(
            dimension, sizes, marks=pytest.mark.long if dimension > 1 or sizes.batch > 1000 else []
        )
        for dimension, some in SIZES.items()
        for sizes in some
    ],
    ids=str,
)
OF_DTYPES = pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)


@CASES
@OF_DTYPES
def test_all_functions(
    rng: np.random.Generator, dimension: int, sizes: Sizes, dtypes: Dtypes
) -> None:
    problem = make_problem(rng, sizes, dtypes, dimension=dimension)
    x, tables, grad_y, ggx, ggt = problem
    expected = [
        tolerances.forward(x, tables),
        tolerances.jvp(ggx, ggt, x, tables),
        *tolerances.backward(grad_y, x, tables),
        *tolerances.backward_backward(ggx, ggt, grad_y, x, tables),
        *tolerances.hessian_penalty(tables, dtypes.x),
    ]
    check_each(all_results(problem), expected)


def test_a_cell_of_one_variable_by_hand() -> None:
    """The middle of a cell of width log 2 of a grid of 4, and its second derivatives."""
    tables, width = np.zeros((1, 5, 1), "float32"), np.log(2)
    tables[0, :, 0] = [0, 3, 1, 2, 0]
    x, one = np.array([[-width / 2]], "float32"), np.ones((1, 1), "float32")
    np.testing.assert_allclose(lmkan_cupy.forward(x, tables), [[2]], RTOL)
    grad_x, grad_tables = lmkan_cupy.backward(4 * one, x, tables)
    np.testing.assert_allclose(grad_x, [[4 * (1 - 3) / width]], RTOL)
    np.testing.assert_allclose(grad_tables[0, :, 0], [0, 2, 2, 0, 0], RTOL)
    grad_grad_y, grad_x, grad_tables = lmkan_cupy.backward_backward(one, None, one, x, tables)
    np.testing.assert_allclose(grad_grad_y, [[-2 / width]], RTOL)
    np.testing.assert_array_equal(grad_x, [[0]])
    np.testing.assert_allclose(grad_tables[0, :, 0], np.array([0, -1, 1, 0, 0]) / width, RTOL)
    curvatures = np.array([1 - 3 - 3 + 0, 2 - 1 - 1 + 3, 0 - 2 - 2 + 1]) / width**2
    np.testing.assert_allclose(lmkan_cupy.hessian_penalty(tables), np.mean(curvatures**2), RTOL)


def product_of_three_coordinates() -> tuple[Array, Array]:
    """Their product is its own interpolant, its mixed derivatives are theirs."""
    knots = lmkan_cupy.sigma_grid(4)
    tables = np.einsum("i,j,k->ijk", knots, knots, knots)[None, ..., None]
    return np.array([[0.3, -0.5, 1.1]], "float32"), tables


def test_a_cell_of_three_variables_by_hand() -> None:
    x, tables = product_of_three_coordinates()
    np.testing.assert_allclose(lmkan_cupy.forward(x, tables), [[0.3 * -0.5 * 1.1]], RTOL)


@pytest.mark.long
def test_derivatives_of_a_cell_of_three_variables_by_hand() -> None:
    x, tables = product_of_three_coordinates()
    one = np.ones((1, 1), "float32")
    grad_x, _ = lmkan_cupy.backward(one, x, tables)
    np.testing.assert_allclose(grad_x, [[-0.5 * 1.1, 0.3 * 1.1, 0.3 * -0.5]], RTOL)
    ggx = np.array([[1.0, 10.0, 100.0]], "float32")
    _, grad_x, _ = lmkan_cupy.backward_backward(ggx, None, one, x, tables)
    mixed = [10 * 1.1 + 100 * -0.5, 1 * 1.1 + 100 * 0.3, 1 * -0.5 + 10 * 0.3]
    np.testing.assert_allclose(grad_x, [mixed], RTOL)
    # f_xx = 0, f_xy = z: the mean of its square over the inner knots -w, 0, w is 2 w^2 / 3.
    penalty = lmkan_cupy.hessian_penalty(tables)
    np.testing.assert_allclose(penalty, 3 * 2 * 2 * np.log(2) ** 2 / 3, RTOL)


@pytest.mark.parametrize(("dimension", "num_grids"), [(2, 8), (2, 50), (3, 8)])
def test_sums_of_functions_of_one_variable(
    rng: np.random.Generator, dimension: int, num_grids: int
) -> None:
    """A table of d variables holds the sum of d tables of one."""
    x, tables, *_ = make_problem(rng, Sizes(50, 6, 4, num_grids), dimension=1)
    groups = tables.reshape(-1, dimension, num_grids + 1, 4)
    shape = [1] * dimension
    summed = sum(
        groups[:, axis].reshape(-1, *shape[:axis], num_grids + 1, *shape[axis + 1 :], 4)
        for axis in range(dimension)
    )
    y = lmkan_cupy.forward(x, np.ascontiguousarray(summed))
    np.testing.assert_allclose(lmkan_cupy.forward(x, tables), y, rtol=0, atol=2e-5)


class TestTables:
    @DIMENSIONS
    @pytest.mark.parametrize("has_bias", [False, True])
    @pytest.mark.parametrize("in_features", [4, 5, 6])
    def test_fold(
        self, rng: np.random.Generator, dimension: int, has_bias: bool, in_features: int
    ) -> None:
        sizes = Sizes(0, in_features, 4, 6)
        tables = make_problem(rng, sizes, dimension=dimension).tables
        weight = rng.normal(size=(4, in_features)).astype("float32")
        bias = has_bias * rng.normal(size=4).astype("float32")
        for fold, activation in (
            (lmkan_cupy.fold_linear, lambda knots: knots),
            (lmkan_cupy.fold_relu, lambda knots: np.maximum(knots, 0)),
        ):
            folded = fold(tables, weight, bias if has_bias else None)
            tolerances.fold(tables, weight, bias, activation, "float32").check(folded)

    @pytest.mark.parametrize(("dimension", "in_features"), [(1, 3), (1, 5), (3, 9), (3, 13)])
    def test_a_weight_of_another_width_is_refused(self, dimension: int, in_features: int) -> None:
        tables = lmkan_cupy.init_tables(4 if dimension == 1 else 12, 2, 4, dimension=dimension)
        with pytest.raises(ValueError, match=r"weight must have shape \[2, "):
            lmkan_cupy.fold_linear(tables, np.zeros((2, in_features), "float32"))

    @DIMENSIONS
    @pytest.mark.parametrize(("old", "new"), [(3, 9), (5, 7), (10, 4)])
    def test_refine(self, rng: np.random.Generator, dimension: int, old: int, new: int) -> None:
        tables = make_problem(rng, Sizes(0, 5, 4, old), dimension=dimension).tables
        tolerances.refine(tables, new, "float32").check(lmkan_cupy.refine(tables, new))

    @DIMENSIONS
    def test_evaluate(self, rng: np.random.Generator, dimension: int) -> None:
        x, tables, *_ = make_problem(rng, Sizes(100, 6, 4, 5), dimension=dimension)
        points = x[:, :dimension]
        values = lmkan_cupy.evaluate(tables, 1, 3, *points.T)
        tolerances.forward(points, tables[1:2, ..., 3:]).check(values[:, None])

    @DIMENSIONS
    def test_evaluate_wants_as_many_points_as_variables(self, dimension: int) -> None:
        tables = lmkan_cupy.init_tables(6, 2, 4, dimension=dimension)
        with pytest.raises(TypeError, match=f"functions of {dimension} variables, got 2 arguments"):
            lmkan_cupy.evaluate(tables, 0, 0, 0.5, 0.5)

    def test_counts(self) -> None:
        """7 inputs are 7 groups of one, 3 of three."""
        assert lmkan_cupy.init_tables(7, 5, 4, dimension=1).shape == (7, 5, 5)
        assert lmkan_cupy.init_tables(7, 5, 4, dimension=3).shape == (3, 5, 5, 5, 5)
        assert lmkan_cupy.flops(7, 5, dimension=1) == 2 * 7 * 5
        assert lmkan_cupy.flops(7, 5, dimension=3) == 8 * 3 * 5
        assert lmkan_cupy.num_parameters(7, 5, 4, dimension=1) == 7 * 5 * 5
        assert lmkan_cupy.num_parameters(7, 5, 4, dimension=3) == 3 * 5**3 * 5
        assert lmkan_cupy.memory(7, 5, 4, 10, dimension=1)["parameters"] == 4 * 7 * 5 * 5


def layers_of(rng: np.random.Generator, dtypes: Dtypes, num_grids: int) -> list[Array]:
    """Tables of all dimensions, one after the other: 5 to 9, 4 and 2 features."""
    widths = (5, 9, 4, 2)
    return [
        make_problem(rng, Sizes(0, *sizes, num_grids), dtypes, dimension=dimension).tables
        for dimension, sizes in zip((1, 3, 2), pairwise(widths), strict=True)
    ]


@pytest.mark.long
@pytest.mark.parametrize("batch", [1, 200, 3000])
@OF_DTYPES
def test_a_network_of_all_dimensions(rng: np.random.Generator, dtypes: Dtypes, batch: int) -> None:
    """To the bit what its layers give one by one."""
    x, layers = rng.normal(0, 2, (batch, 5)).astype(dtypes.x), layers_of(rng, dtypes, 6)
    features = [x]
    for tables in layers:
        features.append(lmkan_cupy.forward(np.clip(features[-1], -2, 2), tables))
    grad = np.ones_like(features[-1])
    for h, tables in reversed([*zip(features, layers, strict=False)]):
        grad_cut, _ = lmkan_cupy.backward(grad, np.clip(h, -2, 2), tables, need_tables=False)
        grad = np.where(abs(h) > 2, np.zeros_like(h), grad_cut)

    y, grad_x = lmkan_cupy.network_value_and_grad(x, layers, bound=2)
    np.testing.assert_array_equal(lmkan_cupy.network_forward(x, layers, bound=2), features[-1])
    np.testing.assert_array_equal(y, features[-1])
    np.testing.assert_array_equal(grad_x, grad)


@pytest.mark.long
def test_a_network_of_tables_too_large_for_the_caches(rng: np.random.Generator) -> None:
    """They are evaluated cell by cell."""
    layers = [lmkan_cupy.init_tables(16, 520, 260, dimension=1, rng=rng)]
    assert layers[0].nbytes > 2**23
    x = rng.normal(size=(1500, 16)).astype("float32")
    y = lmkan_cupy.network_forward(x, layers)
    np.testing.assert_array_equal(y, lmkan_cupy.forward(x, layers[0]))
    np.testing.assert_array_equal(y[7], lmkan_cupy.forward(x[7], layers[0]))


@pytest.mark.parametrize("dtype", first_short(["float32", "float64"]))
@pytest.mark.parametrize("num_grids", [32, 33, 200, 1000])
@pytest.mark.parametrize("dimension", [1, 2])
def test_intervals_of_fine_grids(dimension: int, num_grids: int, dtype: str) -> None:
    """At knots, beside them and far outside; what is not finite shows in the nodes of its cell."""
    if dimension == 2 and num_grids > 200:
        pytest.skip("its table would take long")
    knots = lmkan_cupy.sigma_grid(num_grids, dtype=dtype)
    inner = knots[1:-1]
    x = np.concatenate(
        [
            *(inner, np.nextafter(inner, -9, dtype=dtype), np.nextafter(inner, 9, dtype=dtype)),
            np.array([-1e30, -50, 50, 1e30, np.nan, np.inf, -np.inf], dtype),
        ]
    )
    interval = np.sum(x[:, None] >= inner, axis=1)  # False for a NaN
    tables = np.zeros((1, *[num_grids + 1] * dimension, 1), dtype)
    samples = np.stack([x, *[np.zeros_like(x)] * (dimension - 1)], axis=1)
    _, grad_tables = lmkan_cupy.backward(np.ones((len(x), 1), dtype), samples, tables)
    touched = ~np.isfinite(grad_tables).reshape(num_grids + 1, -1).all(axis=1)
    expected = np.zeros(num_grids + 1, bool)
    for lost in interval[-3:]:
        expected[lost : lost + 2] = True
    np.testing.assert_array_equal(touched, expected)
    for sample, i in zip(samples[:-3], interval[:-3], strict=True):
        _, grad = lmkan_cupy.backward(np.ones((1, 1), dtype), sample[None], tables)
        nodes = np.flatnonzero(grad.reshape(num_grids + 1, -1).any(axis=1))
        assert {*nodes} <= {i, i + 1}


class TestErrors:
    @pytest.mark.parametrize("dimension", [0, 4])
    def test_no_such_dimension(self, dimension: int) -> None:
        with pytest.raises(ValueError, match=r"dimension must be (1, 2 or 3|at least 1), got"):
            lmkan_cupy.init_tables(4, 3, 8, dimension=dimension)

    @pytest.mark.parametrize(
        ("dimension", "words"), [(1, "3 single inputs"), (2, "3 pairs"), (3, "3 triples")]
    )
    def test_features_that_do_not_fit(self, dimension: int, words: str) -> None:
        tables = np.zeros((3, *[5] * dimension, 2), "float32")
        with pytest.raises(ValueError, match=f"tables has {words}, but x has 10 features"):
            lmkan_cupy.forward(np.zeros((4, 10), "float32"), tables)

    def test_axes_of_knots(self) -> None:
        for shape in [(3, 5), (3, 5, 5, 5, 5, 2), (3, 5, 6, 2), (3, 3, 2)]:
            with pytest.raises(ValueError, match="or one or three axes of knots"):
                lmkan_cupy.hessian_penalty(np.zeros(shape, "float32"))


@pytest.mark.long
@DIMENSIONS
def test_warmup(dimension: int) -> None:
    from lmkan_cupy.cpu_engine import compiling

    lmkan_cupy.warmup(4, 3, 8, dimension=dimension)
    compiled = compiling.compiled.cache_info().misses
    all_results(make_problem(np.random.default_rng(0), SMALL, FLOAT32, dimension=dimension))
    assert compiling.compiled.cache_info().misses == compiled


@pytest.mark.parametrize("value", [np.nan, np.inf])
@DIMENSIONS
def test_what_is_not_finite_stays_in_its_sample(
    rng: np.random.Generator, dimension: int, value: float
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, SMALL, FLOAT32, dimension=dimension)
    good: Any = lmkan_cupy.forward(x, tables)
    x[3, 1] = value
    y = lmkan_cupy.forward(x, tables)
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables)
    others = np.arange(len(x)) != 3
    assert not np.isfinite(y[3]).any()
    np.testing.assert_array_equal(y[others], good[others])
    group = 1 // dimension
    mates = np.arange(x.shape[1]) // dimension == group
    assert np.isnan(grad_x[3, mates]).all()
    assert np.isfinite(grad_x[3, ~mates]).all()
    assert np.isfinite(grad_x[others]).all()
