"""Which library an array belongs to, told by its type without importing CuPy."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: A NumPy array, or a CuPy array, which has the same interface.
Array: TypeAlias = NDArray[Any]


class SupportsDLPack(Protocol):
    """What another library's array has, so that its memory can be shared: see DLPack's
    `Python specification <https://dmlc.github.io/dlpack/latest/python_spec.html>`_."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


#: The arrays that the core takes.
AnyArray: TypeAlias = Array | SupportsDLPack

#: DLPack's device types of memory that CuPy reads: CUDA's own, and managed.
_CUDA_MEMORY = (2, 13)


#: A context that does nothing, shared because making one takes longer than entering it.
_NO_CHANGE = nullcontext()


def is_array(value: object) -> bool:
    """Tell whether ``value`` is a NumPy or a CuPy array."""
    return isinstance(value, np.ndarray) or is_cupy_array(value)


def is_cupy_array(value: object) -> bool:
    """Tell whether ``value`` is a CuPy array: none can exist before CuPy is imported."""
    cupy = sys.modules.get("cupy")
    return cupy is not None and isinstance(value, cupy.ndarray)


def array_library(array: Array) -> Any:
    """Return the module, ``numpy`` or ``cupy``, that ``array`` belongs to."""
    return np if isinstance(array, np.ndarray) else sys.modules["cupy"]


def contiguous(array: Array) -> Array:
    """Return an array C-contiguous, copied only where needed."""
    if array.flags.c_contiguous:
        return array
    copied: Array = array_library(array).ascontiguousarray(array)
    return copied


def on_device_of(array: Array) -> AbstractContextManager[Any]:
    """Return a context in which the device of a CuPy array is CuPy's current one."""
    if isinstance(array, np.ndarray):
        return _NO_CHANGE
    if array.data.device_id == sys.modules["cupy"].cuda.runtime.getDevice():
        return _NO_CHANGE
    device: AbstractContextManager[Any] = array.device
    return device


def is_in_cuda_memory(value: SupportsDLPack) -> bool:
    """Tell whether the memory of another library's array is CUDA memory."""
    return int(value.__dlpack_device__()[0]) in _CUDA_MEMORY
