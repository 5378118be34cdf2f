"""Calls the core on tensors: as arrays over the same memory, on torch's stream and allocator."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, lru_cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from lmkan_cupy import allocation
from lmkan_cupy.array_library import Array
from lmkan_cupy.installation import cuda_obstacle


def run(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Call a function of the core on tensors.

    CUDA tensors are computed on torch's current stream of their device. All memory that the core or
    CuPy allocates comes from torch.

    Parameters
    ----------
    function : callable
        Takes arrays, numbers and None; returns an array or a tuple of arrays and None.
    *arguments, **options
        Its arguments, with tensors in place of arrays, all on one device.

    Returns
    -------
    Tensor or tuple of Tensor and None

    Raises
    ------
    TypeError
        If the tensors are neither in CPU nor in CUDA memory.
    RuntimeError
        If they are in CUDA memory and the CUDA engine cannot run.
    """
    (tensor, *_) = [each for each in arguments if isinstance(each, Tensor)]
    memory = _Memory(tensor.device)
    if memory.kind not in ("cpu", "cuda"):
        raise TypeError(
            f"{function.__name__}: tensors on {tensor.device} cannot be computed on: "
            "move them to the CPU"
        )
    if memory.kind == "cpu":
        return memory.call(function, arguments, options)
    with _cupy_joins_torch(tensor.device):
        return memory.call(function, arguments, options)


class _Memory:
    """Memory of a device, as torch sees it and as the device's array library does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = device.type
        self._allocated: dict[int, tuple[Array, Tensor]] = {}  # by the id of the array

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], options: dict[str, Any]
    ) -> Any:
        """Call a function on arrays over this memory; return its results as tensors."""
        arrays = [self.array(each) if isinstance(each, Tensor) else each for each in arguments]
        results = allocation.served_by(self.allocate, function, *arrays, **options)
        if isinstance(results, tuple):
            return tuple([None if each is None else self.tensor(each) for each in results])
        return self.tensor(results)

    def array(self, tensor: Tensor) -> Array:
        """Return an array over the memory of a tensor, copied only if it has to be.

        That is, if it is not contiguous, or if its memory holds the opposite numbers. On the CPU
        images with their channels last are read as they lie.
        """
        if self.kind == "cpu" and tensor.is_contiguous(memory_format=torch.channels_last):
            tensor = tensor.resolve_neg()
        elif not tensor.is_contiguous() or tensor.is_neg():
            tensor = tensor.resolve_neg().contiguous()
        if self.kind == "cpu":
            return _numpy_array(tensor)
        return cupy_array(tensor, self.device.index)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
        """Allocate for :mod:`lmkan_cupy.allocation`."""
        tensor = torch.empty(shape, dtype=_torch_dtype(dtype), device=self.device)
        array = self.array(tensor)
        self._allocated[id(array)] = array, tensor
        return array

    def tensor(self, array: Array) -> Tensor:
        """Return the tensor behind an array of :meth:`allocate`, else one over its memory."""
        if id(array) in self._allocated:
            return self._allocated[id(array)][1]
        return from_dlpack(array)


class _Shown:
    """Shows NumPy some memory, and keeps its owner alive."""

    owner: Tensor
    __array_interface__: dict[str, Any]


def _numpy_array(tensor: Tensor) -> Array:
    """Return a NumPy array over the memory of a tensor.

    Made from its address: DLPack takes twice as long, and after ``tensor.numpy()`` the storage
    could not be resized any more, which FSDP does to free it.
    """
    shown = _Shown()
    shown.owner = tensor
    shown.__array_interface__ = {
        "version": 3,
        "data": (tensor.data_ptr(), False),  # not read-only
        "shape": tuple(tensor.shape),
        "strides": None
        if tensor.is_contiguous()
        else tuple([tensor.itemsize * step for step in tensor.stride()]),
        "typestr": _type_string(tensor.dtype),
    }
    return np.asarray(shown)


def _cupy_joins_torch(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which CuPy uses torch's stream and torch's memory."""
    require_cuda_engine()
    cuda, index = _cupy().cuda, device.index

    def allocate(size: int) -> Any:
        """Allocate what CuPy itself asks for."""
        return _pointer(torch.empty(size, dtype=torch.uint8, device=device), index)

    memory: AbstractContextManager[Any] = cuda.using_allocator(allocate)
    if cuda.runtime.getDevice() == index:
        # Addresses are compared, since torch takes microseconds to make a stream object.
        stream = torch._C._cuda_getCurrentRawStream(index)
        if cuda.get_current_stream().ptr == stream:  # CuPy usually is on it already
            return memory
    return _on_torch_stream(device, memory)


@contextmanager
def _on_torch_stream(device: torch.device, memory: AbstractContextManager[Any]) -> Iterator[None]:
    with (
        torch.cuda.device(device.index),  # first: CuPy takes a stream to be on the current device
        _cupy().cuda.Stream.from_external(torch.cuda.current_stream(device)),
        memory,
    ):
        yield


@cache
def _cupy() -> Any:
    """Return CuPy, which must not be imported before it is needed."""
    return import_module("cupy")


def cupy_array(tensor: Tensor, device_index: int) -> Array:
    """Return a CuPy array over the memory of a contiguous tensor.

    Made from its address: DLPack gives the same and takes several times as long.
    """
    pointer = _pointer(tensor, device_index)
    array: Array = _cupy().ndarray(tuple(tensor.shape), _numpy_dtype(tensor.dtype), pointer)
    return array


def _pointer(tensor: Tensor, device_index: int) -> Any:
    """Return CuPy's pointer to the memory of a tensor, and keep the tensor alive with it."""
    cuda = _cupy().cuda
    memory = cuda.UnownedMemory(tensor.data_ptr(), tensor.nbytes, tensor, device_index)
    return cuda.MemoryPointer(memory, 0)


@lru_cache
def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the torch dtype of the same name."""
    named: torch.dtype = getattr(torch, dtype.name)
    return named


@lru_cache
def _numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the NumPy dtype of the same name; that of bfloat16 is ml_dtypes'."""
    name = dtype_name(dtype)
    library = import_module("ml_dtypes") if name == "bfloat16" else np
    if not hasattr(library, name):
        raise TypeError(f"tensors must be float32, float64, float16 or bfloat16, got {name}")
    named: np.dtype[Any] = np.dtype(getattr(library, name))
    return named


@lru_cache
def _type_string(dtype: torch.dtype) -> str:
    """Return NumPy's code of a dtype, which NumPy takes a microsecond to make."""
    return _numpy_dtype(dtype).str


def dtype_name(dtype: torch.dtype) -> str:
    """Return NumPy's name of a dtype."""
    return str(dtype).removeprefix("torch.")


@lru_cache
def require_cuda_engine() -> None:
    """Raise a RuntimeError, with the remedy, where the CUDA engine cannot run."""
    if obstacle := cuda_obstacle():
        raise RuntimeError(
            f"lmkan: the CUDA engine cannot run: {obstacle}; engine='torch' needs torch alone"
        )
