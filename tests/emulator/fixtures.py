"""The one fixture of all tests that run kernels here: `pytest_plugins = ["emulator.fixtures"]`."""

from __future__ import annotations

import os

import pytest

from emulator.build import missing_tools


def require_tools() -> None:
    """Skip where kernels cannot be compiled; fail in CI, where they have to be."""
    reason = missing_tools()
    if reason and os.environ.get("CI"):
        pytest.fail(f"the CUDA kernels were not run: {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def emulator_tools() -> None:
    """A C++ compiler, on a machine that the emulator is for."""
    require_tools()
