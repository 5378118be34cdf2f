"""``python -m bench.gpu``: the CUDA engine checked, then timed beside others, on the first GPU.

First the tests that need a GPU run, then a few of them under compute-sanitizer where it is
installed: nothing is timed if one fails. Times of layers are those of the device, by CUDA events
around a call that was queued while the device was still busy, so the host's share is not in them
unless the host is slower than the device. What a call reads may be in the L2 cache, as in networks.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import cupy
import ml_dtypes
import torch
from lmkan_cupy.adapters.torch import LMKANLinear
from rich.console import Console

import lmkan_cupy
from lmkan_cupy.configuration import cuda_obstacle
from lmkan_cupy.cuda_engine import kernel_cache, launch_plan

from . import gpu_targets, peers, record, training_step
from .cases import LEGEND, Case, show, show_case, time_layers
from .device import device_stopwatch, free_memory
from .record import OURS
from .verdicts import verdict_rows
from .workloads import check, make_workload

ROOT = Path(__file__).parent.parent

#: Tools of compute-sanitizer. Its initcheck is not among them: tests fill all memory with NaN, and
#: so find what was read before it was written.
SANITIZERS = ("memcheck", "racecheck", "synccheck")
SANITIZED = "(TestEveryRowOfThePlan and oracle and float32-float32) or (every_ring and B1100)"

#: Where layers of plain torch operations are timed: up to so many samples, for more take gigabytes,
#: and for one grid, for it hardly matters to them and torch compiles each for a while.
MOST_SAMPLES_OF_TORCH = 2**14
GRIDS_OF_TORCH = 16

#: The layer and batch of which the host's time and starting are measured.
SMALL = {"in_features": 128, "out_features": 128, "num_grids": 26}
SMALL_BATCH = 1024


class Point(NamedTuple):
    """What a case is of."""

    in_features: int
    out_features: int
    num_grids: int
    batch: int


def points(full: bool) -> list[Point]:
    batches = [2**20, 2**17, 2**14, 2**10]
    shapes, grids = [(512, 512), (128, 128)], [16, 26, 8]
    if full:
        shapes, grids = [*shapes, (32, 1024), (129, 65)], [8, 12, 16, 20, 26, 40]
    return [Point(*shape, grid, batch) for batch, shape, grid in product(batches, shapes, grids)]


# --- Correctness ----------------------------------------------------------------------------------


def run_pytest(options: list[str], under: list[str]) -> dict[str, Any]:
    """Run the tests that need a GPU, ``under`` another program or none.

    Warnings of libraries in other versions than those tested are no errors here.

    Returns how they ended, after how many seconds, and what they wrote if they failed.
    """
    start = time.perf_counter()
    command = [*under, sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    written = done.stdout.strip().splitlines() or [f"exit status {done.returncode}"]
    return {
        "result": next((line for line in reversed(written) if " in " in line), written[-1]),
        "seconds": round(time.perf_counter() - start, 1),
        "failed": "\n".join([*written, done.stderr]) if done.returncode else None,
    }


def correctness(console: Console) -> dict[str, Any]:
    """Run tests and sanitizers side by side, show how each ended, and return it."""
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if find_spec("xdist") else []
    runs: dict[str, tuple[list[str], list[str]]] = {"tests": (workers, [])}
    if sanitizer := shutil.which("compute-sanitizer"):
        for tool in SANITIZERS:
            runs[tool] = (["-k", SANITIZED], [sanitizer, f"--tool={tool}", "--error-exitcode=9"])
    else:
        console.print("compute-sanitizer: not installed")
    with console.status("tests"), ThreadPoolExecutor() as pool:
        results = dict(
            zip(runs, pool.map(lambda run: run_pytest(*run), runs.values()), strict=True)
        )
    for name, result in results.items():
        console.print(f"{name}: {result['result']}, {result['seconds']} s")
    if failed := [name for name, result in results.items() if result["failed"]]:
        for name in failed:
            print(name, results[name]["failed"], sep="\n")
        sys.exit(f"nothing was timed: {', '.join(failed)} failed")
    return results


# --- Layers ---------------------------------------------------------------------------------------


def run_case(point: Point, with_authors: bool, seconds: float) -> Case:
    workload = make_workload(*point, cupy)
    check(workload)
    layers = {
        OURS: peers.lmkan(workload),
        "float16 tables": peers.lmkan(workload, "float16"),
        "bfloat16 tables": peers.lmkan(workload, ml_dtypes.bfloat16),
        "nn.Linear": peers.linear(workload),
        "nn.Linear, TF32": peers.tf32_linear(workload),
        "nn.Linear, bfloat16": peers.linear(workload, torch.bfloat16),
    }
    if point.batch <= MOST_SAMPLES_OF_TORCH and point.num_grids == GRIDS_OF_TORCH:
        layers["embedding_bag"] = peers.embedding_bag(workload)
        layers['engine="torch"'] = peers.plain_torch(workload)
    if with_authors and (sizes := peers.authors_sizes(workload, device_stopwatch)):
        layers["authors"] = peers.authors(workload, sizes)
    timed = {name: replace(layer, stopwatch=device_stopwatch) for name, layer in layers.items()}
    return Case(*point, time_layers(timed, seconds))


def forward_limits(point: Point, milliseconds: float) -> dict[str, Any]:
    """Return what the engine's model predicts, and the share of shared memory's limit reached.

    The gather form reads 16 bytes of shared memory per function and sample, of 128 per clock.
    """
    device = kernel_cache.device()
    layer = launch_plan.Layer(*point[:3], "float32", "float32")
    plan = launch_plan.forward(layer, point.batch, device, direction=False, aligned=True)
    evaluations = point.batch * layer.pairs * layer.out_features
    limit = evaluations * 16 / 128 / device.multiprocessors / device.clock_hz
    return {
        "kernel": plan.kernel.kernel,
        "predicted ms": 1e3 * plan.prediction.seconds,
        "held by": plan.prediction.bound,
        "share of the shared-memory limit": 1e3 * limit / milliseconds,
    }


# --- The host -------------------------------------------------------------------------------------


def median_seconds(call: Callable[[], object], calls: int = 200) -> float:
    """Median seconds until a call returns, while the device is not waited for."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    torch.cuda.synchronize()
    return statistics.median(taken)


