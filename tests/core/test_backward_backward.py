"""`backward_backward` against the oracle; for layouts and leading axes see test_properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, SIZES, SMALL, Dtypes, Problem, Sizes, first_short, make_problem
from tolerances import check_each

import lmkan_cupy


def check_all(given: Problem, same_as: Problem | None = None) -> None:
    """Compare all three results with those expected for `same_as`, by default for `given`."""
    x, tables, grad_y, ggx, ggt = same_as or given
    results = lmkan_cupy.backward_backward(given.ggx, given.ggt, grad_y, x, tables)
    for result in results:
        assert isinstance(result, type(x))
        assert result.dtype == x.dtype
    check_each(results, tolerances.backward_backward(ggx, ggt, grad_y, x, tables))


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    check_all(make_problem(rng, sizes, dtypes).on(xp))


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("without", ["ggx", "ggt"])
def test_missing_cotangent_is_zero(
    xp: Any, rng: np.random.Generator, without: str, dtypes: Dtypes
) -> None:
    problem = make_problem(rng, SMALL, dtypes).on(xp)
    zeros = xp.zeros_like(getattr(problem, without))
    check_all(problem._replace(**{without: None}), problem._replace(**{without: zeros}))
