"""``python -m bench.plans``: every way in which the CUDA engine could compute a forward, timed.

The plan takes the fastest by a model, ``cuda_engine/forward_model.py``. This shows what each would
have taken on the first GPU beside the model's prediction, and so whether the choice was right.
Device times by CUDA events, packing included; what a call reads may be in the L2 cache.
"""

import statistics
import sys
from itertools import product
from typing import Any

import cupy
from rich.console import Console

from lmkan_cupy import cuda_engine, sigma_grid
from lmkan_cupy.configuration import cuda_obstacle
from lmkan_cupy.cuda_engine import kernel_cache, launch_plan

from . import record
from .device import device_stopwatch, free_memory
from .workloads import make_workload

REPEATS = 5
MOST_SAMPLES_WITHOUT = 2**14

NAMES = ("in_features", "out_features", "num_grids", "batch")
POINTS = [
    *((512, 512, *rest) for rest in product((8, 16, 26, 40), (2**10, 2**14, 2**17, 2**20))),
    *((128, 128, *rest) for rest in product((8, 26), (2**10, 2**14, 2**17, 2**20))),
    (32, 1024, 16, 2**17),
    (129, 65, 16, 2**17),
]


def measure(point: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Time each plan; all must give the same results to rounding."""
    workload = make_workload(*point, cupy)
    layer = launch_plan.layer(workload.x, workload.tables)
    knots = sigma_grid(workload.num_grids)
    batch, device = len(workload.x), kernel_cache.device()
    chosen = launch_plan.forward(layer, batch, device, direction=False, aligned=True)
    expected = None
    results = []
    for plan in launch_plan.candidates(layer, batch, device, direction=False, aligned=True):
        if not plan.ring and batch > MOST_SAMPLES_WITHOUT and plan != chosen:
            continue  # takes up to ten times as long
        y = cupy.full_like(workload.grad_y, cupy.nan)
        call = cuda_engine.by_plan(plan, knots, layer, batch)
        arrays = (workload.x, None, workload.tables, y)
        call(*arrays)
        expected = y if expected is None else expected
        error, size = abs(y - expected).max(), abs(expected).max()  # on the device: gigabytes
        if not error <= 1e-5 * size:
            raise AssertionError(f"{plan} is off by {error}, of {size}")
        seconds = [device_stopwatch(call, *arrays)[0] for _ in range(REPEATS)]
        ring = plan.ring
        results.append(
            {
                "chosen": plan == chosen,
                "ms": round(1e3 * statistics.median(seconds), 4),
                "predicted ms": round(1e3 * plan.prediction.seconds, 4),
                "held by": plan.prediction.bound,
                "chunks": ring.chunks if ring else None,
                "stages": ring.stages if ring else None,
                "packed": ring.packed if ring else None,
                "splits": ring.splits if ring else None,
            }
        )
    return sorted(results, key=lambda each: each["ms"])


def main() -> None:
    if obstacle := cuda_obstacle():
        sys.exit(obstacle)
    console = Console(highlight=False)
    gpu = record.gpu_circumstances()
    path = record.gpu_path("plans", gpu)
    results = {"bench": "plans", "circumstances": record.circumstances() | {"gpu": gpu}}
    results["cases"] = []
    for point in POINTS:
        measured = measure(point)
        free_memory()
        results["cases"].append(dict(zip(NAMES, point, strict=True)) | {"plans": measured})
        record.write(path, results)
        chosen = next(each for each in measured if each["chosen"])
        for name, each in ("chosen", chosen), ("fastest", measured[0]):
            console.print(*point, name, each)
    console.print(path)


if __name__ == "__main__":
    main()
