"""Forward and backward of layers of one shape, ours and others'."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import cupy
import ml_dtypes
import torch

from lmkan_cupy.cuda_engine import kernel_cache
from lmkan_cupy.cuda_engine.forward_pass import plan_forward
from lmkan_cupy.cuda_engine.plan import ITEM_BYTES, LayerShape

from ..harness import authors, peers, reference
from ..harness.cuda_device import device_stopwatch, free_memory, watched_clocks
from ..harness.layer_timings import LayerTimings, time_layers
from ..harness.results_file import OURS
from ..harness.workload import make_workload

#: Our layers by name, with the dtypes of their tables.
TABLES = {OURS: "float32", "float16 tables": "float16", "bfloat16 tables": ml_dtypes.bfloat16}

#: Where layers of plain torch operations are timed: up to so many samples, since more take
#: gigabytes, and on one grid, since it hardly matters to them and each takes torch long to compile.
MOST_SAMPLES_OF_TORCH = 2**14
GRIDS_OF_TORCH = 16

#: Time, and least and largest number of rounds, of the timings of one shape.
SECONDS, ROUNDS = 0.5, (3, 30)


class Point(NamedTuple):
    """The sizes of a layer and its batch."""

    in_features: int
    out_features: int
    num_grids: int
    batch: int

    def __str__(self) -> str:
        return "{} x {}, G = {}, B = {}".format(*self)


def points(full: bool) -> list[Point]:
    batches = [2**20, 2**17, 2**14, 2**10]
    shapes, grids = [(512, 512), (128, 128)], [16, 26, 8]
    if full:
        shapes, grids = [*shapes, (32, 1024), (129, 65)], [8, 12, 16, 20, 26, 40]
    found = [Point(*shape, grid, batch) for batch, shape, grid in product(batches, shapes, grids)]
    return found if full else [*found, Point(512, 512, 12, 2**20)]  # it has targets


@dataclass(frozen=True)
class Measured:
    """The measurements at one point.

    Attributes
    ----------
    timings : LayerTimings
    limits : dict
        For our layers, see :func:`limits`.
    clocks : dict
        In MHz, while the layers were timed.
    does_not_run : dict
        Layers that could not be timed, and why.
    """

    timings: LayerTimings
    limits: Mapping[str, Mapping[str, Any]]
    clocks: Mapping[str, Mapping[str, int]]
    does_not_run: Mapping[str, str]

    def json(self) -> dict[str, Any]:
        return self.timings.json() | {
            "limits": self.limits,
            "clocks": self.clocks,
            "does not run": self.does_not_run,
        }


def measure(point: Point, with_authors: bool) -> Measured:
    """Check all layers that have tables, then time all layers in turn."""
    workload = make_workload(*point, cupy)
    layers, does_not_run = {}, {}
    for name, dtype in TABLES.items():
        rounded = workload.with_tables(dtype)
        layers[name] = peers.lmkan(rounded)
        expected = reference.of_layer(rounded)
        expected.check_layer(name, layers[name])
        if name == OURS:
            layers |= _plain_torch(point, workload, expected)
    del expected
    free_memory()
    layers |= {
        "nn.Linear": peers.linear(workload),
        "nn.Linear, TF32": peers.tf32_linear(workload),
        "nn.Linear, bfloat16": peers.linear(workload, torch.bfloat16),
    }
    if with_authors:
        try:
            sizes = authors.fastest_sizes(workload, device_stopwatch)
            layers["authors"] = authors.layer(workload, sizes)
        except authors.DoesNotRun as error:
            does_not_run["authors"] = str(error)
        free_memory()
    timed = {name: replace(layer, stopwatch=device_stopwatch) for name, layer in layers.items()}
    with watched_clocks() as clocks:
        timings = LayerTimings(*point, time_layers(timed, SECONDS, ROUNDS))
    return Measured(
        timings,
        {
            name: limits(point, dtype, timings.milliseconds(name, "forward"))
            for name, dtype in TABLES.items()
        },
        clocks,
        does_not_run,
    )


def _plain_torch(
    point: Point, workload: Any, expected: reference.LayerReference
) -> dict[str, peers.TimedLayer]:
    if point.batch > MOST_SAMPLES_OF_TORCH or point.num_grids != GRIDS_OF_TORCH:
        return {}
    bag, torch_engine = peers.embedding_bag(workload), peers.plain_torch(workload)
    expected.check_layer("embedding_bag", bag, has_grad_x=False)
    expected.check_layer('engine="torch"', torch_engine)
    return {"embedding_bag": bag, 'engine="torch"': torch_engine}


def limits(point: Point, dtype: Any, milliseconds: float) -> dict[str, Any]:
    """Return the prediction of the engine's model for a forward, and how near to its limit it came.

    The limit of a forward through shared memory is the time that shared memory takes to deliver the
    four values of every function and sample, at 128 bytes per clock and the device's highest clock;
    it is given as a share of the time measured.
    """
    device = kernel_cache.device()
    table = cupy.dtype(dtype).name
    layer = LayerShape(*point[:3], "float32", table)
    plan = plan_forward(layer, point.batch, device, direction=False, aligned=True)
    found = {
        "kernel": plan.kernel.kernel,
        "predicted ms": round(1e3 * plan.prediction.seconds, 4),
        "held by": plan.prediction.bound,
    }
    if plan.ring is None:
        return found
    read = 4 * ITEM_BYTES[table] * point.batch * layer.pairs * layer.out_features
    limit = read / 128 / device.multiprocessors / device.clock_hz
    return found | {"share of the shared-memory limit": round(1e3 * limit / milliseconds, 4)}
