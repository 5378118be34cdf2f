"""Fixtures and settings of all tests."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from problems import nan_filled

from lmkan_cupy import allocation

# The same examples in every run, so that a failure can be repeated; compiling takes longer than any
# deadline.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(scope="session", params=["numpy"])
def xp(request: pytest.FixtureRequest) -> Any:
    """The array library under test."""
    return pytest.importorskip(request.param)


@pytest.fixture(autouse=True)
def nan_filled_memory() -> Iterator[None]:
    """Whatever the core allocates is full of NaN, so that an element left unwritten shows."""
    with allocation.allocator(nan_filled):
        yield


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """A generator seeded by the test's own name: independent of order and selection."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
