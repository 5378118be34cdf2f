"""``python -m bench.networks``: whole networks beside layer by layer and MLPs.

Networks of three layers on 10 inputs with one output. The lmKANs are evaluated layer by layer, in
one call in float32 and with float16 tables, and by onnxruntime; the MLPs have three hidden layers
with SiLU and are evaluated by torch, by ``torch.compile`` and by onnxruntime. Large batches are
evaluated in parts, which is faster for all. Before anything is timed, the results of the lmKANs are
compared with those in float64. All are timed in turn, in one run; numbers are medians. With
``--device cuda`` the first GPU is timed instead: see :mod:`bench.gpu.networks`.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numba
import numpy as np
import onnxruntime
import torch
from lmkan_cupy.adapters.torch.fusion import FusedNetwork
from numpy.typing import NDArray
from torch import Tensor

import lmkan_cupy

from .harness import onnx, results_file
from .harness.chains import BOUND, FEATURES, features_of, mlp, name_of, tables_of
from .harness.console_tables import console, show_table
from .harness.targets import CheckedTarget, target_rows
from .harness.timing import interleave, ratio, stopwatch

#: Width and grid intervals of the lmKANs, width of the MLPs.
LMKANS = [
    *((16, 8), (16, 24), (32, 8), (32, 24), (64, 8), (64, 24)),
    *((128, 8), (128, 24), (256, 8), (512, 8)),
]
MLPS = [16, 32, 48, 64, 128, 256]

#: Rows that are evaluated together, at most.
PART = 2**14

#: Wider networks are left out of the largest batch, where a call of theirs takes seconds.
WIDEST_OF_LARGEST = 64

#: The standard operators of ONNX gather four table rows for every row and pair before they add them
#: up: for wider networks that takes gigabytes.
WIDEST_IN_ONNX = 32

#: Evaluates rows [N, I] and returns their outputs [N, 1].
Evaluate = Callable[[NDArray[np.float32]], object]

BY_LAYERS, FUSED, HALF, ONNX = "layer by layer", "fused", "fused, float16", "onnxruntime"
EAGER, COMPILED = "torch", "torch.compile"


def by_layers(tables: list[NDArray[np.float32]]) -> Evaluate:
    def evaluate(x: NDArray[np.float32]) -> object:
        for each in tables:
            x = lmkan_cupy.forward(np.clip(x, -BOUND, BOUND), each)
        return x

    return evaluate


def fused(tables: list[Any]) -> Evaluate:
    return lambda x: lmkan_cupy.network_forward(x, tables, bound=BOUND)


def by_torch(network: Callable[[Tensor], Tensor]) -> Evaluate:
    @torch.inference_mode()
    def evaluate(x: NDArray[np.float32]) -> object:
        return network(torch.from_numpy(x)).numpy()

    return evaluate


def evaluations(threads: int) -> dict[tuple[str, str], Evaluate]:
    """Return what is timed, by network and by how it is evaluated."""
    found: dict[tuple[str, str], Evaluate] = {}
    for width, num_grids in LMKANS:
        name = name_of(width, num_grids)
        tables = tables_of(features_of(width), num_grids)
        arrays = [torch.from_numpy(each) for each in tables]
        found[name, BY_LAYERS] = by_layers(tables)
        found[name, FUSED] = fused(tables)
        found[name, HALF] = fused([each.astype(np.float16) for each in tables])
        if width <= WIDEST_IN_ONNX:
            network = FusedNetwork(FEATURES, arrays, [BOUND] * len(arrays), None, None).eval()
            found[name, ONNX] = onnx.session(network, FEATURES, threads)
    for width in MLPS:
        network = mlp(width)
        found[f"MLP {width}", EAGER] = by_torch(network)
        found[f"MLP {width}", COMPILED] = by_torch(torch.compile(network, dynamic=True))
        found[f"MLP {width}", ONNX] = onnx.session(network, FEATURES, threads)
    return found


def errors(x: NDArray[np.float32]) -> dict[str, dict[str, float]]:
    """Return the largest errors of the lmKANs, relative to the spread of their outputs."""
    found: dict[str, dict[str, float]] = {}
    for width, num_grids in LMKANS:
        tables = tables_of(features_of(width), num_grids)
        expected = fused([each.astype(np.float64) for each in tables])(x.astype(np.float64))
        found[name_of(width, num_grids)] = {
            how: float(np.abs(evaluate(x) - expected).max() / np.std(expected))
            for how, evaluate in (
                (FUSED, fused(tables)),
                (HALF, fused([each.astype(np.float16) for each in tables])),
            )
        }
    return found


def in_parts(evaluate: Evaluate, x: NDArray[np.float32]) -> None:
    for begin in range(0, len(x), PART):
        evaluate(x[begin : begin + PART])


def time_batch(
    batch: int, found: Mapping[tuple[str, str], Evaluate], seconds: float
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Return the seconds per row of every evaluation, by rounds."""
    x = np.random.default_rng(0).standard_normal((batch, FEATURES), dtype=np.float32)
    calls = max(1, 2048 // batch)

    def measure(evaluate: Evaluate) -> tuple[float]:
        taken, _ = stopwatch(lambda: [in_parts(evaluate, x) for _ in range(calls)])
        return (taken / (calls * batch),)

    measurements = {key: lambda e=evaluate: measure(e) for key, evaluate in found.items()}
    timed = interleave(measurements, seconds=seconds, rounds=(5, 200))
    return {key: taken for key, (taken,) in timed.items()}


def fits(key: tuple[str, str], batch: int) -> bool:
    """Tell whether a network is timed at this batch."""
    _, width = key[0].split(",")[0].split()
    return batch <= PART or int(width) <= WIDEST_OF_LARGEST


def rows(timed: Mapping[tuple[str, str], NDArray[np.float64]]) -> Iterator[list[str]]:
    """Yield a row of the table for every network: million rows per second, and ratios."""
    for name in dict.fromkeys(network for network, _ in timed):
        ways = {how: taken for (network, how), taken in timed.items() if network == name}
        row = [name]
        for how in (BY_LAYERS, FUSED, HALF, EAGER, COMPILED, ONNX):
            row.append(f"{1e-6 / np.median(ways[how]):.3g}" if how in ways else "")
        if FUSED in ways:
            row += [str(ratio(ways[BY_LAYERS], ways[FUSED])), str(ratio(ways[FUSED], ways[HALF]))]
        yield row


def check(
    timed: Mapping[tuple[int, int], Mapping[tuple[str, str], NDArray[np.float64]]],
) -> Iterator[CheckedTarget]:
    """Yield the targets at ``PART`` rows on two threads."""

    def at_least(what: str, target: float, measured: float) -> CheckedTarget:
        return CheckedTarget(what, f">= {target}", f"{measured:.2f}", measured >= target)

    two, one = timed[PART, 2], timed[PART, 1]
    wanted = {(16, 8): 2.0, (16, 24): 2.0, (32, 24): 2.0, (64, 8): 1.2, (64, 24): 1.2}
    for width, num_grids in LMKANS:
        name = name_of(width, num_grids)
        gain = ratio(two[name, BY_LAYERS], two[name, FUSED]).median
        yield at_least(f"{name}: layer by layer / fused", wanted.get((width, num_grids), 1.0), gain)
        scaling = float(np.median(one[name, FUSED]) / np.median(two[name, FUSED]))
        yield at_least(f"{name}: one thread / two threads, fused", 1.7, scaling)
        if width > 32 or (width, num_grids) == (32, 24):
            gain = ratio(two[name, FUSED], two[name, HALF]).median
            yield at_least(f"{name}: float32 / float16", 1.25, gain)
    if (1, 1) in timed:
        microseconds = 1e6 * float(np.median(timed[1, 1][name_of(32, 8), FUSED]))
        yield CheckedTarget(
            "lmKAN 32, G=8: microseconds of one row",
            "<= 15",
            f"{microseconds:.1f}",
            microseconds <= 15,
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help=f"fewer batches; on a CPU {PART} rows, few rounds"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--peer",
        type=Path,
        metavar="PATH",
        help="with cuda: a folder with the authors' package lmKAN",
    )
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write the results there")
    arguments = parser.parse_args()
    if arguments.device == "cuda":
        on_gpu = import_module(f"{__package__}.gpu.networks")
        on_gpu.run(arguments.json, arguments.peer, arguments.quick)
        return
    if arguments.peer:
        parser.error("--peer needs --device cuda")
    batches, seconds = ([PART], 2.0) if arguments.quick else ([1, 64, PART, 2**20], 20.0)

    out = console()
    circumstances = results_file.circumstances()
    circumstances["versions"]["onnxruntime"] = onnxruntime.__version__
    for name, value in circumstances.items():
        out.print(f"{name}: {value}")
    timed = {}
    for threads in (1, 2):
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        with out.status(f"{threads} threads: making the networks"):
            found = evaluations(threads)
        for batch in batches:
            with out.status(f"{threads} threads, {batch} rows"):
                some = {key: each for key, each in found.items() if fits(key, batch)}
                timed[batch, threads] = time_batch(batch, some, seconds)
            header = ["", BY_LAYERS, FUSED, HALF, EAGER, COMPILED, ONNX]
            header += ["layer by layer / fused", "fused / float16"]
            title = f"{batch} rows, {threads} threads: million rows per second"
            show_table(out, title, header, rows(timed[batch, threads]))

    x = np.random.default_rng(1).standard_normal((2**12, FEATURES), dtype=np.float32)
    of_float64 = errors(x)
    title = "Largest error against float64, relative to the spread of the outputs"
    lines = [[name, *(f"{each:.1e}" for each in of.values())] for name, of in of_float64.items()]
    show_table(out, title, ["", FUSED, HALF], lines)
    targets = list(check(timed))
    show_table(out, "Targets", ("", "target", "measured", "met"), target_rows(targets))
    if arguments.json:
        results = {
            "bench": "networks",
            "circumstances": circumstances,
            "seconds_per_row": [
                {
                    "batch": batch,
                    "threads": threads,
                    "medians": {
                        " | ".join(key): float(np.median(each)) for key, each in some.items()
                    },
                }
                for (batch, threads), some in timed.items()
            ],
            "errors": of_float64,
            "targets": [asdict(target) for target in targets],
        }
        results_file.write(arguments.json, results)


if __name__ == "__main__":
    main()
