"""Which kernels a call launches, and how: a pure function of shapes, dtypes and device limits.

Symbols: B samples, I inputs, O outputs, P = ceil(I / 2) pairs, G grid intervals, S = G + 1 knots.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from . import forward_model
from .forward_model import Prediction

#: Threads of a warp, on every CUDA device.
LANES = 32

#: Blocks of a grid in its first dimension; a kernel takes further tasks in turns.
MOST_BLOCKS = 2**31 - 1

#: Up to O outputs -> outputs per lane of the warp that has a row of them; beyond, the last.
LANE_OUTPUTS = {32: 1, 64: 2, 128: 4}

#: Warps that share the pairs of a sample in forward.cu, where it has so many pairs.
PAIR_SPLIT, SPLIT_PAIRS = 4, 8

#: dtype of tables -> bytes of a value.
TABLE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}

#: File of a kernel -> warps of a block, where it is always the same.
WARPS = {
    "forward.cu": 4,
    "pack.cu": 8,
    "sort.cu": 16,
    "backward.cu": 4,
}


@dataclass(frozen=True)
class RingShape:
    """A row of the table of forward_ring.cu.

    Parameters
    ----------
    chunks : int
        16-byte chunks of a row of a table: 4 outputs each, or 8 of half tables.
    samples : int
        Of a thread; half of them along a direction.
    warps : int
        Of a block, which has a multiprocessor for itself.
    """

    chunks: int
    samples: int
    warps: int

    def outputs(self, table: str) -> int:
        """Return the outputs of a row, for tables of a dtype."""
        return 16 * self.chunks // TABLE_BYTES[table]


#: The wider the rows, the less there is to do besides reading them; the narrower, the larger the
#: grids that fit and the more samples share a tile. Each fills the registers of a multiprocessor.
RINGS = (RingShape(8, 2, 16), RingShape(4, 4, 16), RingShape(2, 6, 16))
FEWEST_STAGES, MOST_STAGES = 2, 3

#: The same for tiles of half tables, and for both from PAIRED_OPERATIONS on: conversions take more
#: registers.
HALF_RINGS = {
    "float16": (RingShape(8, 1, 16), RingShape(4, 2, 16), RingShape(2, 4, 16)),
    "bfloat16": (RingShape(8, 1, 16), RingShape(4, 2, 16), RingShape(2, 3, 16)),
}
PAIRED_HALF_RINGS = (RingShape(8, 1, 8), RingShape(4, 2, 12), RingShape(2, 3, 12))

#: Bytes of shared memory beside the stages: 16 copies of two numbers per interval; the task.
KNOT_BYTES = 128
TASK_BYTES = 128

#: Bytes of packed x, about: as many samples go through forward_ring.cu at a time.
SLICE_BYTES = 2**28

#: Tiles of outputs that are treated together, then the next: few, so that the tables of all pairs
#: stay in L2 while block after block reads them; several, so that x is not read for each.
BUNCH = 4

#: Ways to split the pairs over blocks where a batch has too few samples for all multiprocessors.
SPLITS = (1, 2, 4, 8, 16, 32)

#: Up to O outputs -> outputs per lane in the backward; beyond, as many as leave enough registers.
WALK_OUTPUTS = {32: 1, 64: 2, 128: 4}
MOST_WALK_OUTPUTS = {"float32": 8, "float64": 4}

#: Bytes of the widest access of a lane.
VECTOR_BYTES = 16

#: Blocks of the backward that a multiprocessor should hold, which limits the registers of a thread,
#: where a lane has as many outputs as it can and where it has fewer: one less for float64 or along
#: a direction, and one less from sm_100 on, see below, but two; then as many of these as fit.
WALK_BLOCKS, NARROW_WALK_BLOCKS, FEWEST_WALK_BLOCKS = 3, 4, 2

#: dtype of x -> bytes of shared memory of such a block, with all that it may have to do.
WALK_BYTES = {"float32": 25728, "float64": 48256}

#: Bytes of shared memory that the hardware adds to each block; a block alone may have the rest of
#: its multiprocessor's. Before sm_80 it adds none, and this counts so many too many.
RESERVED_BYTES = 1024

#: From this architecture on, operations on pairs of numbers need neighbouring registers, so more.
PAIRED_OPERATIONS = 100

#: Up to G intervals -> samples that the backward sorts and walks at a time. A tile of their rows of
#: grad_y stays in the L2 cache, and a cell has enough of them to pay for its rows of the tables.
CHUNKS = {26: 16384}
MOST_CHUNK = 32768

#: The sort counts so many digits at most, in at most half of its shared memory.
MOST_DIGITS = 2048

#: Samples of one warp in the backward, at most, of a half with half of a chunk; the fewest, where
#: there would be too few blocks.
STRETCH, SHORTEST_STRETCH = 512, 32

#: Threads of a block of the penalty at most; warps of it that a multiprocessor should hold, and so
#: many less from sm_100 on; blocks of them at most.
PENALTY_THREADS = 384
PENALTY_WARPS, PAIRED_PENALTY_WARPS = {"float32": 24, "float64": 12}, 8
PENALTY_BLOCKS = 8

#: Columns of knots of a block of the penalty at most.
PENALTY_COLUMNS = 48


@dataclass(frozen=True, eq=False)
class Device:
    """What a plan has to know of a device; of several alike each is its own.

    Parameters
    ----------
    capability : int
        Compute capability without the dot, 90 for sm_90.
    multiprocessors : int
    shared_bytes : int
        Largest dynamic shared memory of a block.
    clock_hz, memory_rate, l2_bytes : float
        Clock of the multiprocessors, bytes per second of device memory, size of the L2 cache. Their
        defaults are those of the H100 that the model of the forward is fitted to, also for devices
        that report a clock of 0.
    """

    capability: int
    multiprocessors: int
    shared_bytes: int
    clock_hz: float = 1.98e9
    memory_rate: float = 3.35e12
    l2_bytes: float = 50 * 2**20


#: What the model of the forward is fitted to.
H100 = Device(capability=90, multiprocessors=132, shared_bytes=227 * 1024)


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


@dataclass(frozen=True, eq=False)
class Layer:
    """Shapes and dtypes of one layer; :func:`layer` gives the same one every time.

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
class Ring:
    """How tables and samples come to forward_ring.cu.

    Parameters
    ----------
    chunks, stages : int
        16-byte chunks of a row, tiles in shared memory.
    samples, outputs, tiles, bunches : int
        Samples of a block, outputs of a tile, tiles, bunches of these that are treated together.
    tile_bytes : int
        Of a tile in shared memory, and in packed tables.
    slice_size : int
        Samples of a launch, in whole blocks; the last may have fewer, see :meth:`padded`.
    run, splits : int
        Pairs of a block, and how many blocks share those of a sample and a tile.
    packed : bool
        Tables are packed first.
    pack_tables, pack_x, total : Launch
        The kernels beside the main one; the last adds the results of the splits.
    """

    chunks: int
    stages: int
    samples: int
    outputs: int
    tiles: int
    bunches: int
    tile_bytes: int
    slice_size: int
    run: int
    splits: int
    packed: bool
    pack_tables: Launch
    pack_x: Launch
    total: Launch

    def padded(self, samples: int) -> int:
        """Return how many samples whole blocks have: x is packed with zeros behind ``samples``."""
        return _ceil(samples, self.samples) * self.samples

    def blocks(self, samples: int) -> int:
        """Return the blocks of the main kernel for a slice of ``samples``."""
        return self.padded(samples) // self.samples * self.tiles * self.splits


