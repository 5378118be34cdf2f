"""A device of every architecture that the CUDA engine supports, with what its plans depend on."""

import itertools

from lmkan_cupy.cuda_engine.plan import Device, LayerShape
from lmkan_cupy.cuda_engine.ring import RingShape, most_stages

DEVICES = {
    "sm_75": Device(75, 40, 64 * 1024),
    "sm_80": Device(80, 108, 163 * 1024),
    "sm_86": Device(86, 82, 99 * 1024),
    "sm_89": Device(89, 128, 99 * 1024),
    "sm_90": Device(90, 132, 227 * 1024),
    "sm_100": Device(100, 148, 227 * 1024),
    "sm_120": Device(120, 170, 99 * 1024),
}

MULTIPROCESSOR_KB = {75: 64, 80: 164, 86: 100, 89: 100, 90: 228, 100: 228, 120: 100}
RESERVED_KB = {75: 0, 80: 1, 86: 1, 89: 1, 90: 1, 100: 1, 120: 1}
"""Capability -> shared memory of a multiprocessor, and what the hardware takes of it per block:
CUDA C++ Programming Guide, technical specifications per compute capability."""


def largest_grid(table: str, shape: RingShape, device: Device, stages: int = 2) -> int:
    """The most intervals with which so many tiles fit into the shared memory of a block."""

    def fits(num_grids: int) -> bool:
        layer = LayerShape(512, 512, num_grids, "float32", table)
        return most_stages(layer, shape, device) >= stages

    return next(n for n in itertools.count(3) if not fits(n + 1))
