"""Which kernels a call launches, and how: a pure function of shapes, dtypes and device limits.

Symbols: B samples, I inputs, O outputs, P = ceil(I / 2) pairs, G grid intervals, S = G + 1 knots.
"""

from dataclasses import dataclass, replace
from typing import Any

#: Threads of a warp, on every CUDA device.
LANES = 32

#: Blocks of a grid in its first dimension; a kernel takes further tasks in turns.
MOST_BLOCKS = 2**31 - 1

#: Up to O outputs -> outputs per lane of the warp that has a row of them; beyond, the last.
LANE_OUTPUTS = {32: 1, 64: 2, 128: 4}

#: File of a kernel -> warps of a block. The sort needs a thread for each of 256 digits.
WARPS = {
    "forward.cu": 4,
    "forward_shared.cu": 16,
    "sort.cu": 16,
    "backward.cu": 4,
    "hessian_penalty.cu": 8,
}

#: Outputs of a block of forward_shared.cu, and the stages of its tables.
SHARED_TILE = 32
SHARED_STAGES = 2

#: Samples that the backward sorts and walks at a time: their rows of grad_y stay in the L2 cache.
CHUNK = 16384

#: Samples of one warp in the backward, the most that still give every multiprocessor enough warps.
STRETCHES = (1024, 512, 256, 128, 64, 32)
WARPS_PER_MULTIPROCESSOR = 16


@dataclass(frozen=True)
class Device:
    """What a plan has to know of a device.

    Parameters
    ----------
    capability : int
        Compute capability without the dot, 90 for sm_90.
    multiprocessors : int
    shared_bytes : int
        Largest dynamic shared memory of a block.
    """

    capability: int
    multiprocessors: int
    shared_bytes: int


@dataclass(frozen=True)
class Source:
    """A text to compile: a file of ``cuda/`` and the constants in its preamble.

    Parameters
    ----------
    file : str
    real, table : str
        dtype names: of all arithmetic, and of the tables.
    num_grids : int
    constants : tuple of (str, int)
        Further constants by name.
    """

    file: str
    real: str
    table: str
    num_grids: int
    constants: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Launch:
    """One launch of a kernel: ``blocks`` blocks of ``threads`` threads."""

    source: Source
    kernel: str
    blocks: int
    threads: int
    shared_bytes: int = 0


@dataclass(frozen=True)
class Layer:
    """Shapes and dtypes of one layer.

    Parameters
    ----------
    in_features, out_features, num_grids : int
    real, table : str
        dtype names: of x, cotangents and results, and of the tables.
    """

    in_features: int
    out_features: int
    num_grids: int
    real: str
    table: str

    @property
    def pairs(self) -> int:
        return (self.in_features + 1) // 2

    @property
    def tiles(self) -> int:
        """Tiles of outputs, one for a warp at a time."""
        return _ceil(self.out_features, LANES * _lane_outputs(self.out_features))


@dataclass(frozen=True)
class Backward:
    """The launches of a backward pass, repeated for every chunk of the batch.

    Parameters
    ----------
    chunk : int
        Samples of a chunk; the last may have fewer.
    stretch : int
        Samples of a stretch, what one warp walks.
    stretches : int
        Of a chunk.
    sort, walk, boundaries : Launch
    """

    chunk: int
    stretch: int
    stretches: int
    sort: Launch
    walk: Launch
    boundaries: Launch


@dataclass(frozen=True)
class Penalty:
    """The launches of the penalty: a partial sum for each of ``partials`` knots, then their sum."""

    partials: int
    penalty: Launch
    total: Launch


def layer(x: Any, tables: Any) -> Layer:
    """Return the shapes and dtypes of checked arrays ``x`` [B, I] and ``tables`` [P, S, S, O]."""
    return Layer(x.shape[1], tables.shape[3], tables.shape[1] - 1, x.dtype.name, tables.dtype.name)


