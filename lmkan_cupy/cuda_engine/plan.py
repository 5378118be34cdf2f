"""What the plans of all passes are made of: limits of a device, shapes of a layer, launches.

A plan says which kernels a call launches, and how. It is a pure function of shapes, dtypes and
limits of the device; each pass has its own: `forward_pass`, `backward_pass`, `penalty`.

Symbols: B samples, I inputs, O outputs, d inputs of an inner function, P = ceil(I / d) groups of
them, called pairs for any d, G grid intervals, S = G + 1 knots; tables are [P, S, ..., S, O].
"""

import math
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

#: Threads of a warp, on every CUDA device.
LANES = 32

#: Blocks of a grid in its first dimension; a kernel takes further tasks in turn.
MOST_BLOCKS = 2**31 - 1

#: dtype -> bytes of a number.
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

#: Bytes of the widest access of a lane.
VECTOR_BYTES = 16

#: From this compute capability on, one instruction works on a pair of numbers in neighbouring
#: registers, so a kernel needs more of them.
PAIRED_OPERATIONS = 100

#: Up to O outputs -> outputs per lane of a warp in forward.cu; for larger O, the last number.
LANE_OUTPUTS = {32: 1, 64: 2, 128: 4}


@dataclass(frozen=True, eq=False)
class Device:
    """What a plan has to know of a device; two GPUs of the same model are different devices.

    Parameters
    ----------
    capability : int
        Compute capability without the dot, 90 for sm_90.
    multiprocessors : int
    shared_bytes : int
        Largest dynamic shared memory of a block.
    clock_hz, memory_rate, l2_bytes : float
        Clock of the multiprocessors, bytes per second of device memory, size of the L2 cache. The
        defaults are those of the H100 that the model of the forward is fitted to; they also stand
        in for a rate that a device reports as 0.
    """

    capability: int
    multiprocessors: int
    shared_bytes: int
    clock_hz: float = 1.98e9
    memory_rate: float = 3.35e12
    l2_bytes: float = 50 * 2**20


#: The device that the model of the forward is fitted to.
H100 = Device(capability=90, multiprocessors=132, shared_bytes=227 * 1024)


@dataclass(frozen=True)
class Source:
    """A text to compile: a file of ``cuda/`` and the constants in its preamble.

    Parameters
    ----------
    file : str
    real, table : str
        dtype names: of all arithmetic, and of the tables.
    num_grids, dimension : int
    constants : tuple of (str, int)
        Further constants by name.
    """

    file: str
    real: str
    table: str
    num_grids: int
    dimension: int
    constants: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: ``blocks`` blocks of ``threads`` threads."""

    source: Source
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int = 0


@dataclass(frozen=True, eq=False)
class LayerShape:
    """Shapes and dtypes of a layer; :func:`layer_shape` returns one object for equal ones.

    Parameters
    ----------
    in_features, out_features, num_grids : int
    real, table : str
        dtype names: of x, cotangents and results, and of the tables.
    dimension : int
        d, the inputs of an inner function.
    """

    in_features: int
    out_features: int
    num_grids: int
    real: str
    table: str
    dimension: int = 2

    @property
    def pairs(self) -> int:
        return ceil_div(self.in_features, self.dimension)

    @property
    def nodes(self) -> int:
        """Rows of a table."""
        return int((self.num_grids + 1) ** self.dimension)

    @property
    def cells(self) -> int:
        return int(self.num_grids**self.dimension)

    @property
    def lane_outputs(self) -> int:
        """Outputs per lane of a warp in forward.cu."""
        most = max(LANE_OUTPUTS.values())
        return next((n for limit, n in LANE_OUTPUTS.items() if self.out_features <= limit), most)

    @property
    def tiles(self) -> int:
        """Tiles of outputs in forward.cu; a warp works on one at a time."""
        return ceil_div(self.out_features, LANES * self.lane_outputs)


@dataclass(frozen=True)
class NetworkShape:
    """What the plan of a network depends on.

    Parameters
    ----------
    features : tuple of int
        Inputs of the first layer, then the outputs of every layer.
    num_grids : int
    real, table : str
        dtype names: of x and results, and of the tables.
    linear : frozenset of int
        The numbers of the layers that are linear ones.
    dimension : int
        Of all tables.
    """

    features: tuple[int, ...]
    num_grids: int
    real: str
    table: str
    linear: frozenset[int] = frozenset()
    dimension: int = 2

    @property
    def layers(self) -> list[LayerShape]:
        """Shapes of all layers; the weights of linear ones are in ``real``."""
        tables = [
            self.real if k in self.linear else self.table for k in range(len(self.features) - 1)
        ]
        return [
            LayerShape(inputs, outputs, self.num_grids, self.real, table, self.dimension)
            for (inputs, outputs), table in zip(pairwise(self.features), tables, strict=True)
        ]


def check_dimension(dimension: int) -> None:
    """Require functions of one or two variables."""
    if dimension > 2:
        raise NotImplementedError(
            "the CUDA engine computes functions of one and of two variables, with tables [P, S, O] "
            f"and [P, S, S, O]: those of dimension {dimension} are computed on the CPU, for NumPy "
            "arrays"
        )


def layer_shape(x: Any, tables: Any) -> LayerShape:
    """Return the shapes and dtypes of checked arrays ``x`` [B, I] and ``tables``."""
    return _layer_shape(x.shape[1], tables.shape, x.dtype, tables.dtype)


def layer_shape_of_tables(tables: Any, real: Any) -> LayerShape:
    """Return the same for ``tables`` alone, as if for d P inputs of dtype ``real``."""
    return _layer_shape((tables.ndim - 2) * tables.shape[0], tables.shape, real, tables.dtype)


@cache
def _layer_shape(in_features: int, shape: tuple[int, ...], real: Any, table: Any) -> LayerShape:
    dimension = len(shape) - 2
    check_dimension(dimension)
    return LayerShape(in_features, shape[-1], shape[1] - 1, real.name, table.name, dimension)


def make_source(file: str, layer: LayerShape, **constants: int) -> Source:
    """Return the source of a kernel for a layer, with ``constants`` in its preamble.

    Every kernel has the constant ``WARPS``, the warps of a block. True and False become 1 and 0.
    """
    numbers = tuple((name, int(number)) for name, number in constants.items())
    return Source(file, layer.real, layer.table, layer.num_grids, layer.dimension, numbers)


def launch_tasks(kernel: str, tasks: int, source: Source, shared_bytes: int = 0) -> Launch:
    """Return the launch with one block per task, or with as many blocks as a grid can have."""
    threads = LANES * dict(source.constants)["WARPS"]
    return Launch(source, kernel, min(tasks, MOST_BLOCKS), threads, shared_bytes)


def vector_outputs(layer: LayerShape, aligned: bool, lane_outputs: int = 0) -> int:
    """Return how many outputs make up a vector, which a lane reads or writes at once.

    The number divides O and, unless that is 0, ``lane_outputs``, the outputs of a lane. It is 1
    unless all arrays begin at multiples of 16 bytes (``aligned``).
    """
    widest = VECTOR_BYTES // ITEM_BYTES[layer.real]
    return math.gcd(layer.out_features, widest, lane_outputs) if aligned else 1


def ceil_div(number: int, divisor: int) -> int:
    """Return the quotient, rounded up."""
    return -(-number // divisor)
