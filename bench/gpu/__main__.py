"""``python -m bench.gpu``: the CUDA engine checked, then timed beside others, on the first GPU.

First the tests that need a GPU run, then a few of them under compute-sanitizer where it is
installed: nothing is timed if one fails, and nothing of ours whose results, of the sizes that are
timed, are off. Times of layers are those of the device, by CUDA events around a call that was
queued while the device was still busy, so the host's share is not in them unless the host is slower
than the device. What a call reads may be in the L2 cache, as in networks.

Everything is written as soon as it is measured, and a later run goes on from there.
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

from lmkan_cupy.configuration import cuda_obstacle

from ..harness import authors, results_file
from ..harness.console_tables import LEGEND, console, show, show_case, show_numbers
from ..harness.cuda_device import OUT_OF_MEMORY, describe, free_memory
from ..harness.targets import verdict_rows
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
        help="default: the newest bench/results/gpu-<device>-*.json of the same commit, versions, "
        "GPU and peer, or a new one",
    )
    parser.add_argument("--full", action="store_true", help="all shapes and grids")
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
    """Measure what results lack, and write and show everything."""
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

    out.print(f"\n{LEGEND}\nnn.Linear: in float32 and without TF32 unless said")
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
        free_memory()  # in the exception's handler, it would still hold some
        results_file.write(path, results)
        if measured:
            show_measured(out, measured)
        else:
            out.print(f"\n{point} was not measured: {why}")

    verdicts = targets.verdicts(results)
    show(out, "Targets", ("", "target", "measured", "met"), verdict_rows(verdicts))
    results["targets"] = [asdict(verdict) for verdict in verdicts]
    results_file.write(path, results)


def show_measured(out: Console, measured: Measured) -> None:
    show_case(out, measured.case)
    for name, limit in measured.limits.items():
        share = limit.get("share of the shared-memory limit")
        out.print(
            f"{name}: by {limit['kernel']}, predicted {limit['predicted ms']} ms, held by "
            f"{limit['held by']}" + (f"; {share:.0%} of shared memory's limit" if share else "")
        )
    for name, reason in measured.does_not_run.items():
        out.print(f"{name} does not run: {reason}")
    for name, clock in measured.clocks.items():
        out.print(f"{name} clock, MHz: {clock['median']} ({clock['least']}-{clock['most']})")


if __name__ == "__main__":
    main()
