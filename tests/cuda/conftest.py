"""Fixtures of the tests of kernels."""

from __future__ import annotations

import emulated
import pytest

from lmkan_cupy.cuda_engine import plan as launch_plan


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks and stretches short enough for several of each in a small batch."""
    monkeypatch.setattr(launch_plan, "CHUNKS", {})
    monkeypatch.setattr(launch_plan, "MOST_CHUNK", 32)
    monkeypatch.setattr(launch_plan, "STRETCH", 3)
    monkeypatch.setattr(launch_plan, "SHORTEST_STRETCH", 2)
    emulated.forget_plans()
