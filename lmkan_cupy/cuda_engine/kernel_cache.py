"""Compiled kernels, by device and source: the only module of the core that calls CuPy's compiler.

CuPy keeps what it compiled in a folder, so that a second process compiles nothing.
"""

import logging
import os
import sys
import threading
from contextlib import AbstractContextManager
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from . import kernel_source
from .plan import Device, Launch, Source

_log = logging.getLogger("lmkan_cupy")

#: (device, source, kernel) -> compiled kernel.
_kernels: dict[tuple[int, Source, str], Any] = {}
_compiling = threading.Lock()


def _cupy() -> Any:
    """Return CuPy, which must not be imported before it is needed."""
    return sys.modules.get("cupy") or import_module("cupy")


def cache_folder() -> str:
    """Return the folder that keeps the compiled kernels."""
    return os.environ.get("CUPY_CACHE_DIR") or os.path.expanduser("~/.cupy/kernel_cache")


def on_device(index: int) -> AbstractContextManager[Any]:
    """Return a context in which a device is CuPy's current one."""
    context: AbstractContextManager[Any] = _cupy().cuda.Device(index)
    return context


def device() -> Device:
    """Return the limits of CuPy's current device."""
    return _limits(_cupy().cuda.runtime.getDevice())


@lru_cache
def _limits(index: int) -> Device:
    handle = _cupy().cuda.Device(index)
    attributes = handle.attributes
    rates = {
        "clock_hz": 1e3 * attributes["ClockRate"],
        # bits of the bus over 8, twice per clock
        "memory_rate": 1e3 * attributes["MemoryClockRate"] * attributes["GlobalMemoryBusWidth"] / 4,
    }
    return Device(
        capability=int(handle.compute_capability),
        multiprocessors=attributes["MultiProcessorCount"],
        shared_bytes=attributes["MaxSharedMemoryPerBlockOptin"],
        l2_bytes=attributes["L2CacheSize"],
        # Some devices report a rate of 0, which predicts nothing: then the default stays.
        **{name: rate for name, rate in rates.items() if rate},
    )


def long_longs(numbers: tuple[int, ...]) -> tuple[Any, ...]:
    """Return numbers as kernels take them; CuPy would convert plain ones at every launch."""
    by_value = _cupy().cuda.function.CNumpyArray
    return tuple(by_value(np.array(number, np.int64)) for number in numbers)


def kernel(launch: Launch) -> Any:
    """Return the compiled kernel of a launch for the current device.

    It is called with a grid, a block, a tuple of arguments, and bytes of shared memory.

    Raises
    ------
    RuntimeError
        If it cannot be compiled; the text says what to do.
    """
    key = (_cupy().cuda.runtime.getDevice(), launch.source, launch.kernel)
    compiled = _kernels.get(key)
    if compiled is None:
        with _compiling:
            if key not in _kernels:
                _kernels[key] = _compile(launch)
            compiled = _kernels[key]
    return compiled


def _compile(launch: Launch) -> Any:
    described = f"{launch.kernel} of {launch.source.file}, {launch.source}"
    if _cupy().cuda.get_current_stream().is_capturing():
        raise RuntimeError(
            f"the kernel {described} is not compiled yet, which cannot be done while a CUDA graph "
            "is captured: call lmkan_cupy.warmup, or the same function once, before the capture"
        )
    _log.info("compiling %s, or loading it from CuPy's cache", described)
    text = kernel_source.text(launch.source)
    try:
        compiled = _load(text, launch.kernel)
    except OSError as error:
        _log.warning(
            "CuPy's kernel cache %s cannot be written (%s), so kernels are compiled by every "
            "process; set CUPY_CACHE_DIR to a folder that can be",
            cache_folder(),
            error,
        )
        os.environ["CUPY_CACHE_IN_MEMORY"] = "1"
        compiled = _load(text, launch.kernel)
    if launch.shared_bytes:  # as much as any later launch may ask for, instead of 48 KB
        left = device().shared_bytes - compiled.shared_size_bytes
        compiled.max_dynamic_shared_size_bytes = left
    return compiled.kernel  # of this device: a raw kernel would look it up at every launch


def _load(text: str, name: str) -> Any:
    cupy = _cupy()
    try:
        return cupy.RawModule(code=text, options=("--std=c++17",)).get_function(name)
    except cupy.cuda.compiler.CompileException as error:
        raise RuntimeError(_advice(str(error))) from error


def _advice(log: str) -> str:
    """Return what to do about a failed compilation, then the compiler's messages."""
    major, minor = _cupy().cuda.nvrtc.getVersion()
    if "could not open source file" in log or "cannot open source file" in log:
        advice = (
            "CUDA's headers, which tables in half precision need, were not found: "
            f"pip install 'cupy-cuda{major}x[ctk]'"
        )
    else:
        advice = (
            "if headers and compiler are of different CUDA versions, unset CUDA_PATH or "
            f"pip install 'cupy-cuda{major}x[ctk]'; else please report it"
        )
    return f"NVRTC {major}.{minor} could not compile a kernel: {advice}\n{log}"
