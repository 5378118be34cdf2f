"""The CUDA engine on NumPy arrays: its own plans and arguments, its kernels in the emulator."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import emulator
import numpy as np
import pytest
import tolerances
from problems import Dtypes, Problem, Sizes, make_problem

from lmkan_cupy import cuda_engine
from lmkan_cupy.cuda_engine import forward_pass, kernel_cache, kernel_source, launch, plan
from lmkan_cupy.cuda_engine.plan import Device, Launch

DEVICE = Device(capability=90, multiprocessors=1, shared_bytes=227 * 1024)
"""It has a single multiprocessor, so that small problems fill it."""


class Setting(NamedTuple):
    """What a launch depends on besides its plan.

    read : callable
        Returns the text of a file of `cuda/`.
    order, seed : str, int
        Of threads and blocks.
    mutant : int
        Which of the mutants in these texts is in force; see `emulator.mutate`.
    """

    read: Callable[[str], str] = kernel_source.read
    order: str = "ascending"
    seed: int = 0
    arch: int = 900
    mutant: int = emulator.NO_MUTANT


setting = Setting()


@contextmanager
def using(**changes: Any) -> Iterator[None]:
    """Launch in another setting."""
    global setting
    before = setting
    setting = before._replace(**changes)
    try:
        yield
    finally:
        setting = before


@cache
def module(text: str, arch: int) -> emulator.Module:
    return emulator.compile(text, re.findall(r"__global__[^;{]*?(\w+)\(const", text), arch=arch)


def forget_plans() -> None:
    """Call this after a constant of a plan was changed."""
    launch.forget()


def limit_blocks(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Let a grid have at most so many blocks."""
    for module in (plan, forward_pass):
        monkeypatch.setattr(module, "MOST_BLOCKS", most)
    forget_plans()


def install(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """Run the engine's kernels here instead of on a GPU, in the usual setting with changes."""
    monkeypatch.setattr(sys.modules[__name__], "setting", Setting(**changes))
    forget_plans()
    monkeypatch.setattr(kernel_cache, "kernel", _kernel)
    monkeypatch.setattr(kernel_cache, "long_longs", lambda numbers: tuple(map(np.int64, numbers)))
    monkeypatch.setattr(kernel_cache, "device", lambda: DEVICE)


def _kernel(launch: Launch) -> Callable[..., None]:
    def call(grid: Any, block: Any, arguments: Any, shared_bytes: int) -> None:
        # The engine keeps this function; the setting may change meanwhile.
        read, order, seed, arch, mutant = setting
        module(kernel_source.text(launch.source, read), arch).launch(
            launch.kernel,
            grid,
            block,
            tuple(map(_as_given, arguments)),
            shared_bytes,
            order=order,
            seed=seed,
            mutant=mutant,
        )

    return call


def _as_given(argument: Any) -> Any:
    """Return what the emulator takes for an argument: a kernel only sees addresses."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous, f"a kernel would ignore strides {argument.strides}"
        if argument.dtype.kind == "V":  # bfloat16, which NumPy does not have
            return argument.view(np.uint16)
    return argument


ROW = Sizes(70, 5, 33, 8)
"""What most tests take, so that they share its kernels."""

SMALL_CHUNK_SIZES = [
    Sizes(1, 1, 1, 3),
    Sizes(3, 67, 32, 8),
    ROW,
    Sizes(50, 4, 100, 8),
    Sizes(40, 3, 260, 4),
    Sizes(65, 3, 2, 300),
]
"""Every number of outputs per lane and per vector, one and several tiles, odd numbers of inputs,
more pairs than a warp has lanes, one and two digits of the sort, both widths of its keys; batches
that are no multiple of the chunk of 32 samples."""

BFLOAT16_TABLES = Dtypes("float32", "bfloat16")


def problem_with(
    rng: np.random.Generator, sizes: Sizes, dtypes: Dtypes, dimension: int = 2
) -> Problem:
    """As `make_problem`, but also with bfloat16, which NumPy does not have."""
    if dtypes != BFLOAT16_TABLES:
        return make_problem(rng, sizes, dtypes, dimension=dimension)
    problem = make_problem(rng, sizes, dimension=dimension)
    bfloat16 = pytest.importorskip("ml_dtypes").bfloat16
    return problem._replace(tables=problem.tables.astype(bfloat16))


def forward(problem: Problem) -> Any:
    """The forward without the checks of the public function, which refuses bfloat16 from NumPy."""
    y = np.full_like(problem.grad_y, np.nan)
    cuda_engine.forward(problem.x, problem.tables, y)
    return y


def double_backward(problem: Problem) -> tuple[Any, ...]:
    """The double backward, likewise."""
    x, tables, grad_y, ggx, ggt = problem
    results = tuple(np.full_like(each, np.nan) for each in (grad_y, x, ggt))
    cuda_engine.backward_backward(ggx, ggt, grad_y, x, tables, *results)
    return results


def cotangents(problem: Problem) -> tuple[Any, ...]:
    return problem.ggx, problem.ggt, problem.grad_y, problem.x, problem.tables


def expected_twice(problem: Problem) -> Any:
    return tolerances.backward_backward(*cotangents(problem))


def check(results: tuple[Any, ...], all_expected: Any) -> None:
    for result, expected in zip(results, all_expected, strict=True):
        expected.check(result)