@dataclass(frozen=True)
class Forward:
    """The launches of a forward: ``kernel`` reads tables from global memory if ``ring`` is None."""

    kernel: Launch
    ring: Ring | None
    prediction: Prediction


@dataclass(frozen=True)
class Backward:
    """The launches of a backward pass, repeated for every chunk of the batch.

    Parameters
    ----------
    chunk : int
        Samples of a chunk; the last may have fewer.
    parts : int
        Blocks of the walk for a pair and a tile of outputs, each for as many samples.
    tiles : int
        Of outputs.
    sort, walk : Launch
    slots : Launch or None
        None where the gradient of the tables is not needed.
    slopes : Launch or None
        None where that of x is not needed or there is one tile.
    """

    chunk: int
    parts: int
    tiles: int
    sort: Launch
    walk: Launch
    slots: Launch | None
    slopes: Launch | None


@dataclass(frozen=True)
class Penalty:
    """The launches of the penalty: ``partials`` partial sums, then their sum."""

    partials: int
    penalty: Launch
    total: Launch


def layer(x: Any, tables: Any) -> Layer:
    """Return the shapes and dtypes of checked arrays ``x`` [B, I] and ``tables`` [P, S, S, O]."""
    return _layer(x.shape[1], tables.shape, x.dtype, tables.dtype)


