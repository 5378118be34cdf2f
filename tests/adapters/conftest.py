"""Fixtures of the adapters' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def deterministic_torch() -> Iterator[None]:
    """Allow only deterministic algorithms; torch then also fills new memory with NaN."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
