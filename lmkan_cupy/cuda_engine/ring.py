"""The ring of tiles in shared memory that forward_ring.cu reads: its shapes, and what fits."""

from dataclasses import dataclass

from .plan import ITEM_BYTES, PAIRED_OPERATIONS, Device, Launch, LayerShape, ceil_div


@dataclass(frozen=True)
class RingShape:
    """The width of a tile's rows, and the block that goes with it.

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
        return 16 * self.chunks // ITEM_BYTES[table]


#: The wider the rows, the less there is to do besides reading them; the narrower, the larger the
#: grids that fit and the more samples share a tile. Each fills the registers of a multiprocessor.
RINGS = (RingShape(8, 2, 16), RingShape(4, 4, 16), RingShape(2, 6, 16))

#: Tiles in shared memory: one is read while another is filled; more than three gain nothing.
FEWEST_STAGES, MOST_STAGES = 2, 3

#: The shapes for tiles of half tables, and for both of these from PAIRED_OPERATIONS on: conversions
#: take more registers.
HALF_RINGS = {
    "float16": (RingShape(8, 1, 16), RingShape(4, 2, 16), RingShape(2, 4, 16)),
    "bfloat16": (RingShape(8, 1, 16), RingShape(4, 2, 16), RingShape(2, 3, 16)),
}
PAIRED_HALF_RINGS = (RingShape(8, 1, 8), RingShape(4, 2, 12), RingShape(2, 3, 12))

#: Bytes of shared memory besides the stages: 16 copies of two numbers per interval; the task.
KNOT_BYTES = 128
TASK_BYTES = 128


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
        The kernels besides the main one; the last adds the results of the splits.
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
        return ceil_div(samples, self.samples) * self.samples

    def blocks(self, samples: int) -> int:
        """Return the blocks of the main kernel for a slice of ``samples``."""
        return self.padded(samples) // self.samples * self.tiles * self.splits


def ring_shapes(table: str, device: Device) -> tuple[RingShape, ...]:
    """Return the shapes of a ring for tiles of a dtype."""
    if table == "float32":
        return RINGS
    return PAIRED_HALF_RINGS if device.capability >= PAIRED_OPERATIONS else HALF_RINGS[table]


def most_stages(layer: LayerShape, shape: RingShape, device: Device) -> int:
    """Return how many tiles of a shape fit into shared memory, at most ``MOST_STAGES``."""
    left = device.shared_bytes - TASK_BYTES - KNOT_BYTES * layer.num_grids
    return min(left // (tile_bytes(layer, shape) + 16), MOST_STAGES)


def ring_bytes(layer: LayerShape, shape: RingShape, stages: int) -> int:
    """Return the dynamic shared memory of a block: tiles with their barriers, and the knots."""
    return stages * (tile_bytes(layer, shape) + 16) + KNOT_BYTES * layer.num_grids


def tile_bytes(layer: LayerShape, shape: RingShape) -> int:
    """Return the bytes of a tile; with two chunks in a row, nodes stand in blocks of 2 x 2."""
    knots = layer.num_grids + 1
    rows = (knots + knots % 2) ** 2 if shape.chunks == 2 else knots**2
    return rows * shape.chunks * 16
