"""The one place where the core allocates outputs and workspace.

An adapter hands in its framework's allocator, so that all memory comes from one pool::

    with allocation.allocator(allocate):
        lmkan_cupy.forward(x, tables)
"""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import numpy as np

from .array_library import Array, array_library

#: Returns an uninitialised, C-contiguous array of a shape and dtype, on the device of an array that
#: is the third argument.
Allocate: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any], Array], Array]


def _from_library(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    array: Array = array_library(beside).ndarray(shape, dtype)  # what its `empty` calls
    return array


_allocate: ContextVar[Allocate] = ContextVar("lmkan_cupy_allocate", default=_from_library)


def empty(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    """Return an uninitialised array [shape] on the device of the array ``beside``."""
    return _allocate.get()(shape, dtype, beside)


class allocator:
    """A context in which ``allocate`` serves every call of :func:`empty`, in its thread."""

    def __init__(self, allocate: Allocate) -> None:
        self._served_by = allocate

    def __enter__(self) -> None:
        self._token = _allocate.set(self._served_by)

    def __exit__(self, *error: object) -> None:
        _allocate.reset(self._token)
