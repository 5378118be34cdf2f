"""The one place where the core allocates outputs and workspace.

An adapter hands in its framework's allocator, so that all memory comes from one pool::

    y = allocation.served_by(allocate, lmkan_cupy.forward, x, tables)
"""

from collections.abc import Callable
from contextvars import ContextVar, copy_context
from typing import Any, TypeAlias

import numpy as np

from .array_library import Array, array_library

#: Returns an uninitialised, C-contiguous array of a shape and dtype, on the device of an array that
#: is the third argument.
Allocate: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any], Array], Array]


def _from_library(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    array: Array = array_library(beside).ndarray(shape, dtype)  # what its `empty` calls
    return array


_allocate: ContextVar[Allocate] = ContextVar("lmkan_cupy_allocate")


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    """Return an uninitialised array [shape] on the device of the array ``beside``."""
    return _allocate.get(_from_library)(shape, dtype, beside)


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
