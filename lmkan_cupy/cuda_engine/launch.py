"""The one way into a kernel: what CuPy's raw kernels take wrongly or silently is guarded here.

On the host, a launch and an allocation cost as much as a small kernel runs. So what calls with the
same shapes have in common is made ready once, and a call allocates its workspace in one piece.
"""

from itertools import accumulate
from typing import Any, TypeAlias

import numpy as np

from .. import allocation
from ..array_library import Array, is_cupy_array
from . import kernel_cache
from .plan import Launch

#: Of a kernel: a C-contiguous array or a part of a workspace, None for null, or a float64.
Argument: TypeAlias = Any

#: Parts of a workspace begin at multiples of so many bytes.
_PART_BYTES = 256


class Kernel:
    """A launch on the current device, with the arguments that are the same for every call.

    Parameters
    ----------
    launch : Launch
        An empty grid starts nothing, where CuPy would make it one block.
    knots : array [S]
        The grid, on the host: part of the kernel's text.
    *numbers : int
        The kernel's last arguments, which it takes as ``long long``.
    """

    def __init__(self, launch: Launch, knots: Array, *numbers: int) -> None:
        self._start = kernel_cache.kernel(launch, knots) if launch.blocks else None
        self._grid, self._block = (launch.blocks, 1, 1), (launch.threads, 1, 1)
        self._shared_bytes = launch.shared_bytes
        self._numbers = kernel_cache.long_longs(numbers)

    def __call__(self, *arguments: Argument) -> None:
        """Start the kernel on the current stream with its first arguments, then the numbers."""
        if self._start is not None:
            self._start(self._grid, self._block, arguments + self._numbers, self._shared_bytes)


class Workspace:
    """Memory for a call alone, allocated in one piece.

    Parameters
    ----------
    *sizes : int
        Of its parts in bytes, 0 for one that is not needed.
    """

    def __init__(self, *sizes: int) -> None:
        *begins, self._size = accumulate(map(_padded, sizes), initial=0)
        self._spans = tuple(zip(begins, sizes, strict=True))

    def parts(self, beside: Array) -> list[Argument]:
        """Return the parts, in memory on the device of the array ``beside``."""
        if self._size == 0:
            return [None] * len(self._spans)
        memory = allocation.empty((self._size,), np.dtype(np.uint8), beside)
        return [_part(memory, begin, size) if size else None for begin, size in self._spans]


def _padded(size: int) -> int:
    return -(-size // _PART_BYTES) * _PART_BYTES


def _part(memory: Any, begin: int, size: int) -> Argument:
    if is_cupy_array(memory):
        return memory.data + begin  # a slice would cost ten times as much
    return memory[begin : begin + size]


def clear(array: Any) -> None:
    """Overwrite a C-contiguous array with zeros."""
    if is_cupy_array(array):  # what its fill does, after a look at the value that costs more
        array.data.memset_async(0, array.nbytes)
    else:
        array.fill(0)


def aligned(*arrays: Array | None) -> bool:
    """Tell whether all arrays begin at multiples of 16 bytes, the most that a thread reads."""
    addresses = 0
    for each in arrays:
        if each is not None:
            addresses |= _address(each)
    return addresses % 16 == 0


def _address(array: Any) -> int:
    return int(array.data.ptr if is_cupy_array(array) else array.ctypes.data)
