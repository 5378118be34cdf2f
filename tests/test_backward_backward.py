"""`backward_backward` against the oracle: values, one cotangent alone, memory layouts, axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, FLOAT64, LAYOUTS, SIZES, SMALL, Dtypes, Problem, Sizes, make_problem
from tolerances import host

import lmkan_cupy


def check_all(given: Problem, same_as: Problem | None = None) -> None:
    """Compare all three results with what is expected for `same_as`, by default `given` itself."""
    x, tables, grad_y, ggx, ggt = same_as or given
    results = lmkan_cupy.backward_backward(given.ggx, given.ggt, grad_y, x, tables)
    all_expected = tolerances.backward_backward(ggx, ggt, grad_y, x, tables)
    for result, expected in zip(results, all_expected, strict=True):
        assert isinstance(result, type(x))
        assert result.dtype == x.dtype
        expected.check(result)


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    check_all(make_problem(rng, sizes, dtypes).on(xp))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("without", ["ggx", "ggt"])
def test_missing_cotangent_is_zero(
    xp: Any, rng: np.random.Generator, without: str, dtypes: Dtypes
) -> None:
    problem = make_problem(rng, SMALL, dtypes).on(xp)
    zeros = xp.zeros_like(getattr(problem, without))
    check_all(problem._replace(**{without: None}), problem._replace(**{without: zeros}))


@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_layouts(xp: Any, rng: np.random.Generator, layout: str, dtypes: Dtypes) -> None:
    check_all(make_problem(rng, SMALL, dtypes).on(xp, layout))


@pytest.mark.parametrize("leading", [(), (6,), (2, 3), (1, 2, 3)], ids=str)
def test_leading_axes(xp: Any, rng: np.random.Generator, leading: tuple[int, ...]) -> None:
    batch = int(np.prod(leading))
    x, tables, grad_y, ggx, ggt = make_problem(rng, SMALL._replace(batch=batch), FLOAT64).on(xp)

    def shaped(samples: Any) -> Any:
        return samples.reshape(*leading, samples.shape[1])

    results = lmkan_cupy.backward_backward(shaped(ggx), ggt, shaped(grad_y), shaped(x), tables)
    flat = lmkan_cupy.backward_backward(ggx, ggt, grad_y, x, tables)
    shapes = [(*leading, grad_y.shape[1]), (*leading, x.shape[1]), tables.shape]
    assert [result.shape for result in results] == shapes
    for result, expected in zip(results, flat, strict=True):
        np.testing.assert_array_equal(host(result).ravel(), host(expected).ravel())


def test_arguments_are_left_alone(xp: Any, rng: np.random.Generator) -> None:
    problem = make_problem(rng)
    given = problem.on(xp)
    lmkan_cupy.backward_backward(given.ggx, given.ggt, given.grad_y, given.x, given.tables)
    for array, untouched in zip(given, problem, strict=True):
        np.testing.assert_array_equal(host(array), untouched)