def forward(layer: Layer, batch: int, device: Device, *, direction: bool, aligned: bool) -> Launch:
    """Return the launch for ``batch`` samples.

    The tables go through shared memory where two stages of a tile fit and there are enough samples
    to keep the device busy with blocks of them; else they are read from global memory.

    Parameters
    ----------
    layer, batch, device
    direction : bool
        The derivative along a direction instead of the layer.
    aligned : bool
        Tables and outputs begin at multiples of 16 bytes.
    """
    samples = LANES * WARPS["forward_shared.cu"]
    blocks = _ceil(batch, samples) * (layer.out_features // SHARED_TILE)
    shared_bytes = SHARED_STAGES * (layer.num_grids + 1) ** 2 * SHARED_TILE * 4
    if (
        aligned
        and layer.real == layer.table == "float32"
        and layer.out_features % SHARED_TILE == 0
        and shared_bytes <= device.shared_bytes
        and blocks >= device.multiprocessors
    ):
        source = _source("forward_shared.cu", layer, DIRECTION=direction)
        return Launch(source, "forward_shared", min(blocks, MOST_BLOCKS), samples, shared_bytes)
    return _launch("forward", batch * layer.tiles, _row_source("forward.cu", layer, direction))


def backward(
    layer: Layer, batch: int, device: Device, *, direction: bool, need_x: bool, need_tables: bool
) -> Backward:
    """Return the launches for ``batch`` samples and the gradients that are needed."""
    chunk = min(max(batch, 1), CHUNK)
    enough = WARPS_PER_MULTIPROCESSOR * device.multiprocessors
    stretch = next(
        (each for each in STRETCHES if layer.pairs * _ceil(chunk, each) >= enough), STRETCHES[-1]
    )
    stretches = _ceil(chunk, stretch)
    # Tables do not matter to the sort: one source serves all their dtypes.
    sort = _source("sort.cu", replace(layer, table=layer.real), DIRECTION=0)
    walk = _row_source(
        "backward.cu", layer, direction, X_GRADIENT=need_x, TABLES_GRADIENT=need_tables
    )
    blocks = layer.pairs if batch else 0
    return Backward(
        chunk,
        stretch,
        stretches,
        Launch(sort, "sort_by_cell", min(blocks, MOST_BLOCKS), LANES * WARPS["sort.cu"]),
        _launch("backward", layer.pairs * stretches, walk),
        _launch("backward_boundaries", layer.pairs * layer.tiles, walk),
    )


def penalty(layer: Layer) -> Penalty:
    """Return the launches for all functions of a layer."""
    partials = layer.pairs * (layer.num_grids + 1)
    source = _row_source("hessian_penalty.cu", layer, direction=False)
    threads = LANES * WARPS["hessian_penalty.cu"]
    return Penalty(
        partials,
        Launch(source, "hessian_penalty", min(partials, MOST_BLOCKS), threads),
        Launch(source, "hessian_penalty_sum", 1, threads),
    )


def launches(layer: Layer, device: Device) -> list[Launch]:
    """Return one launch of every kernel that calls with such a layer may need."""
    of_penalty = penalty(layer)
    found = [of_penalty.penalty, of_penalty.total]
    # The double backward takes cotangents of the tables through the layer, in the dtype of x.
    for each in (layer, replace(layer, table=layer.real)):
        for direction, need_x, need_tables in (
            (False, True, True),
            (False, True, False),
            (False, False, True),
            (True, True, True),
        ):
            plan = backward(
                each, 1, device, direction=direction, need_x=need_x, need_tables=need_tables
            )
            found += [plan.sort, plan.walk]
            found += [
                forward(each, batch, device, direction=direction, aligned=True)
                for batch in (1, 2**40)
            ]
            if need_tables:
                found.append(plan.boundaries)
    return list(dict.fromkeys(found))


def _launch(kernel: str, tasks: int, source: Source) -> Launch:
    """Return the launch that gives each warp one of ``tasks``, as far as a grid can."""
    warps = WARPS[source.file]
    return Launch(source, kernel, min(_ceil(tasks, warps), MOST_BLOCKS), LANES * warps)


def _row_source(file: str, layer: Layer, direction: bool, **constants: int) -> Source:
    """Return the source of a kernel whose warps share rows of outputs."""
    return _source(
        file,
        layer,
        DIRECTION=direction,
        LANE_OUTPUTS=_lane_outputs(layer.out_features),
        **constants,
    )


def _source(file: str, layer: Layer, **constants: int) -> Source:
    numbers = {"WARPS": WARPS[file], **constants}
    return Source(
        file,
        layer.real,
        layer.table,
        layer.num_grids,
        tuple((name, int(number)) for name, number in numbers.items()),
    )


def _lane_outputs(out_features: int) -> int:
    most = max(LANE_OUTPUTS.values())
    return next((n for limit, n in LANE_OUTPUTS.items() if out_features <= limit), most)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
