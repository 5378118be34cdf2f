"""Compiling the kernels with Numba, and keeping the results on disk."""

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numba import types
from numba.core import event

from . import kernels, network_kernels

_log = logging.getLogger("lmkan_cupy")


def _kernel(function: Callable[..., None]) -> Any:
    """Let Numba compile a kernel and keep it on disk, or in memory if no folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # "cannot cache function ...: no locator available"
        _warn_no_cache()
        return numba.njit(nogil=True)(function)


@lru_cache
def _warn_no_cache() -> None:
    _log.warning(
        "no folder can be written to for compiled kernels, so every process compiles them again; "
        "set NUMBA_CACHE_DIR to a folder that can be written to"
    )


FORWARD = _kernel(kernels.forward_kernel)
GATHER = _kernel(kernels.gather_kernel)
BACKWARD = _kernel(kernels.backward_kernel)
PENALTY = _kernel(kernels.penalty_kernel)
NETWORK = _kernel(network_kernels.network_kernel)
NETWORK_GRAD = _kernel(network_kernels.network_grad_kernel)
KERNELS = (FORWARD, GATHER, BACKWARD, PENALTY, NETWORK, NETWORK_GRAD)


class _AnnounceCompilation(event.Listener):
    """Logs once that kernels are being compiled, because that takes seconds."""

    def on_start(self, event: Any) -> None:
        kernel = event.data["dispatcher"]
        if kernel in KERNELS:
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
def compiled(kernel: Any, dtype: np.dtype[Any], stored_dtype: np.dtype[Any]) -> Callable[..., None]:
    """Return a kernel compiled for x of ``dtype`` and tables that are stored as ``stored_dtype``.

    Calling the result skips Numba's look-up by argument types. The look-up costs microseconds per
    call, and read-only arrays would make it compile every kernel several times.
    """
    index, flag = types.intp, types.boolean
    vector, matrix, grad = (_array(dtype, ndim) for ndim in (1, 2, 4))
    table = _array(stored_dtype, 4)
    steps = _array(network_kernels.STEP, 1)
    arguments = {
        FORWARD: (matrix, table, vector, matrix, flag, matrix),
        GATHER: (matrix, table, vector, matrix, flag, matrix),
        BACKWARD: (
            *(index, index, index, matrix, matrix, table, vector, matrix, flag),
            *(matrix, grad),
        ),
        NETWORK: (index, matrix, vector, vector, steps, matrix),
        NETWORK_GRAD: (index, matrix, matrix, vector, vector, steps, matrix, matrix),
        PENALTY: (table, vector, types.float64, flag, types.float64[::1], grad),
    }[kernel]
    entry: Callable[..., None] = kernel.compile((index, index, *arguments))
    return entry


def _array(dtype: np.dtype[Any], ndim: int) -> Any:
    """Return Numba's type of a C-contiguous array."""
    return types.Array(numba.from_dtype(dtype), ndim, "C")


def cache_folder() -> str:
    """Return the folder that keeps the compiled kernels."""
    return FORWARD.stats.cache_path or "none can be written to"