def seconds_of_start(cache: str) -> float:
    """Seconds of a new process from its start to the first result, imports and all."""
    code = (
        "import cupy, lmkan_cupy as l;"
        f"t = l.init_tables(**{SMALL}, rng=0, xp=cupy);"
        f"l.forward(cupy.zeros(({SMALL_BATCH}, {SMALL['in_features']}), 'float32'), t).sum().item()"
    )
    environment = {**os.environ, "CUPY_CACHE_DIR": cache}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - start


def measure_host() -> dict[str, float]:
    """Microseconds per call on the host and in a graph, milliseconds from the start."""
    workload = make_workload(**SMALL, batch=SMALL_BATCH, xp=cupy)
    x, tables, grad_y = workload.x, workload.tables, workload.grad_y
    layer = LMKANLinear(**SMALL, device="cuda")
    x_tensor = torch.from_dlpack(x)
    with torch.no_grad():
        of_tensors = median_seconds(lambda: layer(x_tensor))

    torch.cuda.synchronize()
    memory, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(memory.malloc), stream:
        lmkan_cupy.forward(x, tables)
        stream.begin_capture()
        for _ in range(20):
            lmkan_cupy.forward(x, tables)
        graph = stream.end_capture()
        graph.launch(stream)
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (seconds_of_start(cache) for _ in range(2))
    return {
        "forward of arrays, host us": 1e6 * median_seconds(lambda: lmkan_cupy.forward(x, tables)),
        "backward of arrays, host us": 1e6
        * median_seconds(lambda: lmkan_cupy.backward(grad_y, x, tables)),
        "LMKANLinear, host us": 1e6 * of_tensors,
        "forward in a graph, us": 1e3 * cupy.cuda.get_elapsed_time(begin, end) / 20,
        "cold start, ms": 1e3 * cold,
        "warm start, ms": 1e3 * warm,
    }


# --- The penalty ---------------------------------------------------------------------------------


