"""The one way into a kernel: guards against what CuPy's raw kernels would misread silently.

On the host, a launch and an allocation take as long as a small kernel runs. So what calls with the
same shapes have in common is made ready once, and a call allocates its workspace in one piece.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any, TypeAlias, TypeVar

import numpy as np

from .. import allocation
from ..array_library import Array, is_cupy_array
from . import kernel_cache
from .plan import Launch

Result = TypeVar("Result")

#: Argument of a kernel: a C-contiguous array or a part of a workspace, None for null, or a float64.
Argument: TypeAlias = Any

#: Parts of a workspace begin at multiples of so many bytes.
_PART_BYTES = 256

#: Calls made ready, by everything that they depend on: see `ready`.
_calls: dict[tuple[Any, ...], Callable[..., Any]] = {}
_MOST_CALLS = 256


def ready(make: Callable[..., Callable[..., Result]], *choices: Any) -> Callable[..., Result]:
    """Return ``make(device, *choices)`` for the current device, made once and then kept.

    So a call with the shapes of an earlier one finds its plan, compiled kernels and their numbers.
    """
    device = kernel_cache.device()
    key = (make, device, *choices)
    call = _calls.get(key)
    if call is None:
        call = make(device, *choices)
        if len(_calls) >= _MOST_CALLS:  # happens where the batch size keeps changing
            _calls.clear()
        _calls[key] = call
    return call


def forget() -> None:
    """Forget the calls made ready, because what plans are made of has changed."""
    _calls.clear()


class Kernel:
    """A launch on the current device, with the arguments that are the same for every call.

    Parameters
    ----------
    launch : Launch
        If it has no blocks, nothing is started; CuPy would start one block.
    *numbers : int
        The kernel's last arguments, which it takes as ``long long``.
    """

    def __init__(self, launch: Launch, *numbers: int) -> None:
        self._start = kernel_cache.kernel(launch) if launch.blocks else None
        self._grid, self._block = (launch.blocks, 1, 1), (launch.threads, 1, 1)
        self._shared_bytes = launch.shared_bytes
        self._numbers = kernel_cache.long_longs(numbers)

    def __call__(self, *arguments: Argument) -> None:
        """Start the kernel on the current stream with its first arguments, then the numbers."""
        if self._start is not None:
            self._start(self._grid, self._block, arguments + self._numbers, self._shared_bytes)


class Workspace:
    """Memory that a call needs only while it runs, allocated in one piece.

    Parameters
    ----------
    *sizes : int
        Bytes of its parts, 0 for one that is not needed.
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
    if is_cupy_array(array):  # as its fill does, which looks at the value first and takes longer
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
