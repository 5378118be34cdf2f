"""How long a forward takes, from what limits it: a prediction, never a measurement.

All work of a multiprocessor is counted in its clocks. The rates below are fitted to times of the
kernels on an H100 (``bench/results/kernels-h100-2026-11-22.json``). Of other devices only clock,
memory and the number of multiprocessors are known here: they are taken to do as much per clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plan import Device, Layer, Ring

#: What holds the main kernel once tiles are there, by dtype of the tiles, and its clocks of 32
#: samples and a pair, by chunks of 16 bytes in a row. Shared memory needs 16 for each chunk (4
#: rows, 32 lanes, 128 bytes per clock) and 4 for the knots; arithmetic of half tables takes longer.
HELD_BY = {"float32": "shared memory", "float16": "issue", "bfloat16": "issue"}
CLOCKS = {
    "float32": {8: 142, 4: 75, 2: 48},
    "float16": {8: 166, 4: 102, 2: 76},
    "bfloat16": {8: 215, 4: 121, 2: 82},
}

#: Bytes per clock and multiprocessor that reach shared memory from the L2 cache: bulk copies, and
#: cp.async by every thread, whose writes also take shared memory's time.
BULK_BYTES = 24.0
CHUNK_BYTES = 13.7
WRITTEN_BYTES = 128

#: Bytes per clock and multiprocessor that forward.cu reads, through L1 and L2.
GLOBAL_BYTES = 30.5
#: Assumed: clocks until a warp of forward.cu has the rows of a pair, warps of a multiprocessor.
GLOBAL_LATENCY = 500
GLOBAL_WARPS = 32

#: Clocks of a block before its first tile and after its last; seconds of a launch.
BLOCK_CLOCKS = 28000
LAUNCH_SECONDS = 4e-6

#: Shares of the memory's nominal rate that reading reaches, and packing.
MEMORY_SHARE = 0.9
PACK_SHARE = 0.6


@dataclass(frozen=True)
class Prediction:
    """Seconds of a call by what they are spent on.

    Parameters
    ----------
    bounds : dict of str to float
        What the main kernel would take if nothing but this limited it: shared memory, L2, memory,
        issue, latency.
    others : float
        Packing, adding parts and launching.
    """

    bounds: dict[str, float]
    others: float

    @property
    def seconds(self) -> float:
        return max(self.bounds.values()) + self.others

    @property
    def bound(self) -> str:
        """What holds the main kernel."""
        return max(self.bounds, key=self.bounds.__getitem__)


def ring(layer: Layer, batch: int, device: Device, plan: Ring) -> Prediction:
    """Predict a forward from shared memory."""
    slices, rest = divmod(batch, plan.slice_size)
    waves = slices * _waves(plan.slice_size, plan, device) + _waves(rest, plan, device)
    warps = plan.samples // 32
    bulk = plan.packed and device.capability >= 90
    written = 0 if bulk else plan.tile_bytes / WRITTEN_BYTES
    of_pair = {
        HELD_BY[layer.table]: warps * CLOCKS[layer.table][plan.chunks] + written,
        "L2": plan.tile_bytes / (BULK_BYTES if bulk else CHUNK_BYTES),
    }
    x_bytes = 8 * layer.pairs * batch
    y_bytes = 4 * layer.out_features * batch
    table_bytes = plan.tile_bytes * plan.tiles * layer.pairs
    # A bunch of tiles at a time: while it lasts, its tables are found in L2.
    table_reads = 1 if table_bytes <= device.l2_bytes else -(-batch // plan.slice_size)
    bounds = {
        name: waves * (plan.run * clocks + BLOCK_CLOCKS) / device.clock_hz
        for name, clocks in of_pair.items()
    }
    read = table_reads * table_bytes + plan.bunches * x_bytes
    bounds["memory"] = (read + y_bytes) / (MEMORY_SHARE * device.memory_rate)
    moved = 2 * x_bytes
    launches = 2 * -(-batch // plan.slice_size)
    if plan.packed:
        moved += 2 * table_bytes
        launches += 1
    if plan.splits > 1:
        moved += 2 * plan.splits * y_bytes
        launches += -(-batch // plan.slice_size)
    packing = moved / (PACK_SHARE * device.memory_rate)
    return Prediction(bounds, packing + launches * LAUNCH_SECONDS)


def from_global(
    layer: Layer, batch: int, device: Device, table_item: int, split: int
) -> Prediction:
    """Predict a forward whose tables, of ``table_item`` bytes per value, are in global memory.

    ``split`` warps share the pairs of a sample.
    """
    rows = 4 * table_item * batch * layer.pairs * layer.out_features
    rounds = -(-batch * layer.tiles * split // (GLOBAL_WARPS * device.multiprocessors))
    table_bytes = table_item * layer.pairs * (layer.num_grids + 1) ** 2 * layer.out_features
    beyond_l2 = max(0.0, 1 - device.l2_bytes / table_bytes)
    bounds = {
        "L2": rows / (GLOBAL_BYTES * device.multiprocessors * device.clock_hz),
        "latency": rounds * -(-layer.pairs // split) * GLOBAL_LATENCY / device.clock_hz,
        "memory": beyond_l2 * rows / (MEMORY_SHARE * device.memory_rate),
    }
    return Prediction(bounds, LAUNCH_SECONDS)


def _waves(samples: int, plan: Ring, device: Device) -> int:
    """Return how often all multiprocessors get a block."""
    return -(-plan.blocks(samples) // device.multiprocessors)
