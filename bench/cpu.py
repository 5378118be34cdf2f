"""``python -m bench.cpu``: the CPU engine beside torch and the KAN layers on PyPI.

Convolutions are timed beside the same layer of an array of all windows.

The results of layers with tables are checked before the layers are timed. All layers of one shape
are timed in turn, in one run; ratios are medians over the rounds, with quartiles. Every layer has
the same number of threads, that of Numba (NUMBA_NUM_THREADS).
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from rich.console import Console

import lmkan_cupy

from .harness import peers, reference, results_file
from .harness.console_tables import LEGEND, console, show_table, show_timings
from .harness.convolutions import (
    SHAPES,
    check_convolutions,
    show_convolutions,
    time_convolutions,
)
from .harness.layer_timings import PASSES, LayerTimings, time_layers
from .harness.results_file import OURS
from .harness.targets import CheckedTarget, target_rows
from .harness.timing import Ratio, interleave, ratio, stopwatch
from .harness.workload import Workload, make_workload

BATCH = 8192


def fastest_kan(timings: LayerTimings, pass_: str) -> str | None:
    """Return the fastest KAN layer from PyPI, None if none is installed."""
    kans = (layer for layer in timings.seconds if layer in peers.KAN_LAYERS)
    return min(kans, key=lambda layer: timings.milliseconds(layer, pass_), default=None)


def time_shape(features: int, num_grids: int, kans: Iterable[str], seconds: float) -> LayerTimings:
    """Check the layers with tables, then time all layers of one shape."""
    workload = make_workload(features, features, num_grids, BATCH)
    layers = {OURS: peers.lmkan(workload), "embedding_bag": peers.embedding_bag(workload)}
    expected = reference.of_layer(workload)
    for name, layer in layers.items():
        expected.check_layer(name, layer, has_grad_x=name == OURS)
    layers |= {
        "nn.Linear": peers.linear(workload),
        **{package: peers.kan(package, workload) for package in kans},
    }
    return LayerTimings(features, features, num_grids, BATCH, time_layers(layers, seconds))


def check_ratios(timings: LayerTimings) -> list[CheckedTarget]:
    """Check how many times as long as ours the others take."""

    def at_least(factor: float, layer: str | None, pass_: str) -> CheckedTarget:
        what = f"{timings}, {pass_}: {layer or 'a KAN layer from PyPI'} / ours"
        target = f">= {factor}"
        if layer is None:
            return CheckedTarget(what, target, "not measured", None)
        measured = timings.ratio(layer, pass_)
        return CheckedTarget(what, target, str(measured), measured.median >= factor)

    return [
        at_least({128: 1.3, 512: 2.7}[timings.in_features], "embedding_bag", "forward"),
        at_least(1.5, fastest_kan(timings, "forward"), "forward"),
        at_least(1.0, fastest_kan(timings, "both"), "both"),
    ]


def time_per_evaluation(workloads: Mapping[int, Workload], seconds: float) -> dict[int, float]:
    """Return the median picoseconds of our forward per inner function and sample."""

    def measure(workload: Workload) -> tuple[float]:
        calls = max(1, 2 * BATCH // len(workload.x))  # else the time is that of waking the threads
        taken, _ = stopwatch(
            lambda: [lmkan_cupy.forward(workload.x, workload.tables) for _ in range(calls)]
        )
        return (taken / (calls * workload.evaluations),)

    measurements = {key: partial(measure, workload) for key, workload in workloads.items()}
    times = interleave(measurements, seconds=seconds)
    return {key: 1e12 * float(np.median(taken)) for key, taken in times.items()}


def time_over_grids_and_batches(features: int, seconds: float) -> dict[str, dict[int, float]]:
    """Return the time per evaluation by grid, and by number of samples."""
    grids = {g: make_workload(features, features, g, BATCH) for g in range(8, 17)}
    largest = make_workload(features, features, 10, 2**17)
    batches = {2**n: replace(largest, x=largest.x[: 2**n]) for n in range(10, 18)}
    shape = f"{features} x {features}"
    return {
        f"{shape}, B = {BATCH}, over G": time_per_evaluation(grids, seconds),
        f"{shape}, G = 10, over B": time_per_evaluation(batches, seconds),
    }


def check_spread(what: str, times: Mapping[int, float]) -> CheckedTarget:
    """Check how much the time per evaluation depends on the grid or the batch."""
    spread = max(times.values()) / min(times.values())
    return CheckedTarget(f"{what}: slowest / fastest", "<= 1.5", f"{spread:.2f}", spread <= 1.5)


#: Dimension and grid of the layers that are compared with one of dimension 2 and its grid.
OTHER_DIMENSIONS = [(1, 8), (1, 40), (1, 200), (3, 8)]
USUAL = (2, 8)


def time_dimensions(
    features: int, seconds: float, *, batch: int = BATCH
) -> dict[tuple[int, int], dict[str, Any]]:
    """Check and time layers of one shape; by dimension and grid, times and ratios to the usual."""
    layers = {}
    for dimension, num_grids in (USUAL, *OTHER_DIMENSIONS):
        workload = make_workload(features, features, num_grids, batch, dimension=dimension)
        layer = peers.lmkan(workload)
        reference.of_layer(workload).check_layer(f"d = {dimension}, G = {num_grids}", layer)
        layers[dimension, num_grids] = layer
    times = time_layers(layers, seconds)
    return {
        key: {
            pass_: {
                "ms": round(1e3 * float(np.median(times[key][pass_])), 4),
                "/ d = 2": asdict(ratio(times[key][pass_], times[USUAL][pass_])),
            }
            for pass_ in PASSES
        }
        for key in layers
    }


def show_dimensions(
    out: Console, features: int, results: Mapping[tuple[int, int], dict[str, Any]]
) -> None:
    def row(key: tuple[int, int]) -> Iterator[str]:
        yield from map(str, key)
        for pass_ in PASSES:
            measured = results[key][pass_]
            yield f"{measured['ms']:.4g}"
            yield str(Ratio(**measured["/ d = 2"]))

    header = ["d", "G", *(name for pass_ in PASSES for name in (f"{pass_}, ms", "/ d = 2"))]
    title = f"{features} x {features}, B = {BATCH}, float32: dimensions"
    show_table(out, title, header, map(row, results))


def check_dimensions(
    features: int, results: Mapping[tuple[int, int], dict[str, Any]]
) -> list[CheckedTarget]:
    """Check how many times as long as d = 2 the other dimensions take."""
    targets = []
    for dimension, num_grids in OTHER_DIMENSIONS:
        most = 1.25 if dimension == 1 else 1.7
        for pass_ in ("forward", "both"):
            measured = Ratio(**results[dimension, num_grids][pass_]["/ d = 2"])
            what = f"{features} x {features}, {pass_}: d = {dimension}, G = {num_grids} / d = 2"
            met = measured.median <= most
            targets.append(CheckedTarget(what, f"<= {most}", str(measured), met))
    return targets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="only the small layer, few rounds")
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results there")
    arguments = parser.parse_args()
    widths, grids, seconds = [128, 512], [8, 10, 26], 8.0
    if arguments.quick:
        widths, grids, seconds = [128], [8, 26], 2.0

    torch.set_num_threads(numba.get_num_threads())
    out = console()
    circumstances = results_file.circumstances()
    kans = peers.kan_versions()
    for name, value in (circumstances | kans).items():
        missing = "not installed: pip install -r bench/requirements.txt"
        out.print(f"{name}: {value or missing}")
    out.print(
        f"{LEGEND}\npykan, 512 x 512: the time of 512 samples, scaled; more take too much memory"
    )

    cases: list[LayerTimings] = []
    per_evaluation: dict[str, dict[int, float]] = {}
    for features, num_grids in product(widths, grids):
        with out.status(f"{features} x {features}, G = {num_grids}"):
            installed = [kan for kan in kans if kans[kan]]
            timings = time_shape(features, num_grids, installed, seconds)
        show_timings(out, timings)
        cases.append(timings)
    for features in widths:
        with out.status(f"{features} x {features}, time per evaluation"):
            per_evaluation |= time_over_grids_and_batches(features, seconds)
    for what, times in per_evaluation.items():
        title = f"{what}: picoseconds per inner function and sample"
        show_table(out, title, map(str, times), [(f"{time:.0f}" for time in times.values())])

    dimensions = {}
    for features in widths:
        with out.status(f"{features} x {features}, dimensions"):
            dimensions[features] = time_dimensions(features, seconds)
        show_dimensions(out, features, dimensions[features])

    with out.status("convolutions"):
        convolutions = time_convolutions(SHAPES[-1:] if arguments.quick else SHAPES, seconds)
    show_convolutions(out, convolutions)

    targets = [target for timings in cases for target in check_ratios(timings)]
    targets += [check_spread(what, times) for what, times in per_evaluation.items()]
    for features, results in dimensions.items():
        targets += check_dimensions(features, results)
    targets += check_convolutions(convolutions)
    show_table(out, "Targets", ("", "target", "measured", "met"), target_rows(targets))
    if arguments.json:
        written = {
            "bench": "cpu",
            "circumstances": {**circumstances, "kans": kans},
            "cases": [timings.json() for timings in cases],
            "picoseconds_per_evaluation": per_evaluation,
            "dimensions": [
                {"features": features, "dimension": d, "num_grids": g, **measured}
                for features, results in dimensions.items()
                for (d, g), measured in results.items()
            ],
            "convolutions": [
                {**shape._asdict(), **measured} for shape, measured in convolutions.items()
            ],
            "targets": [asdict(target) for target in targets],
        }
        results_file.write(arguments.json, written)


if __name__ == "__main__":
    main()
