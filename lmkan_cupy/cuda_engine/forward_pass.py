"""The forward, of the layer or of its derivative along a direction: plans, workspace, launches.

Tables are read from global memory (``forward.cu``), or packed and then read from a ring of tiles in
shared memory (``forward_ring.cu``): whichever the model of :mod:`.forward_model` says is faster.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ..array_library import Array
from . import forward_model
from .forward_model import Prediction
from .launch import Kernel, Workspace, aligned, ready
from .plan import (
    ITEM_BYTES,
    LANES,
    MOST_BLOCKS,
    Device,
    Launch,
    LayerShape,
    ceil_div,
    launch_tasks,
    layer_shape,
    make_source,
    vector_outputs,
)
from .ring import (
    FEWEST_STAGES,
    Ring,
    RingShape,
    most_stages,
    ring_bytes,
    ring_shapes,
    tile_bytes,
)

#: Warps of a block of forward.cu and of pack.cu.
WARPS, PACK_WARPS = 4, 8

#: Warps that share the pairs of a sample in forward.cu, and how many pairs it takes for that.
PAIR_SPLIT, SPLIT_PAIRS = 4, 8

#: Bytes of packed x in a slice, about. A slice is the samples of one launch of forward_ring.cu.
SLICE_BYTES = 2**28

#: Tiles of outputs in a bunch. All samples go through one bunch before the next begins. A bunch is
#: small, so that its tables of all pairs stay in L2 while block after block reads them; it has
#: several tiles, so that x is not read from memory for each of them.
BUNCH = 4

#: Ways to split the pairs over blocks where a batch has too few samples for all multiprocessors.
SPLITS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class ForwardPlan:
    """The launches of a forward; without a ``ring``, ``kernel`` reads tables in global memory."""

    kernel: Launch
    ring: Ring | None
    prediction: Prediction

    @property
    def launches(self) -> tuple[Launch, ...]:
        ring = self.ring
        return (self.kernel, *((ring.pack_tables, ring.pack_x, ring.total) if ring else ()))


def plan_forward(
    layer: LayerShape, batch: int, device: Device, *, direction: bool, aligned: bool
) -> ForwardPlan:
    """Return the launches for ``batch`` samples: the fastest of all candidates, by the model.

    Parameters
    ----------
    layer, batch, device
    direction : bool
        Whether to compute the layer's derivative along a direction instead of the layer.
    aligned : bool
        Whether the tables begin at a multiple of 16 bytes.
    """
    possible = candidates(layer, batch, device, direction, aligned)
    return min(possible, key=lambda each: each.prediction.seconds)


def candidates(
    layer: LayerShape, batch: int, device: Device, direction: bool, aligned: bool
) -> list[ForwardPlan]:
    """Return every plan for a forward: first from global memory, then through rings.

    The arguments are those of :func:`plan_forward`.
    """
    split = PAIR_SPLIT if layer.pairs >= SPLIT_PAIRS else 1
    source = make_source(
        "forward.cu",
        layer,
        WARPS=WARPS,
        DIRECTION=direction,
        LANE_OUTPUTS=layer.lane_outputs,
        VECTOR=vector_outputs(layer, aligned, layer.lane_outputs),
        SPLIT=split,
    )
    blocks = ceil_div(batch, WARPS // split) * layer.tiles
    prediction = forward_model.from_global(layer, batch, device, split)
    found = [ForwardPlan(launch_tasks("forward", blocks, source), None, prediction)]
    if layer.real == "float32" and layer.dimension == 2 and batch:
        found += _through_rings(layer, batch, device, direction, aligned)
    return found


def _through_rings(
    layer: LayerShape, batch: int, device: Device, direction: bool, aligned: bool
) -> Iterator[ForwardPlan]:
    """Yield the plans with a ring: shapes that fit, tables packed or not, pairs split or not."""
    in_tiles = _in_tiles(layer, direction)
    runs = dict.fromkeys(ceil_div(layer.pairs, splits) for splits in SPLITS)
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
                    break  # a shorter run takes even more blocks
                yield plan


def _is_possible(plan: ForwardPlan, batch: int) -> bool:
    """Tell whether a plan can be launched.

    A grid must have room for its blocks, and the pairs of a batch of several slices are not split.
    """
    ring = plan.ring
    whole = ring is None or ring.splits == 1 or batch <= ring.slice_size
    return whole and plan.kernel.blocks <= MOST_BLOCKS


def _in_tiles(layer: LayerShape, direction: bool) -> LayerShape:
    """Return the layer with the dtype of the values in tiles.

    A derivative along a direction takes differences of neighbouring values: for it, half tables are
    widened to float32.
    """
    half = layer.table != layer.real
    return replace(layer, table=layer.real) if direction and half else layer


def through_ring(
    layer: LayerShape,
    batch: int,
    device: Device,
    direction: bool,
    packed: bool,
    shape: RingShape,
    stages: int,
    run: int,
) -> ForwardPlan:
    """Return the plan with a ring for given choices.

    Parameters
    ----------
    layer, batch, device, direction
        As in :func:`plan_forward`.
    packed : bool
        Whether the tables are packed first.
    shape : RingShape
    stages : int
        Tiles in shared memory, at least ``FEWEST_STAGES``.
    run : int
        Pairs of a block.
    """
    splits = ceil_div(layer.pairs, run)
    # A direction takes registers too, which leaves room for half as many samples.
    of_thread = shape.samples // 2 if direction else shape.samples
    samples = LANES * shape.warps * of_thread
    in_tiles = _in_tiles(layer, direction)
    outputs = shape.outputs(in_tiles.table)
    tiles = ceil_div(layer.out_features, outputs)
    # A slice has whole waves (a block for each multiprocessor) and is as close as possible to
    # SLICE_BYTES. A batch of up to 5/4 of that is one slice.
    blocks = SLICE_BYTES / (8 * layer.pairs) * tiles / samples
    waves = max(1, round(blocks / device.multiprocessors))
    groups = max(1, min(waves * device.multiprocessors, MOST_BLOCKS) // (tiles * splits))
    all_groups = ceil_div(batch, samples)
    if 4 * all_groups <= 5 * groups:
        groups = all_groups
    main = make_source(
        "forward_ring.cu",
        in_tiles,
        WARPS=shape.warps,
        DIRECTION=direction,
        PACKED=packed,
        WIDENED=False,
        BUNCH=BUNCH,
        CHUNKS=shape.chunks,
        SAMPLES=of_thread,
        STAGES=stages,
    )
    pack = make_source(
        "pack.cu", layer, WARPS=PACK_WARPS, CHUNKS=shape.chunks, WIDENED=in_tiles is not layer
    )
    slice_size = groups * samples
    ring = Ring(
        chunks=shape.chunks,
        stages=stages,
        samples=samples,
        outputs=outputs,
        tiles=tiles,
        bunches=ceil_div(tiles, BUNCH),
        tile_bytes=tile_bytes(layer, shape),
        slice_size=slice_size,
        run=run,
        splits=splits,
        packed=packed,
        pack_tables=launch_tasks("pack_tables", layer.pairs * tiles, pack),
        pack_x=launch_tasks("pack_x", ceil_div(layer.pairs, LANES) * slice_size // LANES, pack),
        total=launch_tasks(
            "forward_ring_sum", ceil_div(slice_size * layer.out_features, samples), main
        ),
    )
    kernel = Launch(
        main,
        "forward_ring",
        ring.blocks(slice_size),
        LANES * shape.warps,
        ring_bytes(layer, shape, stages),
    )
    return ForwardPlan(kernel, ring, forward_model.from_shared(in_tiles, batch, device, ring))


def evaluate(x: Array, tables: Array, ggx: Array | None, accumulate: bool, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the layer of ``x`` [B, I] and ``tables`` [P, S, S, O].

    Where ``ggx`` [B, I] is not None, it is the layer's derivative along ``ggx`` instead. With
    ``accumulate``, the result is added to ``out``.
    """
    choices = (ggx is not None, accumulate, aligned(tables), aligned(out))
    ready(_evaluation, layer_shape(x, tables), len(x), *choices)(x, ggx, tables, out)


