"""How long a forward takes, from what limits it: a prediction, never a measurement.

The work of a multiprocessor is counted in clock cycles, "clocks" for short. The rates below are
fitted to times of the kernels on an H100 (``bench/results/kernels-h100-2026-11-22.json``). Of other
devices only clock rate, memory and the number of multiprocessors are known: they are assumed to do
as much per clock.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .plan import ITEM_BYTES, LANES, Device, LayerShape, NetworkShape, ceil_div
from .ring import Ring

#: dtype of the tiles -> what limits the main kernel once they are in shared memory ("issue" is the
#: rate at which instructions start), and its clocks for 32 samples and a pair, by 16-byte chunks of
#: a row. Reading shared memory takes 16 clocks for each chunk (4 rows, 32 lanes, 128 bytes per
#: clock) and 4 for the knots; the arithmetic on half tables takes longer than that.
LIMITED_BY = {"float32": "shared memory", "float16": "issue", "bfloat16": "issue"}
CLOCKS = {
    "float32": {8: 142, 4: 75, 2: 48},
    "float16": {8: 166, 4: 102, 2: 76},
    "bfloat16": {8: 215, 4: 121, 2: 82},
}

#: Bytes per clock and multiprocessor that reach shared memory from the L2 cache by bulk copies, and
#: by cp.async of every thread; bytes per clock that cp.async writes there, which delays reading.
BULK_BYTES = 24.0
CHUNK_BYTES = 13.7
WRITTEN_BYTES = 128

#: Bytes per clock and multiprocessor that forward.cu reads, through L1 and L2.
GLOBAL_BYTES = 30.5
#: Assumed, not fitted: clocks until a warp of forward.cu has the rows of a pair, and warps of a
#: multiprocessor.
GLOBAL_LATENCY = 500
GLOBAL_WARPS = 32

#: Of network.cu, whose tiles have rows of so many chunks -> how often reads of 8 lanes meet in a
#: bank, on average over random cells. Each time, a read takes 4 clocks.
NETWORK_WAYS = {8: 1.0, 4: 1.94, 2: 2.39, 1: 2.57}
#: Assumed, not fitted: clocks in which 32 samples' instructions for a chunk start; and clocks that
#: a warp waits to be located in a pair, and for the rows of each chunk.
NETWORK_ISSUE = {"float32": 5, "float64": 12, "float16": 17, "bfloat16": 17}
NETWORK_LOCATED, NETWORK_LATENCY = 200, 100
#: Clocks besides reading rows, as in CLOCKS.
KNOT_CLOCKS = 14
#: Assumed: clocks for 32 samples, an input of a linear layer and a chunk, which all lanes share.
LINEAR_CLOCKS = 2

#: Time of a backward in x alone over that of a forward, with an H100's 512 inputs, 512 outputs and
#: G = 16. Narrow layers, whose sort counts for more, take longer.
BACKWARD_OF_FORWARD = 1.09

#: Clocks of a block before its first tile and after its last; seconds of a launch.
BLOCK_CLOCKS = 28000
LAUNCH_SECONDS = 4e-6

#: Shares of the memory's nominal rate that reading and packing reach.
MEMORY_SHARE = 0.9
PACK_SHARE = 0.6


@dataclass(frozen=True)
class Prediction:
    """The seconds of a call, by what they are spent on.

    Parameters
    ----------
    bounds : dict of str to float
        What the main kernel would take if only one thing limited it, by its name: shared memory,
        L2, memory, issue or latency.
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
        """What limits the main kernel."""
        return max(self.bounds, key=self.bounds.__getitem__)


def from_shared(layer: LayerShape, batch: int, device: Device, ring: Ring) -> Prediction:
    """Predict a forward whose tables are read from a ring in shared memory."""
    full, rest = divmod(batch, ring.slice_size)
    waves = full * _waves(ring.slice_size, ring, device) + _waves(rest, ring, device)
    warps = ring.samples // LANES
    bulk = ring.packed and device.capability >= 90
    written = 0 if bulk else ring.tile_bytes / WRITTEN_BYTES
    of_pair = {
        LIMITED_BY[layer.table]: warps * CLOCKS[layer.table][ring.chunks] + written,
        "L2": ring.tile_bytes / (BULK_BYTES if bulk else CHUNK_BYTES),
    }
    x_bytes = 8 * layer.pairs * batch
    y_bytes = 4 * layer.out_features * batch
    table_bytes = ring.tile_bytes * ring.tiles * layer.pairs
    slices = ceil_div(batch, ring.slice_size)
    # The tables of a bunch stay in L2 while its samples read them: a slice reads memory once.
    table_reads = 1 if table_bytes <= device.l2_bytes else slices
    bounds = {
        name: waves * (ring.run * clocks + BLOCK_CLOCKS) / device.clock_hz
        for name, clocks in of_pair.items()
    }
    read = table_reads * table_bytes + ring.bunches * x_bytes
    bounds["memory"] = (read + y_bytes) / (MEMORY_SHARE * device.memory_rate)
    moved = 2 * x_bytes
    launches = 2 * slices
    if ring.packed:
        moved += 2 * table_bytes
        launches += 1
    if ring.splits > 1:
        moved += 2 * ring.splits * y_bytes
        launches += slices
    packing = moved / (PACK_SHARE * device.memory_rate)
    return Prediction(bounds, packing + launches * LAUNCH_SECONDS)


