"""The CUDA engine on NumPy arrays: its own plans and arguments, kernels run by the emulator."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import emulator
import numpy as np
import pytest
from oracle import Array
from problems import Sizes

from lmkan_cupy import cuda_engine
from lmkan_cupy.cuda_engine import kernel_cache, kernel_source
from lmkan_cupy.cuda_engine.plan import Device, Launch

DEVICE = Device(capability=90, multiprocessors=1, shared_bytes=227 * 1024)
"""With a single multiprocessor, so that small problems fill it."""


_read: ContextVar[Callable[[str], str]] = ContextVar("read", default=kernel_source.read)


@contextmanager
def sources(texts: Mapping[str, str]) -> Iterator[None]:
    """Let these files stand in the place of those of `cuda/`, in this thread."""
    token = _read.set(texts.__getitem__)
    try:
        yield
    finally:
        _read.reset(token)


@cache
def module(text: str, arch: int) -> emulator.Module:
    return emulator.compile(text, re.findall(r"__global__[^;{]*?(\w+)\(const", text), arch=arch)


def forget_plans() -> None:
    """To be called after a constant of the plan was changed."""
    cuda_engine.forget()


def install(
    monkeypatch: pytest.MonkeyPatch, order: str = "ascending", seed: int = 0, arch: int = 900
) -> None:
    """Let the engine's kernels run here instead of on a GPU, threads in one of `ORDERS`."""
    forget_plans()

    def kernel(launch: Launch, knots: Array) -> Callable[..., None]:
        def call(grid: Any, block: Any, arguments: Any, shared_bytes: int) -> None:
            # Now: the engine keeps this function, and `sources` may have changed since.
            text = kernel_source.text(launch.source, knots, _read.get())
            module(text, arch).launch(
                launch.kernel,
                grid,
                block,
                tuple(map(_as_given, arguments)),
                shared_bytes,
                order=order,
                seed=seed,
            )

        return call

    forget_plans()
    monkeypatch.setattr(kernel_cache, "kernel", kernel)
    monkeypatch.setattr(kernel_cache, "long_longs", lambda numbers: tuple(map(np.int64, numbers)))
    monkeypatch.setattr(kernel_cache, "device", lambda: DEVICE)


def _as_given(argument: Any) -> Any:
    """Return what the emulator takes for an argument: a kernel sees addresses alone."""
    if argument is None:
        return np.uint64(0)
    if isinstance(argument, np.ndarray):
        assert argument.flags.c_contiguous, f"a kernel would ignore strides {argument.strides}"
        if argument.dtype.kind == "V":  # bfloat16, which NumPy does not have
            return argument.view(np.uint16)
    return argument


SMALL_CHUNK_SIZES = [
    Sizes(1, 1, 1, 3),
    Sizes(3, 67, 32, 8),
    Sizes(70, 5, 33, 8),
    Sizes(50, 4, 100, 8),
    Sizes(40, 3, 260, 4),
    Sizes(65, 3, 2, 300),
]
"""Every number of outputs per lane and vector, one and several tiles, odd numbers of inputs, more
pairs than a warp has lanes, one and two digits of the sort, both widths of its keys; batches beside
the chunk of 32 samples."""
