"""Compiling the kernels with Numba, and keeping the results on disk where that is possible."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import event
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc

from .. import installation
from . import (
    convolution_kernels,
    corners,
    kernels,
    layout,
    network_kernels,
    penalty_kernel,
    vectors,
)

if obstacle := installation.cpu_obstacle():
    raise RuntimeError(f"the CPU engine cannot run: {obstacle}")

_log = logging.getLogger("lmkan_cupy")


#: All that is compiled.
_SOURCES = (
    vectors,
    corners,
    layout,
    kernels,
    network_kernels,
    convolution_kernels,
    penalty_kernel,
)


class _Cache(FunctionCache):
    """Numba's files of a kernel. Where they fail, the kernel is compiled, and kept in memory.

    What a killed process or a full disk left of a file makes ``pickle`` raise almost anything.
    Where the folder can be written to, the file is replaced.
    """

    def __init__(self, function: Callable[..., None]) -> None:
        super().__init__(function)  # type: ignore[no-untyped-call]
        # Numba looks at the file of the function alone, which calls functions of the others.
        files = [os.stat(str(each.__file__)) for each in _SOURCES]
        self._cache_file._source_stamp = [(each.st_mtime, each.st_size) for each in files]

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        with self._failure_is_logged():
            return super().load_overload(sig, target_context)  # type: ignore[no-untyped-call]
        with self._failure_is_logged():
            self.flush()  # an index that cannot be read could not be added to, either
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        with self._failure_is_logged():
            super().save_overload(sig, data)  # type: ignore[no-untyped-call]

    @contextmanager
    def _failure_is_logged(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            _log_once(
                f"the compiled kernels in {self.cache_path} cannot be read or written "
                f"({error!r}), so they are compiled again; if this comes back, empty the folder "
                "or set NUMBA_CACHE_DIR to another one"
            )


def _kernel(function: Callable[..., None]) -> Any:
    """Let Numba compile a kernel and keep it on disk, or in memory if no folder is writable."""
    kernel = numba.njit(nogil=True)(function)
    _keep_on_disk(kernel, function)
    return kernel


def _keep_on_disk(kernel: Any, function: Callable[..., None]) -> None:
    try:
        kernel._cache = _Cache(function)
    except (OSError, RuntimeError):  # "cannot cache function ...: no locator available"
        _log_once(
            "no folder can be written to for compiled kernels, so every process compiles them "
            "again; set NUMBA_CACHE_DIR to a folder that can be written to"
        )


_has_warned = False


def _log_once(warning: str) -> None:
    """Log the first warning of this process alone: what follows has the same cause."""
    global _has_warned
    if not _has_warned:
        _has_warned = True
        _log.warning(warning)


FORWARD = _kernel(kernels.forward_kernel)
GATHER = _kernel(kernels.gather_kernel)
BACKWARD = _kernel(kernels.backward_kernel)
PENALTY = _kernel(penalty_kernel.penalty_kernel)
NETWORK = _kernel(network_kernels.network_kernel)
NETWORK_GRAD = _kernel(network_kernels.network_grad_kernel)
#: The kernels of layers and networks.
KERNELS = (FORWARD, GATHER, BACKWARD, PENALTY, NETWORK, NETWORK_GRAD)

LOCATE = _kernel(convolution_kernels.locate_kernel)
CONVOLVE = _kernel(convolution_kernels.convolve_kernel)
CONVOLVE_GATHER = _kernel(convolution_kernels.convolve_gather_kernel)
CONVOLVE_BACKWARD = _kernel(convolution_kernels.convolve_backward_kernel)
#: Those of convolutions, which are compiled at the first call that needs them.
CONVOLUTION_KERNELS = (LOCATE, CONVOLVE, CONVOLVE_GATHER, CONVOLVE_BACKWARD)


class _AnnounceCompilation(event.Listener):
    """Logs once that kernels are being compiled, because that takes seconds."""

    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in KERNELS + CONVOLUTION_KERNELS:
            _announce(kernel.stats.cache_path)

    def on_end(self, event: Any) -> None:
        pass


@lru_cache
def _announce(cache_path: str | None) -> None:
    _log.info(
        "compiling kernels for this processor, which takes ten seconds or more, once; kept in %s",
        cache_path or "memory",
    )


event.register("numba:compile", _AnnounceCompilation())  # type: ignore[no-untyped-call]


@lru_cache
def compiled(
    kernel: Any, dtype: np.dtype[Any], stored_dtype: np.dtype[Any], dimension: int = 2
) -> Callable[..., None]:
    """Return a kernel compiled for x of ``dtype`` and tables that are stored as ``stored_dtype``.

    Calling the result skips Numba's look-up by argument types. The look-up costs microseconds per
    call, and read-only arrays would make it compile every kernel several times.
    """
    index, flag = types.intp, types.boolean
    vector, matrix, grad = (_array(dtype, ndim) for ndim in (1, 2, dimension + 2))
    table = _array(stored_dtype, dimension + 2)
    steps, addresses = _array(network_kernels.STEP, 1), _array(np.dtype(np.intp), 2)
    images, places = types.Array(numba.from_dtype(dtype), 4, "A"), _array(np.dtype(np.int64), 2)
    geometry = _named(
        convolution_kernels.Geometry, [index] * len(convolution_kernels.Geometry._fields)
    )
    planes = _named(
        convolution_kernels.Planes, [_array(np.dtype(np.uint32), 1), vector, vector, vector]
    )
    convolve = (table, places, geometry, planes, flag, images)
    arguments = {
        LOCATE: (images, images, index, matrix, geometry, planes),
        CONVOLVE: convolve,
        CONVOLVE_GATHER: convolve,
        CONVOLVE_BACKWARD: (
            *(index, index, index, index, index, matrix, table, places, places, geometry, planes),
            *(images, grad),
        ),
        FORWARD: (matrix, table, matrix, matrix, flag, matrix),
        GATHER: (matrix, table, matrix, matrix, flag, matrix),
        BACKWARD: (
            *(index, index, index, matrix, matrix, table, matrix, matrix, flag),
            *(matrix, grad),
        ),
        NETWORK: (index, matrix, vector, vector, steps, addresses, matrix),
        NETWORK_GRAD: (index, matrix, matrix, vector, vector, steps, addresses, matrix, matrix),
        PENALTY: (table, vector, types.float64, flag, types.float64[::1], grad),
    }[kernel]
    entry: Callable[..., None] = kernel.compile((index, index, *arguments))
    return entry


@lru_cache
def step_address(
    make: Any, dtype: np.dtype[Any], stored_dtype: np.dtype[Any], dimension: int
) -> int:
    """Return the address of a compiled function of a network's steps.

    ``make`` is one of those of :mod:`.network_kernels`; it says what the function's arguments are.
    """
    function = make(*map(numba.from_dtype, (dtype, stored_dtype)), dimension)
    arguments = (types.intp,) * function.__code__.co_argcount
    compiled: Any = CFunc(function, (arguments, types.void), locals={}, options={})
    _keep_on_disk(compiled, function)
    compiled.compile()
    _steps.append(compiled)  # an address is valid as long as its function
    return int(compiled.address)


_steps: list[Any] = []


def _named(kind: Any, fields: list[Any]) -> Any:
    """Return Numba's type of a named tuple."""
    if len(set(fields)) == 1:
        return types.NamedUniTuple(fields[0], len(fields), kind)  # type: ignore[no-untyped-call]
    return types.NamedTuple(fields, kind)  # type: ignore[no-untyped-call]


def _array(dtype: np.dtype[Any], ndim: int) -> Any:
    """Return Numba's type of a C-contiguous array."""
    return types.Array(numba.from_dtype(dtype), ndim, "C")


def cache_folder() -> str:
    """Return the folder that keeps the compiled kernels."""
    return FORWARD.stats.cache_path or "none can be written to"
