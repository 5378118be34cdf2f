"""The backward: its plan, its workspace and its launches.

It sorts the samples by their cells (``sort.cu``) and then walks along them (``backward.cu``).
``cuda/README.md`` explains its chunks, walk, halves, stretches, slots and slopes.
"""

from dataclasses import dataclass, replace

from ..array_library import Array
from .launch import Kernel, Workspace, aligned, clear, ready
from .plan import (
    ITEM_BYTES,
    LANES,
    PAIRED_OPERATIONS,
    Device,
    Launch,
    LayerShape,
    Source,
    ceil_div,
    launch_tasks,
    layer_shape,
    make_source,
    vector_outputs,
)

#: Warps of a block of sort.cu and of backward.cu.
SORT_WARPS, WALK_WARPS = 16, 4

#: Up to O outputs -> outputs per lane in the walk; for larger O, as many as registers allow, by
#: dtype of x.
WALK_OUTPUTS = {32: 1, 64: 2, 128: 4}
MOST_WALK_OUTPUTS = {"float32": 8, "float64": 4}

#: Blocks of the walk that a multiprocessor should hold, which limits the registers of a thread:
#: where a lane has as many outputs as registers allow, and where it has fewer. One less for float64
#: or along a direction, and one less from PAIRED_OPERATIONS on, but not below the third number;
#: where shared memory has less room, only as many as fit.
WALK_BLOCKS, NARROW_WALK_BLOCKS, FEWEST_WALK_BLOCKS = 3, 4, 2

#: d and dtype of x -> bytes of shared memory of a block of the walk that has everything to do.
WALK_BYTES = {
    (1, "float32"): 14976,
    (1, "float64"): 25728,
    (2, "float32"): 25728,
    (2, "float64"): 48256,
}

#: Bytes of shared memory that the hardware adds to each block; a single block may take all the rest
#: that its multiprocessor has. Before sm_80 it adds none, so this counts too many there.
RESERVED_BYTES = 1024

#: Up to G^d cells -> samples of a chunk, which the backward sorts and walks at a time; for more,
#: MOST_CHUNK. Few enough that a tile of their rows of grad_y stays in the L2 cache; so many that
#: a cell's samples make up for reading its rows of the tables.
CHUNKS = {26**2: 16384}
MOST_CHUNK = 32768

#: A digit of the sort's keys has at most so many values, and fewer if their counts would take more
#: than half of the shared memory.
MOST_DIGITS = 2048

#: Samples of a stretch, which one warp walks: the most, if half of the chunk lies in each half of
#: the grid; and the fewest, to which stretches are cut where there would be too few blocks.
STRETCH, SHORTEST_STRETCH = 512, 32


@dataclass(frozen=True)
class BackwardPlan:
    """The launches of a backward, repeated for every chunk of the batch.

    Parameters
    ----------
    chunk : int
        Samples of a chunk; the last may have fewer.
    parts : int
        Blocks of the walk that share the samples of a half, for a pair and a tile of outputs.
    tiles : int
        Tiles of outputs.
    sort, walk : Launch
    slots : Launch or None
        None where the gradient of the tables is not needed.
    slopes : Launch or None
        None where the gradient of x is not needed or there is only one tile.
    """

    chunk: int
    parts: int
    tiles: int
    sort: Launch
    walk: Launch
    slots: Launch | None
    slopes: Launch | None

    @property
    def launches(self) -> tuple[Launch, ...]:
        every = (self.sort, self.walk, self.slots, self.slopes)
        return tuple(launch for launch in every if launch is not None)


