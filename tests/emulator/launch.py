"""Compiled kernels, launched with the argument list of a CuPy launch; faults become exceptions."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds
from numpy.typing import NDArray

from emulator.build import MOST_SHARED_BYTES, build

ORDERS = ("ascending", "descending", "random")
"""Of the blocks, and of the threads within a block, wherever CUDA leaves it open."""

KINDS = (
    "out-of-bounds",
    "race",
    "unwritten-shared-read",
    "barrier-divergence",
    "warp-collective-misuse",
    "misaligned",
    "undefined-behaviour",
    "write-to-read-only",
    "async-copy",
    "bad-address",
    "endless-loop",
    "mbarrier-misuse",
)
"""By the number that faults.cpp gives them (`enum class Fault`)."""

NO_MUTANT = -1

MOST_THREADS = 1024
MOST_IN_Z = 64
GRID_LIMITS = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Report:
    """One fault of a kernel, with everything needed to find it.

    kind : str
        One of `KINDS`.
    trace, other_trace : tuple of str
        "file:line" as the kernel text names itself, innermost inlined function first; the other
        access, or the other barrier, where there is one, else ().
    block : (int, int, int)
        Where it happened first.
    thread : int
        Linear index in the block.
    count : int
        How often it happened.
    """

    kind: str
    trace: tuple[str, ...]
    other_trace: tuple[str, ...]
    kernel: str
    block: tuple[int, int, int]
    thread: int
    count: int
    message: str

    def __str__(self) -> str:
        place, *callers = self.trace or ("?",)
        inlined = f" (in {', in '.join(callers)})" if callers else ""
        also = f" at {', in '.join(self.other_trace)}" if self.other_trace else ""
        times = f", {self.count} times" if self.count > 1 else ""
        return (
            f"{place}{inlined}: {self.kind} in {self.kernel}, block {self.block}, "
            f"thread {self.thread}{times}: {self.message}{also}"
        )


class KernelFault(AssertionError):
    """What a kernel did wrong in one launch; `reports` holds the single faults."""

    def __init__(self, reports: Sequence[Report]) -> None:
        self.reports = tuple(reports)
        super().__init__("\n".join(map(str, self.reports)))


class _Parameter(ctypes.Structure):
    _fields_ = (
        ("element_name", ctypes.c_char_p),
        ("is_pointer", ctypes.c_int),
        ("is_const", ctypes.c_int),
    )


class _ArrayArgument(ctypes.Structure):
    _fields_ = (
        ("begin", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_uint64),
        ("name", ctypes.c_char_p),
    )


class _LaunchRequest(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("arguments", ctypes.POINTER(ctypes.c_void_p)),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint64),
        ("checked", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("mutant", ctypes.c_int32),
        ("array_count", ctypes.c_uint32),
        ("arrays", ctypes.POINTER(_ArrayArgument)),
    )


class _Location(ctypes.Structure):
    _fields_ = (
        ("pc", ctypes.c_uint64),
        ("file", ctypes.c_char_p),
        ("line", ctypes.c_int64),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("count", ctypes.c_uint32),
        ("thread", ctypes.c_uint32),
        ("block", ctypes.c_uint32 * 3),
        ("location", _Location),
        ("other", _Location),
        ("message", ctypes.c_char * 240),
    )


def compile(
    source: str,
    kernels: Sequence[str],
    *,
    arch: int = 900,
    check: bool = True,
    file: str = "kernel.cu",
) -> Module:
    """Compile CUDA C text for the host.

    Parameters
    ----------
    source : str
        The text as NVRTC would get it. `#line` directives are honoured by all reports.
    kernels : sequence of str
        Names of the `extern "C" __global__` functions to be launched.
    arch : int
        Value of `__CUDA_ARCH__`, 900 for sm_90. From 800 on there is `cp.async`.
    check : bool
        Whether every memory access is checked. Without, barriers, warp collectives and waits are
        still checked, and a kernel runs up to some times as fast.
    file : str
        What reports call the text ahead of its first `#line`.

    Raises
    ------
    BuildError
        With the compiler's messages.
    """
    library = build(source, kernels, file=file, arch=arch, check=check)
    return Module(library, kernels, check)


class Module:
    """Compiled kernels; made by `compile`."""

    def __init__(self, library: Path, kernels: Sequence[str], check: bool) -> None:
        self._check = check
        # The runtime has one launch at a time: PyDLL keeps the interpreter's lock.
        self._library = ctypes.PyDLL(str(library))
        self._library.emulator_launch.restype = ctypes.c_uint64
        self._library.emulator_static_shared_bytes.restype = ctypes.c_uint64
        self._library.emulator_map.restype = ctypes.c_void_p
        self._library.emulator_map.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
        self._library.emulator_unmap.argtypes = [ctypes.c_void_p]
        self._library.emulator_trace.restype = ctypes.c_char_p
        self._parameters = {name: self._describe(name) for name in kernels}

    def _describe(self, kernel: str) -> list[_Parameter]:
        table = ctypes.POINTER(_Parameter)()
        count = getattr(self._library, f"emulator_parameters_{kernel}")(ctypes.byref(table))
        return table[:count]

    @property
    def static_shared_bytes(self) -> int:
        """Of all kernels of the module together."""
        return int(self._library.emulator_static_shared_bytes())

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        args: Sequence[Any],
        shared_bytes: int = 0,
        *,
        order: str = "ascending",
        seed: int = 0,
        mutant: int = NO_MUTANT,
    ) -> None:
        """Run a kernel over the whole grid, and change the arrays that it writes.

        Parameters
        ----------
        kernel : str
        grid, block : (int, int, int)
            As for `cupy.RawKernel`, all at least 1.
        args : sequence
            As for `cupy.RawKernel`, but with NumPy arrays. For a pointer: an array of its element
            type (of uint16 for bfloat16; of uint8 for any, as raw memory), or `np.uint64(0)` for
            null. An array that is read-only, or whose parameter is const, must not be written. An
            array is no more than an address, as on a GPU: strides are the caller's to pass. For a
            value: a NumPy scalar of the exact type, because CuPy passes Python numbers as 64 bits.
        shared_bytes : int
            Dynamic shared memory of a block.
        order : str
            One of `ORDERS`.
        seed : int
            Of the order "random".
        mutant : int
            Which of the mutants in the text is in force; see `mutate`.

        Raises
        ------
        KernelFault
            If the kernel did anything wrong. Arrays hold what it wrote until then.
        """
        _check_launch(grid, block, order)
        if not 0 <= shared_bytes <= MOST_SHARED_BYTES - self.static_shared_bytes:
            raise ValueError(
                f"shared_bytes is {shared_bytes}; with {self.static_shared_bytes} bytes of static "
                f"shared memory at most {MOST_SHARED_BYTES} in all are possible"
            )
        parameters = self._parameters[kernel]
        if len(args) != len(parameters):
            raise TypeError(f"{kernel} takes {len(parameters)} arguments, got {len(args)}")
        for position, (parameter, value) in enumerate(zip(parameters, args, strict=True)):
            _check_argument(f"argument {position} of {kernel}", parameter, value)

        blocks = _memory_blocks(args, parameters)
        with self._device_copies(blocks) as addresses:
            values = [
                ctypes.c_uint64(_address(value, blocks, addresses))
                if isinstance(value, np.ndarray)
                else ctypes.create_string_buffer(value.tobytes(), value.nbytes)
                for value in args
            ]
            arrays = [
                _ArrayArgument(address, memory.high - memory.low, memory.writable, memory.name)
                for address, memory in zip(addresses, blocks, strict=True)
            ]
            request = _LaunchRequest(
                kernel=ctypes.cast(
                    getattr(self._library, f"emulator_run_{kernel}"), ctypes.c_void_p
                ),
                arguments=(ctypes.c_void_p * len(values))(*map(ctypes.addressof, values)),
                grid=grid,
                block=block,
                shared_bytes=shared_bytes,
                checked=self._check,
                order=ORDERS.index(order),
                seed=seed,
                mutant=mutant,
                array_count=len(arrays),
                arrays=(_ArrayArgument * len(arrays))(*arrays),
            )
            found = ctypes.POINTER(_Report)()
            count = self._library.emulator_launch(ctypes.byref(request), ctypes.byref(found))
        if count:
            raise KernelFault(self._reports(kernel, found[:count]))

    @contextmanager
    def _device_copies(self, blocks: Sequence[_MemoryBlock]) -> Iterator[list[int]]:
        """Addresses of copies of the blocks, which are copied back at the end."""
        addresses: list[int] = []
        reservations: list[ctypes.c_void_p] = []
        try:
            for memory in blocks:
                reservation = ctypes.c_void_p()
                size = memory.high - memory.low
                address = self._library.emulator_map(
                    size, memory.low % 16, ctypes.byref(reservation)
                )
                if address is None:
                    raise MemoryError(f"cannot map {size} bytes for {memory.name.decode()}")
                addresses.append(address)
                reservations.append(reservation)
                ctypes.memmove(address, memory.low, size)
            yield addresses
            for memory, address in zip(blocks, addresses, strict=True):
                if memory.writable:
                    ctypes.memmove(memory.low, address, memory.high - memory.low)
        finally:
            for reservation in reservations:
                self._library.emulator_unmap(reservation)

    def _reports(self, kernel: str, found: Sequence[_Report]) -> list[Report]:
        def trace(place: _Location) -> tuple[str, ...]:
            if place.pc:
                text = self._library.emulator_trace(ctypes.c_uint64(place.pc)).decode()
                return tuple(text.split("|")) if text else ()
            return (f"{place.file.decode()}:{place.line}",) if place.file else ()

        return [
            Report(
                kind=KINDS[each.kind],
                trace=trace(each.location),
                other_trace=trace(each.other),
                kernel=kernel,
                block=tuple(each.block),
                thread=each.thread,
                count=each.count,
                message=each.message.decode(),
            )
            for each in found
        ]


def _check_launch(grid: tuple[int, int, int], block: tuple[int, int, int], order: str) -> None:
    for size, limit in zip(grid, GRID_LIMITS, strict=True):
        if not 1 <= size <= limit:
            raise ValueError(f"grid is {grid}; allowed are 1 to {GRID_LIMITS}")
    threads = block[0] * block[1] * block[2]
    if min(block) < 1 or threads > MOST_THREADS or block[2] > MOST_IN_Z:
        raise ValueError(
            f"block is {block}; each at least 1, together at most {MOST_THREADS}, z at most "
            f"{MOST_IN_Z}"
        )
    if order not in ORDERS:
        raise ValueError(f"order is {order!r}; allowed are {ORDERS}")


def _check_argument(name: str, parameter: _Parameter, value: Any) -> None:
    wanted = parameter.element_name.decode()
    if not parameter.is_pointer:
        if not isinstance(value, np.generic) or value.dtype.name != wanted:
            raise TypeError(f"{name} must be a NumPy scalar of {wanted}, not {_describe(value)}")
        return
    if isinstance(value, np.uint64) and value == 0:
        return
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name} must be an array, not {_describe(value)}")
    if wanted and value.dtype.name not in (wanted, "uint8"):
        raise TypeError(f"{name} must be an array of {wanted}, not of {value.dtype.name}")


def _describe(value: Any) -> str:
    return f"{value.dtype.name} scalar" if isinstance(value, np.generic) else type(value).__name__


class _MemoryBlock(NamedTuple):
    """Host memory from `low` up to `high`, which one or several overlapping arguments cover."""

    low: int
    high: int
    writable: bool
    name: bytes


def _memory_blocks(args: Sequence[Any], parameters: Sequence[_Parameter]) -> list[_MemoryBlock]:
    spans = []
    for position, (value, parameter) in enumerate(zip(args, parameters, strict=True)):
        if isinstance(value, np.ndarray):
            writable = bool(value.flags.writeable) and not parameter.is_const
            name = f"argument {position}".encode()
            spans.append(_MemoryBlock(*_bounds(value), writable, name))
    blocks: list[_MemoryBlock] = []
    for span in sorted(spans):
        last = blocks[-1] if blocks else None
        if last is not None and span.low < last.high:
            blocks[-1] = _MemoryBlock(
                last.low,
                max(last.high, span.high),
                last.writable or span.writable,
                last.name + b" and " + span.name,
            )
        else:
            blocks.append(span)
    return blocks


def _bounds(array: NDArray[Any]) -> tuple[int, int]:
    if array.size == 0:
        return array.ctypes.data, array.ctypes.data
    low, high = byte_bounds(array)
    return low, high


def _address(array: NDArray[Any], blocks: Sequence[_MemoryBlock], copies: Sequence[int]) -> int:
    """Where an array's first element is in the copies."""
    low, high = _bounds(array)
    for memory, copy in zip(blocks, copies, strict=True):
        if memory.low <= low and high <= memory.high:
            return copy + array.ctypes.data - memory.low
    raise AssertionError("an argument lies in none of the memory blocks made from all of them")