def measure_penalty() -> dict[str, dict[str, float]]:
    """Milliseconds of the penalty of a layer 512 x 512, by G, beside a copy of its tables."""
    results = {}
    for num_grids in (8, 16, 26, 40):
        tables = lmkan_cupy.init_tables(512, 512, num_grids, rng=0, xp=cupy)
        other = cupy.empty_like(tables)

        def milliseconds(call: Callable[..., object], *arguments: object) -> float:
            taken = [device_stopwatch(call, *arguments)[0] for _ in range(20)]
            return 1e3 * statistics.median(taken)

        results[str(num_grids)] = {
            "with gradient, ms": milliseconds(lmkan_cupy.hessian_penalty_and_grad, tables),
            "alone, ms": milliseconds(lmkan_cupy.hessian_penalty, tables),
            "copy of the tables, ms": milliseconds(cupy.copyto, other, tables),
        }
        free_memory()
    return results


# --- Training ------------------------------------------------------------------------------------


def measure_training(with_authors: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Return milliseconds and peak memory of training steps, by shape and layer."""
    return {
        f"{features} x {features}": training_step.measure(
            features, MOST_SAMPLES_OF_TORCH, with_authors
        )
        for features in (128, 512)
    }


# --- The command ----------------------------------------------------------------------------------


def show_numbers(console: Console, title: str, results: Any) -> None:
    """Show numbers by name, or such mappings by their names."""
    if isinstance(next(iter(results.values())), float):
        rows = [(name, f"{number:.4g}") for name, number in results.items()]
        show(console, title, ["", ""], rows)
    else:
        for name, inner in results.items():
            show_numbers(console, f"{title}, {name}", inner)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="default: bench/results/gpu-<device>-<date>.json; what it has is not repeated",
    )
    parser.add_argument("--full", action="store_true", help="all shapes and grids: about an hour")
    parser.add_argument(
        "--peer", type=Path, metavar="PATH", help="a folder with the authors' package lmKAN"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if obstacle := cuda_obstacle():
        sys.exit(obstacle)
    if arguments.peer:
        sys.path.insert(0, str(arguments.peer))

    console = Console(highlight=False)
    console.width = max(console.width, 132)  # also where the output goes to a file
    circumstances = record.circumstances() | {"gpu": record.gpu_circumstances()}
    circumstances["versions"] |= {"cupy": cupy.__version__}
    for name, value in circumstances.items():
        console.print(f"{name}: {value}")
    path = arguments.json or record.gpu_path("gpu", circumstances["gpu"])

    results = record.read(path)
    commit = circumstances["commit"]
    if results and results["circumstances"]["commit"] != commit:
        sys.exit(f"{path} is of another commit: take another --json")
    results = {"bench": "gpu", "cases": [], **results, "circumstances": circumstances}
    if "correctness" not in results:
        results["correctness"] = correctness(console)
        record.write(path, results)

    torch.backends.cuda.matmul.allow_tf32 = False
    for name, measure in (
        ("host", measure_host),
        ("penalty", measure_penalty),
        ("training", lambda: measure_training(arguments.peer is not None)),
    ):
        if name not in results:
            results[name] = measure()
            record.write(path, results)
        show_numbers(console, name, results[name])

    console.print(f"\n{LEGEND}\nnn.Linear: in float32 and without TF32 unless said")
    done = [tuple(case[name] for name in Point._fields) for case in results["cases"]]
    for point in points(arguments.full):
        if point in done:
            continue
        with console.status(str(point)):
            case = run_case(point, arguments.peer is not None, seconds=0.5)
            free_memory()
        show_case(console, case)
        limits = forward_limits(point, case.milliseconds(OURS, "forward"))
        console.print(limits)
        results["cases"].append(case.json() | {"forward": limits})
        record.write(path, results)

    circumstances["gpu after"] = record.gpu_circumstances()
    judged = gpu_targets.verdicts(results)
    show(console, "Targets", ("", "target", "measured", "met"), verdict_rows(judged))
    results["targets"] = [asdict(verdict) for verdict in judged]
    record.write(path, results)


if __name__ == "__main__":
    main()