def from_global(layer: LayerShape, batch: int, device: Device, split: int) -> Prediction:
    """Predict a forward whose tables are read in global memory.

    ``split`` warps share the pairs of a sample.
    """
    item = ITEM_BYTES[layer.table]
    rows = 2**layer.dimension * item * batch * layer.pairs * layer.out_features
    rounds = ceil_div(batch * layer.tiles * split, GLOBAL_WARPS * device.multiprocessors)
    table_bytes = item * layer.pairs * layer.nodes * layer.out_features
    beyond_l2 = max(0.0, 1 - device.l2_bytes / table_bytes)
    bounds = {
        "L2": rows / (GLOBAL_BYTES * device.multiprocessors * device.clock_hz),
        "latency": rounds * ceil_div(layer.pairs, split) * GLOBAL_LATENCY / device.clock_hz,
        "memory": beyond_l2 * rows / (MEMORY_SHARE * device.memory_rate),
    }
    return Prediction(bounds, LAUNCH_SECONDS)


def of_network(
    shape: NetworkShape,
    tiles: Sequence[tuple[int, int, bool]],
    batch: int,
    device: Device,
    *,
    samples: int,
    table_bytes: int,
    resident: bool,
    gradient: bool,
) -> Prediction:
    """Predict a network in one kernel.

    Parameters
    ----------
    shape : NetworkShape
    tiles : sequence of (int, int, bool)
        Pairs and 16-byte chunks of each tile of each layer; or of a linear layer, as the last says,
        inputs instead of pairs.
    batch, device
    samples : int
        Samples of a block at a time.
    table_bytes : int
        Of all tables in shared memory.
    resident : bool
        Whether a block copies the tables once instead of once for each ``samples``.
    gradient : bool
        Whether it goes back through all layers, too, for which it reads as many rows again.
    """
    ways = 2 if gradient else 1
    tasks = ceil_div(ceil_div(batch, samples), device.multiprocessors)
    of_warp = ways * sum(
        terms * chunks * LINEAR_CLOCKS
        if is_linear
        else terms
        * (chunks * max(16 * NETWORK_WAYS[chunks], NETWORK_ISSUE[shape.table]) + KNOT_CLOCKS)
        for terms, chunks, is_linear in tiles
    )
    waits = ways * sum(
        terms * (NETWORK_LATENCY * chunks + (0 if is_linear else NETWORK_LOCATED))
        for terms, chunks, is_linear in tiles
    )
    copied = (1 if resident else ways * tasks) * table_bytes / CHUNK_BYTES
    moved = ways * ITEM_BYTES[shape.real] * batch * (shape.features[0] + shape.features[-1])
    bounds = {
        "shared memory": tasks * samples // LANES * of_warp / device.clock_hz,
        "latency": tasks * waits / device.clock_hz,
        "memory": moved / (MEMORY_SHARE * device.memory_rate),
    }
    return Prediction(bounds, copied / device.clock_hz + LAUNCH_SECONDS)


def linear(layer: LayerShape, batch: int, device: Device) -> Prediction:
    """Predict a linear layer by itself: as if only memory limited it."""
    moved = ITEM_BYTES[layer.real] * batch * (layer.in_features + layer.out_features)
    return Prediction({"memory": moved / (MEMORY_SHARE * device.memory_rate)}, LAUNCH_SECONDS)


def by_layers(
    shape: NetworkShape,
    of_layers: Iterable[Prediction],
    batch: int,
    device: Device,
    *,
    gradient: bool,
) -> float:
    """Predict the seconds of a network layer by layer: its forwards, and a cut before each.

    With a ``gradient`` rather too few: the backwards as if layers were wide.
    """
    moved = 2 * ITEM_BYTES[shape.real] * batch * sum(shape.features[:-1])
    cuts = len(shape.layers) * LAUNCH_SECONDS + moved / (MEMORY_SHARE * device.memory_rate)
    forwards = cuts + sum(each.seconds for each in of_layers)
    return (1 + BACKWARD_OF_FORWARD) * forwards if gradient else forwards


def _waves(samples: int, ring: Ring, device: Device) -> int:
    """Return how often each multiprocessor gets a block."""
    return ceil_div(ring.blocks(samples), device.multiprocessors)
