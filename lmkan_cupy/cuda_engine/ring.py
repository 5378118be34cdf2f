"""The ring of tiles in shared memory that forward_ring.cu reads: its shapes, and what fits."""

from dataclasses import dataclass

from .plan import ITEM_BYTES, PAIRED_OPERATIONS, Device, Launch, LayerShape, ceil_div


@dataclass(frozen=True)
class RingShape:
    """The width of a tile's rows, and the block that goes with it.

    Parameters
    ----------
    chunks : int
        16-byte chunks of a row: 4 outputs each, or 8 of half tables.
    samples : int
        Samples of a thread; along a direction, half as many.
    warps : int
        Warps of a block; each block has a multiprocessor to itself.
    """

    chunks: int
    samples: int
    warps: int

    def outputs(self, table: str) -> int:
        """Return the outputs of a row of tables, whose dtype is called ``table``."""
        return 16 * self.chunks // ITEM_BYTES[table]


#: The shapes for tiles in float32. The wider the rows, the less there is to do besides reading
#: them; the narrower, the larger the grids that fit and the more samples share a tile. Each shape
#: fills the registers of a multiprocessor.
RINGS = (RingShape(8, 2, 16), RingShape(4, 4, 16), RingShape(2, 6, 16))

#: Tiles in shared memory: one is read while another is filled; more than three gain nothing.
FEWEST_STAGES, MOST_STAGES = 2, 3

#: The shapes for tiles in half precision, and those for both dtypes from PAIRED_OPERATIONS on.
#: Conversions to float32 take registers, so there are fewer samples or warps.
HALF_RINGS = {
    "float16": (RingShape(8, 1, 16), RingShape(4, 2, 16), RingShape(2, 4, 16)),
    "bfloat16": (RingShape(8, 1, 16), RingShape(4, 2, 16), RingShape(2, 3, 16)),
}
PAIRED_HALF_RINGS = (RingShape(8, 1, 8), RingShape(4, 2, 12), RingShape(2, 3, 12))

#: Bytes of shared memory besides the stages: for each interval, 16 copies of two numbers; and for
#: the task of a block.
KNOT_BYTES = 128
TASK_BYTES = 128


@dataclass(frozen=True)
class Ring:
    """How forward_ring.cu gets tables and samples: sizes, and the kernels that pack and add.

    Parameters
    ----------
    chunks, stages : int
        16-byte chunks of a row, tiles in shared memory.
    samples, outputs, tiles, bunches : int
        Samples of a block, outputs of a tile, number of tiles, number of bunches of tiles.
    tile_bytes : int
        Bytes of a tile in shared memory, and in packed tables.
    slice_size : int
        Samples of a launch, in whole blocks; the last may have fewer, see :meth:`padded`.
    run, splits : int
        Pairs of a block, and how many blocks share the pairs of a sample and a tile.
    packed : bool
        Whether the tables are packed first.
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
        """Return ``samples`` rounded up to whole blocks; packed x ends with zeros up to there."""
        return ceil_div(samples, self.samples) * self.samples

    def blocks(self, samples: int) -> int:
        """Return the blocks of the main kernel for a slice of ``samples``."""
        return self.padded(samples) // self.samples * self.tiles * self.splits


def ring_shapes(table: str, device: Device) -> tuple[RingShape, ...]:
    """Return the possible shapes of a ring for a dtype of tiles."""
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
    """Return the bytes of a tile; with two chunks in a row, nodes lie in blocks of 2 x 2."""
    knots = layer.num_grids + 1
    rows = (knots + knots % 2) ** 2 if shape.chunks == 2 else knots**2
    return rows * shape.chunks * 16
