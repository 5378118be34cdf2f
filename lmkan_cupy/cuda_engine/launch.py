"""The one way into a kernel: what CuPy's raw kernels take wrongly or silently is guarded here."""

from typing import Any, TypeAlias

import numpy as np

from ..array_library import Array, is_cupy_array
from . import kernel_cache
from .launch_plan import Launch

#: Of a kernel: an array or None for a pointer, a number for `long long` or `double`.
Argument: TypeAlias = Array | int | float | None

_NULL = np.uint64(0)


def run(launch: Launch, knots: Array, *arguments: Argument) -> None:
    """Start a kernel on the current device and stream; an empty grid starts nothing.

    Parameters
    ----------
    launch : Launch
    knots : array [S]
        The grid, on the host: part of the kernel's text.
    *arguments : array, int, float or None
        In the kernel's order. Kernels take C-contiguous arrays by address alone, every whole number
        as ``long long`` and every other as ``double``.
    """
    if launch.blocks == 0:  # CuPy would make it 1
        return
    kernel = kernel_cache.kernel(launch, knots)
    kernel(
        (launch.blocks, 1, 1),
        (launch.threads, 1, 1),
        tuple(map(_exact, arguments)),
        shared_mem=launch.shared_bytes,
    )


def aligned(*arrays: Array) -> bool:
    """Tell whether all arrays begin at multiples of 16 bytes, the most that a thread reads."""
    return all(_address(each) % 16 == 0 for each in arrays)


def _address(array: Any) -> int:
    return int(array.data.ptr if is_cupy_array(array) else array.ctypes.data)


def _exact(argument: Argument) -> Any:
    """Return what goes to a kernel: an array, or a scalar of the exact type."""
    if argument is None:
        return _NULL
    if isinstance(argument, int):
        return np.int64(argument)
    if isinstance(argument, float):
        return np.float64(argument)
    if not argument.flags.c_contiguous:  # CuPy would ignore the strides
        raise ValueError(f"a kernel takes C-contiguous arrays, got strides {argument.strides}")
    # NumPy has no bfloat16, a "void" to it: it travels as its words
    return argument.view(np.uint16) if argument.dtype.kind == "V" else argument
