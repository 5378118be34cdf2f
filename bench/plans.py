"""``python -m bench.plans``: times every way in which the CUDA engine could compute a forward.

The engine chooses the fastest by a model, ``cuda_engine/forward_model.py``. This command shows the
time of each way on the first GPU beside the model's prediction, so whether the choice was right.
Times are times of the device by CUDA events, packing included; what a call reads may be in the L2
cache. Every point is written as soon as it is measured, and a later run resumes from the file.
"""

import argparse
import statistics
import sys
from itertools import product
from pathlib import Path
from typing import Any

import cupy

from lmkan_cupy.cuda_engine import forward_pass, kernel_cache
from lmkan_cupy.cuda_engine.plan import layer_shape
from lmkan_cupy.installation import cuda_obstacle

from .harness import results_file
from .harness.cuda_device import OUT_OF_MEMORY, describe, device_stopwatch, free_memory
from .harness.workload import make_workload

REPEATS = 5
MAX_SAMPLES_WITHOUT_RING = 2**14

NAMES = ("in_features", "out_features", "num_grids", "batch")
POINTS = [
    *((512, 512, *rest) for rest in product((8, 16, 26, 40), (2**10, 2**14, 2**17, 2**20))),
    *((128, 128, *rest) for rest in product((8, 26), (2**10, 2**14, 2**17, 2**20))),
    (32, 1024, 16, 2**17),
    (129, 65, 16, 2**17),
]


def measure(point: tuple[int, int, int, int]) -> list[dict[str, Any]]:
    """Time each plan; all must give the same results up to rounding."""
    workload = make_workload(*point, cupy)
    layer = layer_shape(workload.x, workload.tables)
    batch, device = len(workload.x), kernel_cache.device()
    chosen = forward_pass.plan_forward(layer, batch, device, direction=False, aligned=True)
    expected = None
    results = []
    for plan in forward_pass.candidates(layer, batch, device, direction=False, aligned=True):
        if not plan.ring and batch > MAX_SAMPLES_WITHOUT_RING and plan != chosen:
            continue  # takes up to ten times as long
        y = cupy.full_like(workload.grad_y, cupy.nan)
        call = forward_pass.by_plan(plan, layer, batch)
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
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="the file to write, and to resume from; by default the newest "
        "bench/results/plans-<device>-*.json of the same commit, versions and GPU, or a new one",
    )
    arguments = parser.parse_args()
    if obstacle := cuda_obstacle():
        sys.exit(obstacle)
    circumstances = results_file.circumstances() | {"gpu": describe()}
    circumstances["versions"] |= {"cupy": cupy.__version__}
    try:
        path, results = results_file.resumed("plans", circumstances, arguments.json)
    except ValueError as error:
        sys.exit(str(error))
    not_measured = results.setdefault("not measured", [])
    done = [tuple(each[name] for name in NAMES) for each in results["cases"] + not_measured]
    for point in POINTS:
        if point in done:
            continue
        sizes = dict(zip(NAMES, point, strict=True))
        try:
            measured = measure(point)
        except OUT_OF_MEMORY as error:
            not_measured.append(sizes | {"why": str(error)})
            print(*point, "not measured:", error)
        else:
            results["cases"].append(sizes | {"plans": measured})
            chosen = next(each for each in measured if each["chosen"])
            for name, each in ("chosen", chosen), ("fastest", measured[0]):
                print(*point, name, each)
        free_memory()
        results_file.write(path, results)
    print(path)


if __name__ == "__main__":
    main()
