"""``python -m bench.gpu``: checks the CUDA engine, then times it beside others, on the first GPU.

The tests that need a GPU run first, and some of them under compute-sanitizer where it is installed;
if one fails, nothing is timed. Our results are also checked at the sizes that are timed. Times of
layers are times of the device, by CUDA events around a call that was queued while the device was
busy: they include the host only where it is slower than the device. What a call reads may be in the
L2 cache, as in networks.

Every measurement is written at once, and a later run resumes from the file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cupy
import torch

from lmkan_cupy.installation import cuda_obstacle

from ..harness import authors, results_file
from ..harness.console_tables import LEGEND, console, show_numbers, show_table, show_timings
from ..harness.cuda_device import OUT_OF_MEMORY, describe, free_memory
from ..harness.targets import target_rows
from . import correctness, host, layers, passes, penalty, targets, training_step
from .layers import Measured, Point

if TYPE_CHECKING:
    from rich.console import Console


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument(
        "--json",
        type=Path,
        metavar="PATH",
        help="the file to write, and to resume from; by default the newest "
        "bench/results/gpu-<device>-*.json of the same commit, versions, GPU and peer, or a new "
        "one",
    )
    parser.add_argument("--full", action="store_true", help="more shapes and grids")
    parser.add_argument(
        "--peer", type=Path, metavar="PATH", help="a folder with the authors' package lmKAN"
    )
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    if obstacle := cuda_obstacle():
        sys.exit(obstacle)
    circumstances = results_file.circumstances() | {"gpu": describe(), "peer": None}
    circumstances["versions"] |= {"cupy": cupy.__version__}
    if arguments.peer:
        sys.path.insert(0, str(arguments.peer))
        has_commit = (arguments.peer / ".git").exists()  # else it may lie in another repository
        circumstances["peer"] = results_file.commit_of(arguments.peer) if has_commit else "unknown"
    try:
        if arguments.peer:
            authors.require_package()
        path, results = results_file.resumed("gpu", circumstances, arguments.json)
    except (ImportError, ValueError) as error:
        sys.exit(str(error))
    try:
        run(path, results, arguments.full, with_authors=arguments.peer is not None)
    except correctness.Failed as error:
        sys.exit(str(error))


def run(path: Path, results: dict[str, Any], full: bool, with_authors: bool) -> None:
    """Measure what the results lack, and write and show everything."""
    out = console()
    for name, value in (results["circumstances"] | {"results": path}).items():
        out.print(f"{name}: {value}")
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, measure in (
        ("correctness", correctness.measure),
        ("host", host.measure),
        ("penalty", penalty.measure),
        ("passes", passes.measure),
        ("training", partial(training_step.measure, with_authors)),
    ):
        if name not in results:
            with out.status(name):
                results[name] = measure()
            free_memory()
            results_file.write(path, results)
        show_numbers(out, name, results[name])

    out.print(f"\n{LEGEND}\nnn.Linear: float32 without TF32 unless named otherwise")
    not_measured = results.setdefault("not measured", [])
    done = [tuple(each[name] for name in Point._fields) for each in results["cases"] + not_measured]
    for point in layers.points(full):
        if point in done:
            continue
        measured, why = None, ""
        try:
            with out.status(str(point)):
                measured = layers.measure(point, with_authors)
            results["cases"].append(measured.json())
        except OUT_OF_MEMORY as error:
            why = authors.reason(error)
            not_measured.append(point._asdict() | {"why": why})
        free_memory()  # not in the handler: the exception holds memory
        results_file.write(path, results)
        if measured:
            show_measured(out, measured)
        else:
            out.print(f"\n{point} was not measured: {why}")

    checked = targets.check(results)
    show_table(out, "Targets", ("", "target", "measured", "met"), target_rows(checked))
    results["targets"] = [asdict(target) for target in checked]
    results_file.write(path, results)


def show_measured(out: Console, measured: Measured) -> None:
    show_timings(out, measured.timings)
    for name, limit in measured.limits.items():
        share = limit.get("share of the shared-memory limit")
        out.print(
            f"{name}: by {limit['kernel']}, predicted {limit['predicted ms']} ms, limited "
            f"by {limit['held by']}" + (f"; {share:.0%} of shared memory's limit" if share else "")
        )
    for name, reason in measured.does_not_run.items():
        out.print(f"{name} does not run: {reason}")
    for name, clock in measured.clocks.items():
        out.print(f"{name} clock, MHz: {clock['median']} ({clock['least']}-{clock['most']})")


if __name__ == "__main__":
    main()
