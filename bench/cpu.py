"""``python -m bench.cpu``: the CPU engine beside torch and the KAN layers on PyPI.

What is timed is checked first. The numbers of a table come from one run in which everything is
called in turn; its ratios are medians over the rounds, with quartiles. Every layer has the same
number of threads, that of Numba (NUMBA_NUM_THREADS).
"""

import argparse
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import numba
import numpy as np
import torch

import lmkan_cupy

from .harness import peers, reference, results_file
from .harness.console_tables import LEGEND, console, show, show_case
from .harness.layer_timings import Case, time_layers
from .harness.results_file import OURS
from .harness.targets import Verdict, verdict_rows
from .harness.timing import interleave, stopwatch
from .harness.workload import Workload, make_workload

BATCH = 8192


def fastest_kan(case: Case, pass_: str) -> str | None:
    """The fastest KAN layer from PyPI, None where none is installed."""
    kans = (layer for layer in case.seconds if layer in peers.KAN_LAYERS)
    return min(kans, key=lambda layer: case.milliseconds(layer, pass_), default=None)


def run_case(features: int, num_grids: int, kans: Iterable[str], seconds: float) -> Case:
    workload = make_workload(features, features, num_grids, BATCH)
    layers = {OURS: peers.lmkan(workload), "embedding_bag": peers.embedding_bag(workload)}
    expected = reference.of_layer(workload)
    for name, layer in layers.items():
        expected.check_layer(name, layer, has_grad_x=name == OURS)
    layers |= {
        "nn.Linear": peers.linear(workload),
        **{package: peers.kan(package, workload) for package in kans},
    }
    return Case(features, features, num_grids, BATCH, time_layers(layers, seconds))


def case_verdicts(case: Case) -> list[Verdict]:
    def at_least(factor: float, layer: str | None, pass_: str) -> Verdict:
        what = f"{case}, {pass_}: {layer or 'a KAN layer from PyPI'} / ours"
        target = f">= {factor}"
        if layer is None:
            return Verdict(what, target, "not measured", None)
        measured = case.ratio(layer, pass_)
        return Verdict(what, target, str(measured), measured.median >= factor)

    return [
        at_least({128: 1.3, 512: 2.7}[case.in_features], "embedding_bag", "forward"),
        at_least(1.5, fastest_kan(case, "forward"), "forward"),
        at_least(1.0, fastest_kan(case, "both"), "both"),
    ]


def time_per_evaluation(workloads: Mapping[int, Workload], seconds: float) -> dict[int, float]:
    """Median picoseconds that our forward takes for one inner function of one sample."""

    def measure(workload: Workload) -> tuple[float]:
        calls = max(1, 2 * BATCH // len(workload.x))  # else waking the threads is timed as well
        taken, _ = stopwatch(
            lambda: [lmkan_cupy.forward(workload.x, workload.tables) for _ in range(calls)]
        )
        return (taken / (calls * workload.evaluations),)

    measurements = {key: partial(measure, workload) for key, workload in workloads.items()}
    times = interleave(measurements, seconds=seconds)
    return {key: 1e12 * float(np.median(taken)) for key, taken in times.items()}


def run_flatness(features: int, seconds: float) -> dict[str, dict[int, float]]:
    """Time per evaluation over the grid sizes, and over the numbers of samples."""
    grids = {g: make_workload(features, features, g, BATCH) for g in range(8, 17)}
    largest = make_workload(features, features, 10, 2**17)
    batches = {2**n: replace(largest, x=largest.x[: 2**n]) for n in range(10, 18)}
    shape = f"{features} x {features}"
    return {
        f"{shape}, B = {BATCH}, over G": time_per_evaluation(grids, seconds),
        f"{shape}, G = 10, over B": time_per_evaluation(batches, seconds),
    }


def flatness_verdict(what: str, times: Mapping[int, float]) -> Verdict:
    spread = max(times.values()) / min(times.values())
    return Verdict(f"{what}: slowest / fastest", "<= 1.5", f"{spread:.2f}", spread <= 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cpu", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small layer, few rounds")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results there, too")
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
        f"{LEGEND}\npykan, 512 x 512: the time of 512 samples, scaled; more need too much memory"
    )

    cases: list[Case] = []
    flatness: dict[str, dict[int, float]] = {}
    for features, num_grids in product(widths, grids):
        with out.status(f"{features} x {features}, G = {num_grids}"):
            case = run_case(features, num_grids, [kan for kan in kans if kans[kan]], seconds)
        show_case(out, case)
        cases.append(case)
    for features in widths:
        with out.status(f"{features} x {features}, time per evaluation"):
            flatness |= run_flatness(features, seconds)
    for what, times in flatness.items():
        title = f"{what}: picoseconds per inner function and sample"
        show(out, title, map(str, times), [(f"{time:.0f}" for time in times.values())])

    verdicts = [verdict for case in cases for verdict in case_verdicts(case)]
    verdicts += [flatness_verdict(what, times) for what, times in flatness.items()]
    show(out, "Targets", ("", "target", "measured", "met"), verdict_rows(verdicts))
    if arguments.json:
        results = {
            "bench": "cpu",
            "circumstances": {**circumstances, "kans": kans},
            "cases": [case.json() for case in cases],
            "picoseconds_per_evaluation": flatness,
            "targets": [asdict(verdict) for verdict in verdicts],
        }
        results_file.write(arguments.json, results)


if __name__ == "__main__":
    main()