def plan_backward(
    layer: LayerShape,
    batch: int,
    device: Device,
    *,
    direction: bool,
    of_layer: bool,
    need_x: bool,
    need_tables: bool,
    aligned: bool,
) -> BackwardPlan:
    """Return the launches for ``batch`` samples.

    Parameters
    ----------
    layer, batch, device
    direction, of_layer : bool
        Whether it is the backward of the layer's derivative along a direction, and whether of the
        layer itself; the double backward is both.
    need_x, need_tables : bool
        Which gradients are needed.
    aligned : bool
        Whether all arrays begin at multiples of 16 bytes.
    """
    outputs = next(
        (n for limit, n in WALK_OUTPUTS.items() if layer.out_features <= limit),
        MOST_WALK_OUTPUTS[layer.real],
    )
    tiles = ceil_div(layer.out_features, LANES * outputs)
    most_chunk = next((size for limit, size in CHUNKS.items() if layer.cells <= limit), MOST_CHUNK)
    # The sort reads no tables: one source serves all their dtypes.
    of_x = replace(layer, table=layer.real)
    in_vectors = aligned and layer.dimension == 2 and layer.in_features % 2 == 0
    sort, most_chunk = _sort(of_x, most_chunk, device, in_vectors)
    chunk = min(max(batch, 1), most_chunk)

    wide = layer.real == "float64" or direction
    paired = device.capability >= PAIRED_OPERATIONS
    usual = WALK_BLOCKS if outputs == MOST_WALK_OUTPUTS[layer.real] else NARROW_WALK_BLOCKS
    wanted = max(usual - wide - paired, FEWEST_WALK_BLOCKS)
    resident = _resident(wanted, WALK_BYTES[layer.dimension, layer.real], device)
    halves = layer.dimension if need_tables else 1
    parts = _parts(chunk, layer.pairs * tiles, resident * device.multiprocessors, halves)
    walk = make_source(
        "backward.cu",
        layer,
        WARPS=WALK_WARPS,
        BLOCKS=resident,
        LANE_OUTPUTS=outputs,
        VECTOR=vector_outputs(layer, aligned, outputs),
        SEVERAL_TILES=tiles > 1,
        DIRECTION=direction,
        LAYER=of_layer,
        X_GRADIENT=need_x,
        TABLES_GRADIENT=need_tables,
    )
    slot_tasks = layer.pairs * ceil_div(layer.out_features, LANES * WALK_WARPS)
    slope_tasks = ceil_div(chunk, LANES) * ceil_div(layer.pairs, LANES // layer.dimension)
    return BackwardPlan(
        chunk,
        parts,
        tiles,
        launch_tasks("sort_by_cell", layer.pairs if batch else 0, sort, _sort_bytes(sort, chunk)),
        launch_tasks("backward", tiles * layer.pairs * parts, walk),
        launch_tasks("backward_slots", slot_tasks, walk) if need_tables else None,
        launch_tasks("backward_slopes", slope_tasks, walk) if need_x and tiles > 1 else None,
    )


def _resident(wanted: int, shared_bytes: int, device: Device) -> int:
    """Return how many of ``wanted`` blocks the shared memory of a multiprocessor has room for."""
    fitting = (device.shared_bytes + RESERVED_BYTES) // (shared_bytes + RESERVED_BYTES)
    return max(min(wanted, fitting), 1)


def _parts(chunk: int, walks: int, resident: int, halves: int) -> int:
    """Return how many blocks share the samples of each of the ``walks``, one per pair and tile.

    ``resident`` blocks run at a time. The smallest candidate gives work to all of these, and a warp
    at most ``STRETCH`` samples; the largest is twice the smallest. Of all candidates, the one with
    which the blocks are idle least is chosen. None leaves a warp fewer than ``SHORTEST_STRETCH``
    samples.
    """
    samples = ceil_div(chunk, halves)  # half of them lie in cells of even rows, or all
    most = ceil_div(samples, WALK_WARPS * SHORTEST_STRETCH)
    fewest = min(max(ceil_div(samples, WALK_WARPS * STRETCH), resident // walks), most)
    possible = range(fewest, min(2 * fewest, most) + 1)
    return min(possible, key=lambda parts: ceil_div(walks * parts, resident) / parts)


def _sort(layer: LayerShape, chunk: int, device: Device, in_vectors: bool) -> tuple[Source, int]:
    """Return the source of the sort, and as much of ``chunk`` as it has shared memory for.

    ``in_vectors`` tells whether the two coordinates of a pair can be read as one vector.
    """
    cells = layer.cells
    most_digits = min(MOST_DIGITS, device.shared_bytes // (2 * _bytes_per_digit()))
    passes = next(n for n in range(1, 32) if most_digits**n >= cells)
    digits = next(
        n for n in range(round(cells ** (1 / passes)) - 1, cells + 1) if n**passes >= cells
    )
    source = make_source(
        "sort.cu", layer, WARPS=SORT_WARPS, IN_VECTORS=in_vectors, PASSES=passes, DIGITS=digits
    )
    while _sort_bytes(source, chunk) > device.shared_bytes:
        chunk //= 2
    return source, chunk


def _bytes_per_digit() -> int:
    return 2 * SORT_WARPS + 4


def _sort_bytes(source: Source, chunk: int) -> int:
    """Return the bytes of shared memory of a block, as listed in sort.cu."""
    constants = dict(source.constants)
    digits = 2 * ceil_div(constants["DIGITS"], 2)
    key = 2 if source.num_grids**source.dimension <= 65536 else 4
    places = 2 * min(constants["PASSES"], 2)
    return digits * _bytes_per_digit() + 4 * constants["WARPS"] + chunk * (key + places)


def pull_back(
    grad_y: Array,
    x: Array,
    ggx: Array | None,
    direction_tables: Array | None,
    layer_tables: Array | None,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Overwrite ``grad_x`` [B, I] and ``grad_tables`` [P, S, S, O], where not None.

    They are the gradients for ``grad_y`` [B, O] of a sum of two functions: the layer with
    ``layer_tables``, where not None, and the derivative along ``ggx`` [B, I] of the layer with
    ``direction_tables``, where these are not None. With both kinds of tables, ``grad_tables`` is
    the gradient of ``direction_tables``, as the double backward needs it.
    """
    tables = direction_tables if direction_tables is not None else layer_tables
    assert tables is not None
    choices = (
        ggx is not None,
        layer_tables is not None,
        grad_x is not None,
        grad_tables is not None,
        aligned(x, grad_y, direction_tables, layer_tables, grad_tables),
    )
    run = ready(_PullBack, layer_shape(x, tables), len(x), *choices)
    if grad_tables is not None:
        clear(grad_tables)
    run(grad_y, x, ggx, direction_tables, layer_tables, grad_x, grad_tables)


class _PullBack:
    """A backward, chunk by chunk of the batch: sort, walk, add up the slots and the slopes."""

    def __init__(
        self,
        device: Device,
        layer: LayerShape,
        batch: int,
        direction: bool,
        of_layer: bool,
        need_x: bool,
        need_tables: bool,
        all_aligned: bool,
    ) -> None:
        plan = plan_backward(
            layer,
            batch,
            device,
            direction=direction,
            of_layer=of_layer,
            need_x=need_x,
            need_tables=need_tables,
            aligned=all_aligned,
        )
        pairs, outputs = layer.pairs, layer.out_features
        number, index = ITEM_BYTES[layer.real], 4
        records, corners = pairs * plan.chunk, 2**layer.dimension
        # Cells that share rows of the tables' gradient lie in different halves, see backward.cu;
        # those of one variable are a single half.
        halves = range(layer.dimension) if need_tables else (2,)
        self._workspace = Workspace(
            records * 2 * index,  # sorted samples
            records * layer.dimension * number,  # fractions
            pairs * index,  # evens
            plan.tiles * records * layer.dimension * number if plan.slopes else 0,
            len(halves) * pairs * plan.parts * corners * outputs * number if plan.slots else 0,
        )
        sizes = (layer.in_features, outputs)
        self._chunks = []
        for first in range(0, batch, plan.chunk):
            count = min(plan.chunk, batch - first)
            span = (first, count, plan.chunk)
            self._chunks.append(
                (
                    Kernel(plan.sort, *span, layer.in_features),
                    [Kernel(plan.walk, *span, plan.parts, half, *sizes) for half in halves],
                    Kernel(plan.slots, count, plan.chunk, plan.parts, *sizes)
                    if plan.slots
                    else None,
                    Kernel(plan.slopes, *span, *sizes) if plan.slopes else None,
                )
            )

    def __call__(
        self,
        grad_y: Array,
        x: Array,
        ggx: Array | None,
        direction_tables: Array | None,
        layer_tables: Array | None,
        grad_x: Array | None,
        grad_tables: Array | None,
    ) -> None:
        *records, slopes, slots = self._workspace.parts(x)
        sorted_samples, _, evens = records
        given = (grad_y, ggx, direction_tables, layer_tables, *records)
        results = (grad_x if slopes is None else slopes, grad_tables, slots)
        for sort, walks, add_slots, add_slopes in self._chunks:
            sort(x, *records)
            for walk in walks:
                walk(*given, *results)
            if add_slots:
                add_slots(sorted_samples, evens, grad_tables, slots)
            if add_slopes:
                add_slopes(slopes, grad_x)
