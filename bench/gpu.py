"""``python -m bench.gpu``: the CUDA engine checked, then timed beside torch, on the first GPU.

First the tests that need a GPU run, then a few of them under compute-sanitizer where it is
installed: nothing is timed if one fails. Times are those of the device, by CUDA events around a
call that was queued while the device was still busy, so the host's share is not in them unless the
host is slower than the device. What a call reads may be in the L2 cache, as in a network.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from itertools import product
from pathlib import Path
from typing import Any

import cupy
import torch
from rich.console import Console

from lmkan_cupy.configuration import cuda_obstacle

from . import peers, record
from .cases import LEGEND, OURS, Case, show_case, time_layers
from .workloads import check, make_workload

ROOT = Path(__file__).parent.parent

FEATURES = (128, 512)
GRIDS = (8, 16, 26)
BATCHES = (2**10, 2**14, 2**17)
LARGEST_EMBEDDING_BAG = 2**14  # samples; the indices and weights of more take gigabytes

#: Tools of compute-sanitizer. Its initcheck is not among them: tests fill all memory with NaN, and
#: so find what was read before it was written.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED = "TestEveryRowOfThePlan and oracle and float32-float32"

#: Cycles for which the device is kept busy while the host queues a call: about a millisecond.
BUSY_CYCLES = 2_000_000


def run_pytest(options: list[str], under: list[str]) -> dict[str, Any]:
    """Run the tests that need a GPU, ``under`` another program or none.

    Returns how they ended and after how many seconds.
    """
    start = time.perf_counter()
    command = [*under, sys.executable, "-m", "pytest", "-q", "-m", "gpu", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, sep="\n")
        sys.exit(f"nothing was timed: {' '.join(command)} failed")
    return {
        "result": done.stdout.strip().splitlines()[-1],
        "seconds": round(time.perf_counter() - start, 1),
    }


def correctness(console: Console) -> dict[str, Any]:
    """Run tests and sanitizers, show how each ended, and return it."""
    runs: dict[str, tuple[list[str], list[str]]] = {"tests": ([], [])}
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in SANITIZERS:
            runs[tool] = (["-k", SANITIZED], [sanitizer, f"--tool={tool}", "--error-exitcode=9"])
    else:
        console.print("compute-sanitizer: not installed")
    results = {}
    for name, (options, under) in runs.items():
        with console.status(name):
            results[name] = run_pytest(options, under)
        console.print(f"{name}: {results[name]['result']}")
    return results


def device_stopwatch(call: Callable[..., Any], *arguments: object) -> tuple[float, Any]:
    """Return the seconds that the device took for what a call started, and its result."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(BUSY_CYCLES)
    begin.record()
    result = call(*arguments)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3, result


def run_case(features: int, num_grids: int, batch: int, seconds: float) -> Case:
    workload = make_workload(features, features, num_grids, batch, cupy)
    check(workload)
    layers = {OURS: peers.lmkan(workload), "nn.Linear": peers.linear(workload)}
    if batch <= LARGEST_EMBEDDING_BAG:
        layers["embedding_bag"] = peers.embedding_bag(workload)
    timed = {name: replace(layer, stopwatch=device_stopwatch) for name, layer in layers.items()}
    return Case(features, features, num_grids, batch, time_layers(timed, seconds))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--json", type=Path, metavar="PATH", help="default: bench/results/gpu-<device>-<date>.json"
    )
    arguments = parser.parse_args()
    if obstacle := cuda_obstacle():
        sys.exit(obstacle)

    console = Console(highlight=False)
    console.width = max(console.width, 132)  # also where the output goes to a file
    now = datetime.now(timezone.utc)
    circumstances = record.circumstances() | {"gpu": record.gpu_circumstances()}
    circumstances["versions"] |= {"cupy": cupy.__version__}
    for name, value in circumstances.items():
        console.print(f"{name}: {value}")

    checked = correctness(console)

    torch.backends.cuda.matmul.allow_tf32 = False
    console.print(f"\n{LEGEND}\nnn.Linear: in float32, without TF32")
    cases: list[Case] = []
    for features, num_grids, batch in product(FEATURES, GRIDS, BATCHES):
        with console.status(f"{features} x {features}, G = {num_grids}, B = {batch}"):
            case = run_case(features, num_grids, batch, seconds=1.0)
            cupy.get_default_memory_pool().free_all_blocks()
            torch.cuda.empty_cache()
        show_case(console, case)
        cases.append(case)

    circumstances["gpu after"] = record.gpu_circumstances()
    device = re.sub(r"[^a-z0-9]+", "-", circumstances["gpu"]["name"].lower())
    default = ROOT / f"bench/results/gpu-{device.removeprefix('nvidia-')}-{now:%Y-%m-%d}.json"
    results = {
        "bench": "gpu",
        "circumstances": circumstances,
        "correctness": checked,
        "cases": [case.json() for case in cases],
    }
    record.write(arguments.json or default, results)


if __name__ == "__main__":
    main()
