"""Fixtures and settings of all tests."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from problems import nan_filled

from lmkan_cupy import allocation, installation

# The same examples in every run, so that a failure can be repeated; compiling takes longer than any
# deadline.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@cache
def cuda_obstacle() -> str | None:
    return installation.cuda_obstacle()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="run the tests marked `long` as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--long"):
        return
    left = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and (obstacle := cuda_obstacle()):
        pytest.skip(obstacle)


@pytest.fixture(scope="session", params=["numpy", pytest.param("cupy", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest) -> Any:
    """The array library under test."""
    return import_module(request.param)


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """Whatever the core allocates is full of NaN, so that an element left unwritten shows."""
    with allocation.allocator(nan_filled):
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: independent of order and selection."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
