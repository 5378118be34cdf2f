"""The oracle itself: against literals worked out by hand, SciPy and finite differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import oracle
import pytest
from oracle import Array
from problems import FLOAT64, Problem, Sizes, make_problem
from scipy.interpolate import RegularGridInterpolator

SIZES = Sizes(batch=7, in_features=5, out_features=3, num_grids=6)
KNOTS = oracle.sigma_grid(SIZES.num_grids)
STEP = 2.0**-11  # shorter than the distance of every input from the knots
ROUNDING = 1e-9  # float64 sums of some hundred numbers near 1, divided by STEP


@pytest.fixture
def problem(rng: np.random.Generator) -> Problem:
    return make_problem(rng, SIZES, FLOAT64)


def test_grid_by_hand() -> None:
    half = np.log(2)
    np.testing.assert_allclose(oracle.sigma_grid(4), [-2 * half, -half, 0, half, 2 * half])
    third = np.log(1.5)
    np.testing.assert_allclose(oracle.sigma_grid(3), [-3 * third, -third, third, 3 * third])


def test_sigma_maps_inner_knots_to_equal_steps() -> None:
    np.testing.assert_allclose(oracle.sigma(KNOTS[1:-1]), np.arange(1, 6) / 6)


KNOTS_BY_HAND = np.array([-4.0, -2.0, 0.0, 1.0, 3.0])


@pytest.mark.parametrize(
    ("point", "value", "slope"),
    [
        (-3.0, [0.5, 0.5, 0, 0, 0], [-0.5, 0.5, 0, 0, 0]),
        (-2.0, [0, 1, 0, 0, 0], [0, -0.5, 0.5, 0, 0]),
        (0.25, [0, 0, 0.75, 0.25, 0], [0, 0, -1, 1, 0]),
        (-6.0, [2, -1, 0, 0, 0], [-0.5, 0.5, 0, 0, 0]),
        (7.0, [0, 0, 0, -2, 3], [0, 0, 0, -0.5, 0.5]),
    ],
    ids=["inside", "on-a-knot", "narrow-cell", "left-of-grid", "right-of-grid"],
)
def test_hats_by_hand(point: float, value: list[float], slope: list[float]) -> None:
    np.testing.assert_array_equal(oracle.hats(np.array(point), KNOTS_BY_HAND), [value, slope])


def test_one_cell_by_hand() -> None:
    """x = (0.25, 2): weights (3/4, 1/4) and (1/2, 1/2) of the four values 1, 2, 5, 8."""
    tables = np.zeros((1, 5, 5, 1))
    tables[0, 2:4, 3:5, 0] = [[1, 2], [5, 8]]
    at = oracle.basis(np.array([[0.25, 2.0]]), KNOTS_BY_HAND)
    one = np.ones((1, 1))

    np.testing.assert_allclose(oracle.forward(at, tables), [[2.75]])
    grad_x, grad_tables = oracle.backward(2 * one, at, tables)
    np.testing.assert_allclose(grad_x, [[2 * 5.0, 2 * 0.75]])
    np.testing.assert_allclose(grad_tables[0, 2:4, 3:5, 0], [[0.75, 0.75], [0.25, 0.25]])
    assert grad_tables.sum() == 2

    ggx = np.array([[1.0, 10.0]])
    grad_grad_y, grad_x, grad_tables = oracle.backward_backward(ggx, 0 * tables, one, at, tables)
    np.testing.assert_allclose(grad_grad_y, [[5 + 10 * 0.75]])
    np.testing.assert_allclose(grad_x, [[10 * 1.0, 1 * 1.0]])  # f_12 = (8 - 5 - 2 + 1) / (1 * 2)
    np.testing.assert_allclose(
        grad_tables[0, 2:4, 3:5, 0], [[-0.5 - 3.75, -0.5 + 3.75], [0.5 - 1.25, 0.5 + 1.25]]
    )


def test_odd_feature_is_paired_with_zero(problem: Problem) -> None:
    padded = np.hstack([problem.x, np.zeros((SIZES.batch, 1))])
    np.testing.assert_array_equal(
        oracle.forward(oracle.basis(problem.x, KNOTS), problem.tables),
        oracle.forward(oracle.basis(padded, KNOTS), problem.tables),
    )


def test_forward_matches_scipy_inside_the_grid(problem: Problem) -> None:
    x = np.clip(problem.x, KNOTS[0], KNOTS[-1])
    padded = np.hstack([x, np.zeros((SIZES.batch, 1))])
    expected = sum(
        RegularGridInterpolator((KNOTS, KNOTS), table)(padded[:, 2 * pair : 2 * pair + 2])
        for pair, table in enumerate(problem.tables)
    )
    actual = oracle.forward(oracle.basis(x, KNOTS), problem.tables)
    np.testing.assert_allclose(actual, expected, rtol=1e-13, atol=1e-13)


def backward_scalar(problem: Problem) -> float:
    """<grad_y, y>: its derivatives are what `backward` returns."""
    y = oracle.forward(oracle.basis(problem.x, KNOTS), problem.tables)
    return float(np.sum(problem.grad_y * y))


def backward_backward_scalar(problem: Problem) -> float:
    """<ggx, grad_x> + <ggt, grad_tables>: its derivatives are what `backward_backward` returns."""
    at = oracle.basis(problem.x, KNOTS)
    grad_x, grad_tables = oracle.backward(problem.grad_y, at, problem.tables)
    return float(np.sum(problem.ggx * grad_x) + np.sum(problem.ggt * grad_tables))


def numerical_gradient(
    scalar: Callable[[Problem], float], problem: Problem, argument: str
) -> Array:
    """Central differences for every element of one argument.

    All scalars are linear in each single element inside a cell, so that these are exact but for
    rounding, with any step that stays in the cell.
    """
    gradient = np.empty(getattr(problem, argument).shape)
    for index in np.ndindex(*gradient.shape):
        shifted = []
        for step in (STEP, -STEP):
            array = getattr(problem, argument).copy()
            array[index] += step
            shifted.append(scalar(problem._replace(**{argument: array})))
        gradient[index] = (shifted[0] - shifted[1]) / (2 * STEP)
    return gradient


def test_backward_matches_finite_differences(problem: Problem) -> None:
    at = oracle.basis(problem.x, KNOTS)
    grads = oracle.backward(problem.grad_y, at, problem.tables)
    for argument, grad in zip(("x", "tables"), grads, strict=True):
        numerical = numerical_gradient(backward_scalar, problem, argument)
        np.testing.assert_allclose(grad, numerical, atol=ROUNDING, rtol=0, err_msg=argument)


def test_backward_backward_matches_finite_differences(problem: Problem) -> None:
    at = oracle.basis(problem.x, KNOTS)
    grads = oracle.backward_backward(problem.ggx, problem.ggt, problem.grad_y, at, problem.tables)
    for argument, grad in zip(("grad_y", "x", "tables"), grads, strict=True):
        numerical = numerical_gradient(backward_backward_scalar, problem, argument)
        np.testing.assert_allclose(grad, numerical, atol=ROUNDING, rtol=0, err_msg=argument)


def test_penalty_of_quadratics_is_exact() -> None:
    """Divided differences are exact for a x^2 + b x y + c y^2: R = (2a)^2 + 2 b^2 + (2c)^2."""
    first, second = np.meshgrid(KNOTS, KNOTS, indexing="ij")
    a, b, c = 0.5, -2.0, 1.5
    tables = (a * first**2 + b * first * second + c * second**2 + 3 * first - second + 7)[
        None, ..., None
    ]
    roughness = oracle.hessian_penalty(oracle.stencils(KNOTS), tables)
    np.testing.assert_allclose(roughness, (2 * a) ** 2 + 2 * b**2 + (2 * c) ** 2)


def test_penalty_of_a_spike_by_hand() -> None:
    """Averaged over the 9 inner knots of a grid of 4, summed over pairs and outputs."""
    tables = np.zeros((1, 5, 5, 1))
    tables[0, 2, 2, 0] = 1
    half = np.log(2)
    # The spike sits in the middle of the 3 x 3 inner knots: three of them see it along each axis
    # (1, -2, 1 over half^2), the four corners see it in f_xy.
    second = (1 + 4 + 1) / half**4
    mixed = 4 * (1 / (4 * half**2)) ** 2
    expected = (2 * second + 2 * mixed) / 9
    at = oracle.stencils(oracle.sigma_grid(4))
    np.testing.assert_allclose(oracle.hessian_penalty(at, tables), expected)
    six = np.repeat(np.repeat(tables, 2, axis=0), 3, axis=3)
    np.testing.assert_allclose(oracle.hessian_penalty(at, six), 6 * expected)


def test_penalty_gradient_matches_finite_differences(problem: Problem) -> None:
    """R is quadratic, and central differences of a quadratic are exact."""
    at = oracle.stencils(KNOTS)
    numerical = numerical_gradient(
        lambda p: float(oracle.hessian_penalty(at, p.tables)), problem, "tables"
    )
    grad = oracle.hessian_penalty_grad(at, problem.tables)
    np.testing.assert_allclose(grad, numerical, atol=ROUNDING, rtol=ROUNDING)
