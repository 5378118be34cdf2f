"""Fixtures of the tests of kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import emulated
import emulator
import numpy as np
import pytest
from problems import FLOAT32

from lmkan_cupy import cuda_engine, functional
from lmkan_cupy.cuda_engine import backward_pass


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests that come from `core/` to the long run if they need kernels of their own."""
    for item in items:
        here = isinstance(item, pytest.Function) and item.path.parent == Path(__file__).parent
        if here and "core" in item.function.__module__:
            given = item.callspec.params
            if given["dtypes"] != FLOAT32 or given.get("num_grids", 8) != 8:
                item.add_marker("long")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make chunks and stretches so short that a small batch has several of each."""
    monkeypatch.setattr(backward_pass, "CHUNKS", {})
    monkeypatch.setattr(backward_pass, "MOST_CHUNK", 32)
    monkeypatch.setattr(backward_pass, "STRETCH", 3)
    monkeypatch.setattr(backward_pass, "SHORTEST_STRETCH", 2)
    emulated.forget_plans()


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the CUDA engine instead of the CPU engine, with its kernels in the emulator."""
    monkeypatch.setattr(functional, "engine_for", lambda xp: cuda_engine)
    emulated.install(monkeypatch)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, small_chunks: None) -> Callable[..., tuple[Any, ...]]:
    """A caller that runs a function in every order and returns its results, which must agree."""

    def in_every_order(function: Callable[..., Any], *arguments: Any, **more: Any) -> Any:
        all_results = []
        for order in emulator.ORDERS:
            emulated.install(monkeypatch, order=order, seed=7)
            results = function(*arguments, **more)
            all_results.append(results if isinstance(results, tuple) else (results,))
        for results in all_results[1:]:
            for result, first in zip(results, all_results[0], strict=True):
                np.testing.assert_array_equal(result, first)
        return all_results[0]

    return in_every_order