def _evaluation(
    device: Device,
    layer: LayerShape,
    batch: int,
    direction: bool,
    accumulate: bool,
    tables_aligned: bool,
    out_aligned: bool,
) -> Callable[..., None]:
    plan = plan_forward(layer, batch, device, direction=direction, aligned=tables_aligned)
    return by_plan(plan, layer, batch, direction, accumulate, out_aligned)


def by_plan(
    plan: ForwardPlan,
    layer: LayerShape,
    batch: int,
    direction: bool = False,
    accumulate: bool = False,
    out_aligned: bool = True,
) -> Callable[..., None]:
    """Return a function of ``x, ggx, tables, out`` that carries out a plan."""
    if plan.ring:
        return ByRing(plan, layer, batch, direction, accumulate, out_aligned)
    return Kernel(plan.kernel, batch, layer.in_features, layer.out_features, accumulate)


class ByRing:
    """A forward with a ring: packs what its kernel reads, then runs it slice by slice.

    Parameters
    ----------
    plan, layer, batch
    direction, accumulate : bool
        Whether it is along a direction, and whether it is added to the output.
    out_aligned : bool
        Whether the output begins at a multiple of 16 bytes.
    """

    def __init__(
        self,
        plan: ForwardPlan,
        layer: LayerShape,
        batch: int,
        direction: bool,
        accumulate: bool,
        out_aligned: bool,
    ) -> None:
        assert plan.ring
        ring, pairs, outputs = plan.ring, layer.pairs, layer.out_features
        whole = ring.splits == 1
        number = ITEM_BYTES[layer.real]
        self._workspace = Workspace(
            pairs * ring.tiles * ring.tile_bytes if ring.packed else 0,
            packed_x := pairs * ring.slice_size * 2 * number,
            packed_x if direction else 0,
            0 if whole else ring.splits * batch * outputs * number,
        )
        self._pack_tables = Kernel(ring.pack_tables, pairs, outputs) if ring.packed else None
        vectors = outputs % 4 == 0 and (out_aligned or not whole)
        self._slices = []
        for first in range(0, batch, ring.slice_size):
            count = min(ring.slice_size, batch - first)
            stride = ring.padded(count)
            sizes = (count, stride, pairs, ring.run, outputs)
            launch = replace(plan.kernel, blocks=ring.blocks(count))
            self._slices.append(
                (
                    slice(first, first + count),
                    Kernel(ring.pack_x, count, stride, layer.in_features),
                    Kernel(launch, *sizes, vectors, accumulate and whole),
                    None if whole else Kernel(ring.total, count * outputs, ring.splits, accumulate),
                )
            )

    def __call__(self, x: Array, ggx: Array | None, tables: Array, out: Array) -> None:
        packed_tables, packed_x, packed_ggx, parts = self._workspace.parts(x)
        if self._pack_tables:
            self._pack_tables(tables, packed_tables)
            tables = packed_tables
        for rows, pack_x, run, total in self._slices:
            pack_x(_rows(x, rows), packed_x)
            if ggx is not None:
                pack_x(_rows(ggx, rows), packed_ggx)
            y = _rows(out, rows)
            target = y if parts is None else parts
            run(packed_x, packed_ggx, tables, target)
            if total:
                total(parts, y)


def _rows(array: Array, rows: slice) -> Array:
    """Return some rows of an array; CuPy takes microseconds even for a slice of all rows."""
    return array if len(array) == rows.stop - rows.start else array[rows]
