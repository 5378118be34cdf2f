"""The kernels of the CUDA engine in the emulator, against the oracle.

Here are special inputs and properties of results; `test_crossing` has all plans. Each call runs in
three orders of threads and blocks and must give the same bits in all of them. The emulator reports
every access out of bounds, race and read of memory that was not written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import emulated
import numpy as np
import pytest
import tolerances

# The tests of special values, collected here once more: they run on the engine that is in place.
from core.test_special_values import (  # noqa: F401
    TestOnKnots,
    test_zero_belongs_to_the_cell_on_its_right,
)
from emulated import ROW, check, cotangents, expected_twice
from problems import DTYPES, Dtypes, Problem, Sizes, first_short, make_problem

import lmkan_cupy
from lmkan_cupy.cuda_engine import backward_pass, kernel_cache
from lmkan_cupy.cuda_engine.plan import Launch

pytest_plugins = ["emulator.fixtures"]
pytestmark = pytest.mark.usefixtures("emulator_tools", "engine")


@pytest.fixture(scope="session")
def xp() -> Any:
    """The tests of special values run here with the arrays that the emulator takes."""
    return np


def check_layer(run: Callable[..., Any], problem: Problem) -> None:
    x, tables, grad_y, *_ = problem
    check(run(lmkan_cupy.forward, x, tables), [tolerances.forward(x, tables)])
    check(run(lmkan_cupy.backward, grad_y, x, tables), tolerances.backward(grad_y, x, tables))
    check(run(lmkan_cupy.backward_backward, *cotangents(problem)), expected_twice(problem))


@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
@pytest.mark.parametrize(
    "sizes",
    [Sizes(0, 1, 1, 3), Sizes(0, 5, 33, 8), Sizes(0, 2, 68, 8), Sizes(0, 2, 3, 50)],
    ids=str,
)
def test_penalty(run: Any, rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes) -> None:
    """With vectors of every length, one and two tiles of outputs, one and two tiles of columns."""
    tables = make_problem(rng, sizes, dtypes).tables
    results = run(lmkan_cupy.hessian_penalty_and_grad, tables)
    check(results, tolerances.hessian_penalty(tables, dtypes.x))
    assert run(lmkan_cupy.hessian_penalty, tables) == results[:1]


def test_penalty_in_many_tiles(
    run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmkan_cupy.cuda_engine.penalty.MOST_COLUMNS", 6)
    tables = make_problem(rng, Sizes(0, 3, 8, 7)).tables
    penalty, grad = run(lmkan_cupy.hessian_penalty_and_grad, tables, scale=0.5)
    check([penalty, 2 * grad], tolerances.hessian_penalty(tables, "float32"))


def test_gradient_of_penalty_is_added(
    run: Callable[..., tuple[Any, ...]], rng: np.random.Generator
) -> None:
    tables = make_problem(rng, Sizes(0, 3, 8, 7)).tables

    def added_to_ones() -> tuple[Any, ...]:
        ones = np.ones_like(tables)
        return lmkan_cupy.hessian_penalty_and_grad(tables, 0.5, add_to=ones)

    _, grad = run(lmkan_cupy.hessian_penalty_and_grad, tables, 0.5)
    _, total = run(added_to_ones)
    np.testing.assert_array_equal(total, 1 + grad)


CONCENTRATED: dict[str, Callable[[Any], Any]] = {
    "one cell": lambda x: np.full_like(x, 0.1),
    "one cell of an odd row": lambda x: np.full_like(x, 100),
    "one hot cell": lambda x: np.where(np.arange(len(x))[:, None] % 8, x.dtype.type(0.1), x),
    "constant column": lambda x: np.where(np.arange(x.shape[1]) == 1, x.dtype.type(0.1), x),
    "after a ReLU": lambda x: np.maximum(x, 0),
}
"""Inputs where many samples share cells. If all lie in one cell, every stretch begins and ends in
it, and the other half has no samples."""


@pytest.mark.long
@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
@pytest.mark.parametrize("kind", CONCENTRATED)
def test_concentrated_inputs(run: Any, rng: np.random.Generator, dtypes: Dtypes, kind: str) -> None:
    problem = make_problem(rng, ROW, dtypes)
    check_layer(run, problem._replace(x=CONCENTRATED[kind](problem.x)))


@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
@pytest.mark.parametrize("size", first_short([90, 1e15]))
def test_far_outside(run: Any, rng: np.random.Generator, dtypes: Dtypes, size: float) -> None:
    problem = make_problem(rng, ROW, dtypes)
    check_layer(run, problem._replace(x=problem.x * np.asarray(size, dtypes.x)))


@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
@pytest.mark.parametrize("needed", ["x", "tables"])
def test_one_gradient_alone(
    run: Any, rng: np.random.Generator, needed: str, dtypes: Dtypes
) -> None:
    x, tables, grad_y, *_ = make_problem(rng, ROW, dtypes)
    options = {"need_x": needed == "x", "need_tables": needed == "tables"}
    both = lmkan_cupy.backward(grad_y, x, tables)

    def call() -> Any:
        results = lmkan_cupy.backward(grad_y, x, tables, **options)
        assert results[needed == "x"] is None
        return results[needed == "tables"]

    np.testing.assert_array_equal(run(call)[0], both[needed == "tables"])


@pytest.mark.long
def test_arrays_that_begin_anywhere(run: Any, rng: np.random.Generator) -> None:
    """Arrays need not begin at multiples of the 16 bytes that a lane reads at once."""
    problem = make_problem(rng, Sizes(40, 4, 64, 4))
    shifted = [np.empty(each.size + 1, each.dtype)[1:].reshape(each.shape) for each in problem]
    for target, array in zip(shifted, problem, strict=True):
        target[...] = array
    check_layer(run, Problem(*shifted))


@pytest.mark.long
def test_chunk_fits_into_shared_memory(
    run: Any, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sort halves it, here from 256 samples to 64: 64 digits of 36 bytes and 4 per sample."""
    monkeypatch.setattr(backward_pass, "MOST_CHUNK", 256)
    device = replace(emulated.DEVICE, shared_bytes=64 * 36 + 64 * 4 + 100)
    monkeypatch.setattr(emulated, "DEVICE", device)
    x, tables, grad_y, *_ = make_problem(rng, ROW._replace(batch=150))
    check(run(lmkan_cupy.backward, grad_y, x, tables), tolerances.backward(grad_y, x, tables))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The files of all kernels that are launched from here on."""
    files: set[str] = set()
    install = emulated.install

    def recording(*arguments: Any, **options: Any) -> None:
        install(*arguments, **options)
        kernel = kernel_cache.kernel

        def recorded(launch: Launch) -> Any:
            files.add(launch.source.file)
            return kernel(launch)

        monkeypatch.setattr(kernel_cache, "kernel", recorded)

    monkeypatch.setattr(emulated, "install", recording)
    return files


@pytest.mark.parametrize("dtypes", first_short(DTYPES), ids=str)
def test_along_a_direction(
    run: Any, launched: set[str], rng: np.random.Generator, dtypes: Dtypes
) -> None:
    """It takes the kernel of the forward, and none of the backward."""
    x, tables, _, tangent_x, tangent_tables = make_problem(rng, ROW, dtypes)
    no_x, no_tables = np.zeros_like(x), np.zeros_like(tangent_tables)
    for given, same_as in (
        ((tangent_x, tangent_tables), (tangent_x, tangent_tables)),
        ((tangent_x, None), (tangent_x, no_tables)),
        ((None, tangent_tables), (no_x, tangent_tables)),
    ):
        dy = run(lmkan_cupy.jvp, *given, x, tables)
        check(dy, [tolerances.jvp(*same_as, x, tables)])
    assert launched == {"forward.cu"}


def test_empty_batch(run: Any, rng: np.random.Generator) -> None:
    x, tables, grad_y, ggx, ggt = make_problem(rng, Sizes(0, 4, 3, 8))
    (y,) = run(lmkan_cupy.forward, x, tables)
    grad_x, grad_tables = run(lmkan_cupy.backward, grad_y, x, tables)
    *empty, twice = run(lmkan_cupy.backward_backward, ggx, ggt, grad_y, x, tables)
    assert y.size == grad_x.size == sum(each.size for each in empty) == 0
    assert not grad_tables.any()
    assert not twice.any()


def test_samples_do_not_depend_on_each_other(small_chunks: None, rng: np.random.Generator) -> None:
    x, tables, grad_y, *_ = make_problem(rng, ROW)
    y = lmkan_cupy.forward(x, tables)
    grad_x, _ = lmkan_cupy.backward(grad_y, x, tables)
    for part in (slice(0, 31), slice(31, 70)):
        np.testing.assert_array_equal(lmkan_cupy.forward(x[part], tables), y[part])
        alone, _ = lmkan_cupy.backward(grad_y[part], x[part], tables, need_tables=False)
        np.testing.assert_array_equal(alone, grad_x[part])
