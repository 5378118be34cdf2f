"""Which array library an array belongs to, told from its type without importing any."""

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

#: A NumPy array; a CuPy array is meant by the same name, its interface being NumPy's.
Array: TypeAlias = NDArray[Any]


class SupportsDLPack(Protocol):
    """What another library's array has, so that its memory can be shared: see DLPack's
    `Python specification <https://dmlc.github.io/dlpack/latest/python_spec.html>`_."""

    def __dlpack__(self) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


#: What the core takes.
AnyArray: TypeAlias = Array | SupportsDLPack

#: DLPack's device types of memory that CuPy reads: CUDA's own, and managed.
_CUDA_MEMORY = (2, 13)


#: Does nothing; to make one takes longer than to enter it.
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
    return sys.modules["cupy"] if is_cupy_array(array) else np


def on_device_of(array: Any) -> AbstractContextManager[Any]:
    """Return a context in which the device of a CuPy array is CuPy's current one."""
    context: AbstractContextManager[Any] = array.device if is_cupy_array(array) else _NO_CHANGE
    return context


def is_in_cuda_memory(value: SupportsDLPack) -> bool:
    """Tell whether the memory of another library's array is CUDA memory."""
    return int(value.__dlpack_device__()[0]) in _CUDA_MEMORY
