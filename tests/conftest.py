"""Fixtures and settings of all tests."""

from __future__ import annotations

import gc
import os
import zlib
from collections import Counter
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from problems import nan_filled

from lmkan_cupy import allocation, installation

# The same examples in every run, so that a failure can be repeated; compiling takes longer than any
# deadline.
settings.register_profile("long", derandomize=True, deadline=None)
settings.register_profile("short", settings.get_profile("long"), max_examples=25)

LEFT_OUT = pytest.StashKey[Counter[str]]()
"""How many tests of each file run only with --long."""


@cache
def cuda_obstacle() -> str | None:
    return installation.cuda_obstacle()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` as well")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run whole folders in a process per core; single files and tests in this process.

    Neighbours stay in one process as long as there is enough to do: they share fixtures and
    compiled kernels.
    """
    if hasattr(config, "workerinput") or config.option.usepdb:
        return
    undecided = getattr(config.option, "numprocesses", 0) is None
    if undecided and all(Path(argument).is_dir() for argument in config.args):
        config.option.numprocesses, config.option.dist = "auto", "worksteal"


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = Counter()
    settings.load_profile("long" if config.getoption("--long") else "short")
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        # Before torch is imported, here and in the processes that tests start: as many threads as
        # each process has cores for. Tests of threads ask for their own number.
        threads = max(1, (os.cpu_count() or 1) // int(workers))
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    # Kernels of the GPU first. A second process begins in the middle and compiles those of the CPU,
    # which the first then finds on the disk.
    items.sort(key=lambda item: item.path.parent.name != "cuda")
    if config.getoption("--long"):
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if not item.get_closest_marker("long")]
    config.stash[LEFT_OUT].update(
        item.path.relative_to(config.rootpath).as_posix() for item in left_out
    )


def pytest_collection_finish() -> None:
    """What is imported stays, so the garbage collector need not look at it again and again."""
    gc.freeze()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Every worker collects all tests; what it leaves out, the process that prints has to know."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = dict(session.config.stash[LEFT_OUT])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = Counter(getattr(node, "workeroutput", {}).get("left_out"))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if left_out := config.stash[LEFT_OUT]:
        terminalreporter.section(f"left out: {left_out.total()} long tests; --long runs them, too")
        for file, count in sorted(left_out.items()):
            terminalreporter.line(f"{count:5} {file}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (obstacle := cuda_obstacle()):
        pytest.skip(obstacle)


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    """The array library under test."""
    return import_module(request.param)


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the core allocates is full of NaN, so that an element left unwritten shows."""
    monkeypatch.setattr(allocation, "_from_library", nan_filled)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: independent of order and selection."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
