"""The one place where the core allocates outputs and workspace.

An adapter hands in its framework's allocator, so that all memory comes from one pool::

    y = allocation.served_by(allocate, lmkan_cupy.forward, x, tables)
"""

import math
from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, TypeAlias

import numpy as np

from .array_library import Array, array_library

#: Returns an uninitialised, C-contiguous array of a shape and dtype, on the device of an array that
#: is the third argument.
Allocate: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any], Array], Array]


#: Bytes of a cache line. A row of a table that begins with one is read a third faster.
_LINE = 64

#: Smaller arrays are not worth the microsecond that aligning takes.
_WORTH_ALIGNING = 4096


def _from_library(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    library: Any = array_library(beside)
    size = math.prod(shape) * dtype.itemsize
    if library is not np or size < _WORTH_ALIGNING:
        array: Array = library.ndarray(shape, dtype)  # what its `empty` calls
        return array
    memory = np.ndarray(size + _LINE, np.uint8)
    return np.ndarray(shape, dtype, memory, offset=-memory.ctypes.data % _LINE)


_allocate: ContextVar[Allocate] = ContextVar("lmkan_cupy_allocate")


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    """Return an uninitialised array [shape] on the device of the array ``beside``."""
    return _allocate.get(_from_library)(shape, dtype, beside)


def aligned(array: Array) -> Array:
    """Return a C-contiguous array that begins with a cache line: the same one if that is so."""
    if array_library(array) is not np or (
        array.flags.c_contiguous
        and (array.nbytes < _WORTH_ALIGNING or array.ctypes.data % _LINE == 0)
    ):
        return array
    copy = _from_library(array.shape, array.dtype, array)
    copy[...] = array
    return copy


def served_by(
    allocate: Allocate, function: Callable[..., Any], *arguments: Any, **options: Any
) -> Any:
    """Return ``function(*arguments, **options)``; ``allocate`` serves its calls of :func:`empty`.

    The allocator is set in a copy of the caller's context, so nothing has to be restored, and
    nothing stays behind wherever an interrupt (Ctrl-C) comes.
    """
    context = copy_context()
    context.run(_allocate.set, allocate)
    return context.run(function, *arguments, **options)
