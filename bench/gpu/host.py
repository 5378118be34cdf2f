"""The host's time for a small layer, for the same in a CUDA graph, and for a process to start."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cupy

import lmkan_cupy

from .. import host_cost
from ..harness.workload import make_workload

ROOT = Path(__file__).parents[2]

#: The layer, and its batch.
SIZES = {"in_features": 128, "out_features": 128, "num_grids": 26, "batch": 1024}

#: Forwards in one graph.
IN_GRAPH = 20


def measure() -> dict[str, float]:
    """Return microseconds per call on the host and in a graph, and milliseconds of a start."""
    per_call = host_cost.measure("cuda", tuple(SIZES.values()), seconds=3)
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (_seconds_of_start(cache) for _ in range(2))
    return {
        **{f"{name}, host us": taken for name, taken in per_call.items()},
        "forward in a graph, us": _microseconds_in_a_graph(),
        "cold start, ms": 1e3 * cold,
        "warm start, ms": 1e3 * warm,
    }


def _microseconds_in_a_graph() -> float:
    workload = make_workload(**SIZES, xp=cupy)
    cupy.cuda.Device().synchronize()
    memory, stream = cupy.cuda.MemoryPool(), cupy.cuda.Stream(non_blocking=True)
    with cupy.cuda.using_allocator(memory.malloc), stream:
        expected = lmkan_cupy.forward(workload.x, workload.tables)
        result = cupy.empty_like(expected)
        stream.begin_capture()
        for _ in range(IN_GRAPH):
            lmkan_cupy.forward(workload.x, workload.tables, out=result)
        graph = stream.end_capture()
        graph.launch(stream)
        begin, end = cupy.cuda.Event(), cupy.cuda.Event()
        begin.record(stream)
        graph.launch(stream)
        end.record(stream)
        end.synchronize()
        if not (result == expected).all():
            raise AssertionError("forward in a graph: the result differs from that of a call")
    return float(1e3 * cupy.cuda.get_elapsed_time(begin, end) / IN_GRAPH)


def _seconds_of_start(cache: str) -> float:
    """Return the seconds from the start of a new process to its first result."""
    shape = {name: size for name, size in SIZES.items() if name != "batch"}
    code = (
        "import cupy, lmkan_cupy as l;"
        f"t = l.init_tables(**{shape}, rng=0, xp=cupy);"
        f"x = cupy.zeros(({SIZES['batch']}, {SIZES['in_features']}), 'float32');"
        "l.forward(x, t).sum().item()"
    )
    environment = {**os.environ, "CUPY_CACHE_DIR": cache}
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    return time.perf_counter() - start
