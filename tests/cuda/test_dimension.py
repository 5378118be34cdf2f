"""Functions of one variable on the CUDA engine, in the emulator, against the oracle.

`test_kernels` has the properties of results and `crossing` the ways through the kernels, both for
functions of two variables. As there, each call runs in three orders of threads and blocks.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tolerances
from emulated import check, cotangents, expected_twice
from problems import DTYPES, Dtypes, Problem, Sizes, first_short, make_problem
from special_values import around_knots

import lmkan_cupy
from lmkan_cupy import cuda_engine, network

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools", "engine")

SMALL = Sizes(33, 5, 7, 10)
SIZES = [
    SMALL,
    Sizes(1, 1, 1, 3),
    Sizes(3, 67, 32, 8),
    Sizes(50, 4, 100, 40),
    Sizes(40, 3, 260, 4),
    Sizes(65, 3, 2, 200),
]
"""Every number of outputs per lane and per vector, one and several tiles, more inputs than a warp
has lanes, fine grids; batches that are no multiple of the chunk of 32 samples."""

OF_DTYPES = pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)


def check_all(run: Any, problem: Problem) -> None:
    x, tables, grad_y, ggx, ggt = problem
    check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])
    check(run(lmkan_cupy.jvp, ggx, ggt, x, tables), [tolerances.jvp(ggx, ggt, x, tables)])
    check(run(lmkan_cupy.backward, grad_y, x, tables), tolerances.backward(grad_y, x, tables))
    check(run(lmkan_cupy.backward_backward, *cotangents(problem)), expected_twice(problem))


@pytest.mark.parametrize(
    ("sizes", "dtypes"), first_short((s, d) for d in DTYPES for s in SIZES), ids=str
)
def test_functions_of_one_variable(
    run: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes
) -> None:
    check_all(run, make_problem(rng, sizes, dtypes, dimension=1))


@OF_DTYPES
@pytest.mark.parametrize(
    "sizes",
    first_short([SMALL, Sizes(0, 1, 1, 3), Sizes(0, 2, 68, 8), Sizes(0, 2, 3, 200)]),
    ids=str,
)
def test_penalty(run: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    """With vectors of every length, one and two tiles of outputs."""
    tables = make_problem(rng, sizes, dtypes, dimension=1).tables
    results = run(lmkan_cupy.hessian_penalty_and_grad, tables)
    check(results, tolerances.hessian_penalty(tables, dtypes.x))
    assert run(lmkan_cupy.hessian_penalty, tables) == results[:1]


@pytest.mark.long
@OF_DTYPES
@pytest.mark.parametrize("size", [90, 1e15])
def test_far_outside(run: Any, rng: np.random.Generator, dtypes: Dtypes, size: float) -> None:
    problem = make_problem(rng, SMALL, dtypes, dimension=1)
    check_all(run, problem._replace(x=problem.x * np.asarray(size, dtypes.x)))


@pytest.mark.long
@OF_DTYPES
@pytest.mark.parametrize("num_grids", [3, 8, 200])
def test_around_knots(run: Any, rng: np.random.Generator, num_grids: int, dtypes: Dtypes) -> None:
    points = around_knots(num_grids, dtypes.x)
    tables = make_problem(rng, Sizes(0, 1, 3, num_grids), dtypes, dimension=1).tables
    x = points.reshape(-1, 1)
    check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])


@pytest.mark.long
def test_one_cell_has_all_samples(run: Any, rng: np.random.Generator) -> None:
    """Every stretch begins and ends in it."""
    problem = make_problem(rng, Sizes(150, 3, 33, 8), dimension=1)
    for value in (0.1, 100):
        check_all(run, problem._replace(x=np.full_like(problem.x, value)))


@pytest.mark.long
def test_empty_batch(run: Any, rng: np.random.Generator) -> None:
    x, tables, grad_y, *_ = make_problem(rng, Sizes(0, 4, 3, 8), dimension=1)
    (y,) = run(lmkan_cupy.forward, x, tables)
    grad_x, grad_tables = run(lmkan_cupy.backward, grad_y, x, tables)
    assert y.size == grad_x.size == 0
    assert not grad_tables.any()


@pytest.mark.long
@OF_DTYPES
def test_networks_go_layer_by_layer(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dtypes: Dtypes
) -> None:
    monkeypatch.setattr(network, "engine_for", lambda xp: cuda_engine)
    layers = [
        make_problem(rng, Sizes(0, *widths, 8), dtypes, dimension=1).tables
        for widths in ((5, 7), (7, 2))
    ]
    x = rng.normal(size=(20, 5)).astype(dtypes.x)
    y = lmkan_cupy.network_forward(x, layers)
    np.testing.assert_array_equal(
        y, lmkan_cupy.forward(lmkan_cupy.forward(x, layers[0]), layers[1])
    )
    grad_y = rng.normal(size=y.shape).astype(dtypes.x)
    again, grad_x = lmkan_cupy.network_value_and_grad(x, layers, grad_y=grad_y)
    np.testing.assert_array_equal(again, y)
    hidden = lmkan_cupy.forward(x, layers[0])
    grad_hidden, _ = lmkan_cupy.backward(grad_y, hidden, layers[1], need_tables=False)
    expected, _ = lmkan_cupy.backward(grad_hidden, x, layers[0], need_tables=False)
    np.testing.assert_array_equal(grad_x, expected)