def layer_of_tables(tables: Any, knots: Any) -> Layer:
    """Return the same for ``tables`` alone, of an even number of inputs."""
    return _layer(2 * tables.shape[0], tables.shape, knots.dtype, tables.dtype)


@cache
def _layer(in_features: int, shape: tuple[int, ...], real: Any, table: Any) -> Layer:
    return Layer(in_features, shape[3], shape[1] - 1, real.name, table.name)


def forward(layer: Layer, batch: int, device: Device, *, direction: bool, aligned: bool) -> Forward:
    """Return the launches for ``batch`` samples, of all possible ones the fastest by the model.

    Parameters
    ----------
    layer, batch, device
    direction : bool
        The derivative along a direction instead of the layer.
    aligned : bool
        Tables begin at a multiple of 16 bytes.
    """
    possible = candidates(layer, batch, device, direction, aligned)
    return min(possible, key=lambda each: each.prediction.seconds)


def candidates(
    layer: Layer, batch: int, device: Device, direction: bool, aligned: bool
) -> list[Forward]:
    """Return every way to compute a forward, from global memory first: see :func:`forward`."""
    split = PAIR_SPLIT if layer.pairs >= SPLIT_PAIRS else 1
    source = _source(
        "forward.cu",
        layer,
        DIRECTION=direction,
        LANE_OUTPUTS=_lane_outputs(layer.out_features),
        VECTOR=_vector(layer, min(_lane_outputs(layer.out_features), _most_vector(layer)), aligned),
        SPLIT=split,
    )
    blocks = _ceil(batch, WARPS["forward.cu"] // split) * layer.tiles
    item = TABLE_BYTES[layer.table]
    prediction = forward_model.from_global(layer, batch, device, item, split)
    found = [Forward(_tasks("forward", blocks, source), None, prediction)]
    if layer.real == "float32" and batch:
        found += _through_rings(layer, batch, device, direction, aligned)
    return found


def _through_rings(
    layer: Layer, batch: int, device: Device, direction: bool, aligned: bool
) -> Iterator[Forward]:
    """Give those through shared memory: every shape that fits, packed or not, split over pairs."""
    in_tiles = _in_tiles(layer, direction)
    runs = dict.fromkeys(_ceil(layer.pairs, splits) for splits in SPLITS)
    for shape in ring_shapes(in_tiles.table, device):
        stages = most_stages(in_tiles, shape, device)
        if stages < FEWEST_STAGES:
            continue
        exact = layer.out_features % shape.outputs(in_tiles.table) == 0
        direct = aligned and exact and in_tiles is layer
        for packed in (True, False) if direct else (True,):
            for run in runs:
                plan = through_ring(layer, batch, device, direction, packed, shape, stages, run)
                if not _is_possible(plan, batch):
                    break  # nor is a shorter run: it takes more blocks
                yield plan


def _is_possible(plan: Forward, batch: int) -> bool:
    """Tell whether a grid has enough blocks; only a batch that is one slice is split over pairs."""
    ring = plan.ring
    whole = ring is None or ring.splits == 1 or batch <= ring.slice_size
    return whole and plan.kernel.blocks <= MOST_BLOCKS


def _in_tiles(layer: Layer, direction: bool) -> Layer:
    """Return the layer whose tables are what tiles hold.

    Along a direction, differences of neighbours matter: half tables are widened for it.
    """
    half = layer.table != layer.real
    return replace(layer, table=layer.real) if direction and half else layer


def ring_shapes(table: str, device: Device) -> tuple[RingShape, ...]:
    """Return the rows of the table of forward_ring.cu for tiles of a dtype."""
    if table == "float32":
        return RINGS
    return PAIRED_HALF_RINGS if device.capability >= PAIRED_OPERATIONS else HALF_RINGS[table]


def most_stages(layer: Layer, shape: RingShape, device: Device) -> int:
    """Return how many tiles of a shape fit into shared memory, as far as they are of use."""
    left = device.shared_bytes - TASK_BYTES - KNOT_BYTES * layer.num_grids
    return min(left // (_tile_bytes(layer, shape) + 16), MOST_STAGES)


def _tile_bytes(layer: Layer, shape: RingShape) -> int:
    """Return the bytes of a tile; with two chunks in a row, nodes stand in blocks of 2 x 2."""
    knots = layer.num_grids + 1
    rows = (knots + knots % 2) ** 2 if shape.chunks == 2 else knots**2
    return rows * shape.chunks * 16


def through_ring(
    layer: Layer,
    batch: int,
    device: Device,
    direction: bool,
    packed: bool,
    shape: RingShape,
    stages: int,
    run: int,
) -> Forward:
    """Return the launches through a ring of one shape, for the choices that are left.

    Parameters
    ----------
    layer, batch, device, direction
    packed : bool
        Pack the tables first.
    shape : RingShape
    stages : int
        Tiles in shared memory, at least ``FEWEST_STAGES``.
    run : int
        Pairs of a block.
    """
    splits = _ceil(layer.pairs, run)
    # A direction takes registers, too.
    of_thread = shape.samples // 2 if direction else shape.samples
    samples = LANES * shape.warps * of_thread
    in_tiles = _in_tiles(layer, direction)
    outputs = shape.outputs(in_tiles.table)
    tiles = _ceil(layer.out_features, outputs)
    # Whole waves of blocks, as near as can be to SLICE_BYTES; a little more goes at once, too.
    blocks = SLICE_BYTES / (8 * layer.pairs) * tiles / samples
    waves = max(1, round(blocks / device.multiprocessors))
    groups = max(1, min(waves * device.multiprocessors, MOST_BLOCKS) // (tiles * splits))
    all_groups = _ceil(batch, samples)
    if 4 * all_groups <= 5 * groups:
        groups = all_groups
    numbers = {"CHUNKS": shape.chunks, "SAMPLES": of_thread, "STAGES": stages}
    main = _source(
        "forward_ring.cu",
        in_tiles,
        WARPS=shape.warps,
        DIRECTION=direction,
        PACKED=packed,
        WIDENED=False,
        BUNCH=BUNCH,
        **numbers,
    )
    pack = _source(
        "pack.cu",
        layer,
        DIRECTION=0,
        LANE_OUTPUTS=1,
        CHUNKS=shape.chunks,
        WIDENED=in_tiles is not layer,
    )
    tile_bytes = _tile_bytes(layer, shape)
    shared_bytes = stages * (tile_bytes + 16) + KNOT_BYTES * layer.num_grids
    slice_size = groups * samples
    ring = Ring(
        chunks=shape.chunks,
        stages=stages,
        samples=samples,
        outputs=outputs,
        tiles=tiles,
        bunches=_ceil(tiles, BUNCH),
        tile_bytes=tile_bytes,
        slice_size=slice_size,
        run=run,
        splits=splits,
        packed=packed,
        pack_tables=_tasks("pack_tables", layer.pairs * tiles, pack),
        pack_x=_tasks("pack_x", _ceil(layer.pairs, LANES) * slice_size // LANES, pack),
        total=_tasks("forward_ring_sum", _ceil(slice_size * layer.out_features, samples), main),
    )
    kernel = Launch(
        main, "forward_ring", ring.blocks(slice_size), LANES * shape.warps, shared_bytes
    )
    return Forward(kernel, ring, forward_model.ring(in_tiles, batch, device, ring))


def backward(
    layer: Layer,
    batch: int,
    device: Device,
    *,
    direction: bool,
    of_layer: bool,
    need_x: bool,
    need_tables: bool,
    aligned: bool,
) -> Backward:
    """Return the launches for ``batch`` samples.

    Parameters
    ----------
    layer, batch, device
    direction, of_layer : bool
        Of the derivative along a direction, of the layer itself, or both as in the double backward.
    need_x, need_tables : bool
        The gradients that are needed.
    aligned : bool
        All arrays begin at multiples of 16 bytes.
    """
    outputs = next(
        (n for limit, n in WALK_OUTPUTS.items() if layer.out_features <= limit),
        MOST_WALK_OUTPUTS[layer.real],
    )
    tiles = _ceil(layer.out_features, LANES * outputs)
    most_chunk = next(
        (size for limit, size in CHUNKS.items() if layer.num_grids <= limit), MOST_CHUNK
    )
    # Tables do not matter to the sort: one source serves all their dtypes.
    of_x = replace(layer, table=layer.real)
    sort, most_chunk = _sort(of_x, most_chunk, device, aligned and layer.in_features % 2 == 0)
    chunk = min(max(batch, 1), most_chunk)

    wide = layer.real == "float64" or direction
    paired = device.capability >= PAIRED_OPERATIONS
    usual = WALK_BLOCKS if outputs == MOST_WALK_OUTPUTS[layer.real] else NARROW_WALK_BLOCKS
    wanted = max(usual - wide - paired, FEWEST_WALK_BLOCKS)
    resident = _resident(wanted, WALK_BYTES[layer.real], device)
    parts = _parts(chunk, layer.pairs * tiles, resident * device.multiprocessors, need_tables)
    walk = _source(
        "backward.cu",
        layer,
        BLOCKS=resident,
        LANE_OUTPUTS=outputs,
        VECTOR=_vector(layer, min(outputs, _most_vector(layer)), aligned),
        SEVERAL_TILES=tiles > 1,
        DIRECTION=direction,
        LAYER=of_layer,
        X_GRADIENT=need_x,
        TABLES_GRADIENT=need_tables,
    )
    blocks = layer.pairs if batch else 0
    slot_tasks = layer.pairs * _ceil(layer.out_features, LANES * WARPS["backward.cu"])
    slope_tasks = _ceil(chunk, LANES) * _ceil(layer.pairs, LANES // 2)
    return Backward(
        chunk,
        parts,
        tiles,
        Launch(
            sort,
            "sort_by_cell",
            min(blocks, MOST_BLOCKS),
            LANES * WARPS["sort.cu"],
            _sort_bytes(sort, chunk),
        ),
        _tasks("backward", tiles * layer.pairs * parts, walk),
        _tasks("backward_slots", slot_tasks, walk) if need_tables else None,
        _tasks("backward_slopes", slope_tasks, walk) if need_x and tiles > 1 else None,
    )


def _resident(wanted: int, shared_bytes: int, device: Device) -> int:
    """Return how many of ``wanted`` blocks the shared memory of a multiprocessor has room for."""
    fitting = (device.shared_bytes + RESERVED_BYTES) // (shared_bytes + RESERVED_BYTES)
    return max(min(wanted, fitting), 1)


def _parts(chunk: int, walks: int, resident: int, need_tables: bool) -> int:
    """Return how many blocks share the samples of one of ``walks`` pairs and tiles.

    Of the numbers that leave a warp ``STRETCH`` samples to half of them, the one with which
    ``resident`` blocks at a time are most nearly busy to the end.
    """
    samples = _ceil(chunk, 2 if need_tables else 1)  # half of them lie in cells of even rows
    of_block = WARPS["backward.cu"]
    most = _ceil(samples, of_block * SHORTEST_STRETCH)
    fewest = min(max(_ceil(samples, of_block * STRETCH), resident // walks), most)
    possible = range(fewest, min(2 * fewest, most) + 1)
    return min(possible, key=lambda parts: _ceil(walks * parts, resident) / parts)


def _sort(layer: Layer, chunk: int, device: Device, in_twos: bool) -> tuple[Source, int]:
    """Return the source of the sort, and as much of ``chunk`` as it has shared memory for.

    ``in_twos``: the coordinates of a sample and a pair are one vector.
    """
    cells = layer.num_grids**2
    most_digits = min(MOST_DIGITS, device.shared_bytes // (2 * _bytes_per_digit()))
    passes = next(n for n in range(1, 32) if most_digits**n >= cells)
    digits = next(
        n for n in range(round(cells ** (1 / passes)) - 1, cells + 1) if n**passes >= cells
    )
    source = _source("sort.cu", layer, DIRECTION=0, IN_TWOS=in_twos, PASSES=passes, DIGITS=digits)
    while _sort_bytes(source, chunk) > device.shared_bytes:
        chunk //= 2
    return source, chunk


def _bytes_per_digit() -> int:
    return 2 * WARPS["sort.cu"] + 4


def _sort_bytes(source: Source, chunk: int) -> int:
    """Return the shared memory of a block, see sort.cu."""
    constants = dict(source.constants)
    digits = 2 * _ceil(constants["DIGITS"], 2)
    key = 2 if source.num_grids <= 256 else 4
    places = 2 * min(constants["PASSES"], 2)
    return digits * _bytes_per_digit() + 4 * constants["WARPS"] + chunk * (key + places)


def penalty(layer: Layer, device: Device, *, aligned: bool) -> Penalty:
    """Return the launches for all functions of a layer; ``aligned`` as in :func:`backward`."""
    knots = layer.num_grids + 1
    vector = _vector(layer, _most_vector(layer), aligned)
    columns = min(knots, PENALTY_COLUMNS)
    own_columns = columns if columns == knots else columns - 4  # two on either side are shared
    vectors = min(
        2 ** ((PENALTY_THREADS // columns).bit_length() - 1), _ceil(layer.out_features, vector)
    )
    warps = _ceil(columns * vectors, LANES)
    paired = device.capability >= PAIRED_OPERATIONS
    resident = PENALTY_WARPS[layer.real] - (PAIRED_PENALTY_WARPS if paired else 0)
    tiles = _ceil(knots, own_columns) * _ceil(layer.out_features, vector * vectors)
    blocks = layer.pairs * tiles
    source = _source(
        "hessian_penalty.cu",
        layer,
        WARPS=warps,
        BLOCKS=min(max(resident // warps, 1), PENALTY_BLOCKS),
        DIRECTION=0,
        VECTOR=vector,
        VECTORS=vectors,
        COLUMNS=columns,
    )
    return Penalty(
        blocks,
        Launch(source, "hessian_penalty", min(blocks, MOST_BLOCKS), LANES * warps),
        Launch(source, "hessian_penalty_sum", 1, LANES * warps),
    )


def launches(layer: Layer, device: Device) -> list[Launch]:
    """Return one launch of every kernel that calls with such a layer may need, of any batch."""
    of_penalty = penalty(layer, device, aligned=True)
    found = [of_penalty.penalty, of_penalty.total]
    # The double backward takes cotangents of the tables through the layer, in the dtype of x.
    for each in (layer, replace(layer, table=layer.real)):
        for direction, of_layer, need_x, need_tables in (
            (False, True, True, True),
            (False, True, True, False),
            (False, True, False, True),
            (True, False, True, True),
            (True, True, True, True),
        ):
            plan = backward(
                each,
                1,
                device,
                direction=direction,
                of_layer=of_layer,
                need_x=need_x,
                need_tables=need_tables,
                aligned=True,
            )
            found += [
                launch
                for launch in (plan.sort, plan.walk, plan.slots, plan.slopes)
                if launch is not None
            ]
            for possible in candidates(each, 1, device, direction, aligned=True):
                found.append(possible.kernel)
                if ring := possible.ring:
                    found += [ring.pack_tables, ring.pack_x, ring.total]
    return list(dict.fromkeys(found))


def _tasks(kernel: str, tasks: int, source: Source) -> Launch:
    """Return the launch that gives each block one of ``tasks``, as far as a grid can."""
    threads = LANES * dict(source.constants)["WARPS"]
    return Launch(source, kernel, min(tasks, MOST_BLOCKS), threads)


def _source(file: str, layer: Layer, **constants: int) -> Source:
    numbers = constants if "WARPS" in constants else {"WARPS": WARPS.get(file, 0), **constants}
    return Source(
        file,
        layer.real,
        layer.table,
        layer.num_grids,
        tuple((name, int(number)) for name, number in numbers.items()),
    )


def _vector(layer: Layer, most: int, aligned: bool) -> int:
    """Return the most outputs, up to a power of two, that make up whole rows and vectors."""
    return math.gcd(layer.out_features, most) if aligned else 1


def _most_vector(layer: Layer) -> int:
    """Return the numbers of the widest access of a lane."""
    return VECTOR_BYTES // _bytes(layer.real)


def _bytes(dtype: str) -> int:
    return {"float32": 4, "float64": 8}[dtype]


def _lane_outputs(out_features: int) -> int:
    most = max(LANE_OUTPUTS.values())
    return next((n for limit, n in LANE_OUTPUTS.items() if out_features <= limit), most)


def _ceil(number: int, divisor: int) -> int:
    return -(-number // divisor)
