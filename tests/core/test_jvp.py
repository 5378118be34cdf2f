"""`jvp` against the oracle; for layouts, leading axes and the adjoint see test_properties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from problems import DTYPES, SIZES, SMALL, Dtypes, Sizes, first_short, make_problem

import lmkan_cupy


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_values(xp: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    x, tables, _, tangent_x, tangent_tables = make_problem(rng, sizes, dtypes).on(xp)
    dy = lmkan_cupy.jvp(tangent_x, tangent_tables, x, tables)
    assert isinstance(dy, type(x))
    assert dy.dtype == x.dtype
    tolerances.jvp(tangent_x, tangent_tables, x, tables).check(dy)


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_missing_tangent_is_zero(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    x, tables, _, tangent_x, tangent_tables = make_problem(rng, SMALL, dtypes).on(xp)
    along_x = tolerances.jvp(tangent_x, xp.zeros_like(tangent_tables), x, tables)
    along_x.check(lmkan_cupy.jvp(tangent_x, None, x, tables))
    along_tables = tolerances.jvp(xp.zeros_like(x), tangent_tables, x, tables)
    along_tables.check(lmkan_cupy.jvp(None, tangent_tables, x, tables))


@pytest.mark.parametrize("dtypes", first_short(DTYPES, 2), ids=str)
def test_double_backward_begins_with_it(xp: Any, rng: np.random.Generator, dtypes: Dtypes) -> None:
    x, tables, grad_y, *direction = make_problem(rng, SMALL, dtypes).on(xp)
    grad_grad_y, *_ = lmkan_cupy.backward_backward(*direction, grad_y, x, tables)
    dy = lmkan_cupy.jvp(*direction, x, tables)
    assert tolerances.host(dy).tobytes() == tolerances.host(grad_grad_y).tobytes()
