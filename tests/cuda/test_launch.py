"""Launches and workspaces: what CuPy's raw kernels would misread silently."""

from __future__ import annotations

from typing import Any

import emulated
import numpy as np
import pytest

from lmkan_cupy import allocation
from lmkan_cupy.cuda_engine import kernel_cache, launch
from lmkan_cupy.cuda_engine.forward_pass import plan_forward
from lmkan_cupy.cuda_engine.plan import Launch, LayerShape

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture
def plan() -> Launch:
    layer = LayerShape(2, 1, 3, "float32", "float32")
    plan = plan_forward(layer, 1, emulated.DEVICE, direction=False, aligned=True)
    return plan.kernel


@pytest.fixture
def arguments(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the last launch."""
    seen: list[Any] = []

    def call(grid: Any, block: Any, arguments: Any, shared_bytes: int) -> None:
        seen[:] = arguments

    monkeypatch.setattr(kernel_cache, "kernel", lambda *_: call)
    return seen


def test_given_arguments_then_numbers(plan: Launch, arguments: list[Any]) -> None:
    launch.Kernel(plan, 2**40, True)(None, np.float64(0.5))
    assert arguments == [None, 0.5, 2**40, 1]
    assert [type(argument) for argument in arguments[2:]] == [np.int64, np.int64]


def test_an_empty_grid_starts_nothing(arguments: list[Any]) -> None:
    layer = LayerShape(2, 1, 3, "float32", "float32")
    plan = plan_forward(layer, 0, emulated.DEVICE, direction=False, aligned=True)
    launch.Kernel(plan.kernel, 1)(None)
    assert not arguments


def test_a_workspace_is_one_piece() -> None:
    """Each of its parts begins at a multiple of 256 bytes and has the size that was asked for."""
    sizes: list[int] = []

    def allocate(shape: Any, dtype: Any, beside: Any) -> Any:
        sizes.extend(shape)
        return np.empty(shape, dtype)

    workspace = launch.Workspace(300, 0, 7)
    first, none, second = allocation.served_by(allocate, workspace.parts, np.empty(0))
    assert sizes == [768]
    assert none is None
    assert (first.nbytes, second.nbytes) == (300, 7)
    assert second.ctypes.data - first.ctypes.data == 512
