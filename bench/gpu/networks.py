"""Whole networks on the first GPU, beside layer by layer, the authors' layers and MLPs.

The outputs of a network (energies), and with them their derivative in the inputs (forces). Every
way is captured in a CUDA graph, except the authors' layers, which launch on the default stream.
Before anything is timed, the results of the lmKANs are compared with those in float64 on the CPU,
and those of the authors' layers with ours. All are timed in turn, in one run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import cupy
import numpy as np
import torch
from lmkan_cupy.adapters.torch import exchange
from lmkan_cupy.adapters.torch import lmkan as lmkan_of_tensors
from numpy.typing import NDArray
from torch import Tensor, cuda

import lmkan_cupy
from lmkan_cupy.cuda_engine import kernel_cache, network_pass
from lmkan_cupy.cuda_engine.plan import Device, NetworkShape
from lmkan_cupy.installation import cuda_obstacle

from ..harness import authors, results_file
from ..harness.chains import BOUND, FEATURES, features_of, mlp, name_of, tables_of
from ..harness.console_tables import console, show_table
from ..harness.cuda_device import OUT_OF_MEMORY, describe, device_stopwatch, free_memory
from ..harness.targets import CheckedTarget, target_rows
from ..harness.timing import interleave
from ..harness.workload import Workload

if TYPE_CHECKING:
    from rich.console import Console

DEVICE = "cuda"

BATCHES = [2**17, 2**22]

#: Seconds for the timings of a network.
SECONDS = 3.0

#: Inputs, outputs of every layer, and grid intervals of the lmKANs by their names.
LMKANS = {
    "layer 8-8, G=8": ([8, 8], 8),
    "layer 16-16, G=8": ([16, 16], 8),
    **{
        name_of(width, num_grids): (features_of(width), num_grids)
        for width in (16, 32, 64, 128)
        for num_grids in (8, 24)
    },
}
MLPS = [16, 32, 64, 128, 256]

#: Rows whose results are compared with those in float64, and the largest error of float32 tables,
#: relative to the spread of the outputs. A wrong weight changes outputs by more.
COMPARED = 2**12
MAX_ERROR = 1e-3

#: The authors' layers take multiples of their tiles, of at least so many features.
TILE = 4

FUSED, HALF, BY_LAYERS, AUTHORS = "fused", "fused, float16", "layer by layer", "authors"
EAGER, COMPILED = "torch", "torch.compile"
ENERGIES, FORCES = "energies", "energies and forces"

#: Network, way, and what is computed.
Key: TypeAlias = tuple[str, str, str]

Call: TypeAlias = Callable[[], Any]


class Captured(NamedTuple):
    """A call in a CUDA graph; holding its result keeps the graph's memory alive."""

    graph: Any
    result: Any

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result


def captured(call: Call) -> Captured:
    """Return a call in a CUDA graph, after calls that compile what it needs."""
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(3):
            call()
    cuda.current_stream().wait_stream(side)
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        result = call()
    return Captured(graph, result)


def on_device(arrays: Sequence[NDArray[Any]]) -> list[Tensor]:
    return [torch.from_numpy(each).to(DEVICE) for each in arrays]


def fused(x: Tensor, tables: list[Tensor], wanted: str) -> Any:
    """Return the outputs of an lmKAN in one call, and the derivative of their sum."""

    def evaluate(x: Any, *tables: Any) -> Any:
        if wanted == ENERGIES:
            return lmkan_cupy.network_forward(x, tables, bound=BOUND)
        return lmkan_cupy.network_value_and_grad(x, tables, bound=BOUND)

    return exchange.run(evaluate, x, *tables)


def by_torch(network: Callable[[Tensor], Tensor], x: Tensor, wanted: str) -> Any:
    """Return the outputs of a network of torch, and the derivative of their sum by autograd."""
    if wanted == ENERGIES:
        with torch.no_grad():
            return network(x)
    inputs = x.detach().requires_grad_()
    y = network(inputs)
    return y.detach(), *torch.autograd.grad(y.sum(), inputs)


def by_layers(layers: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    return reduce(lambda h, layer: layer(h.clamp(-BOUND, BOUND)), layers, x)


def calls_of_lmkan(x: Tensor, features: list[int], num_grids: int) -> dict[str, Callable[..., Any]]:
    """Return the ways to evaluate an lmKAN; each takes what is wanted."""
    arrays = tables_of(features, num_grids)
    tables = on_device(arrays)
    layers = [partial(lmkan_of_tensors, tables=each) for each in tables]
    return {
        FUSED: partial(fused, x, tables),
        HALF: partial(fused, x, on_device([each.astype(np.float16) for each in arrays])),
        BY_LAYERS: partial(by_torch, partial(by_layers, layers), x),
    }


def authors_call(x: Tensor, features: list[int], num_grids: int) -> Callable[..., Any]:
    """Return the network of the authors' layers, whose layout is [features, batch].

    Widths are filled up with zeros to multiples of their tiles.
    """
    widths = [-(-each // TILE) * TILE for each in features]
    layers = []
    for tables, (inputs, outputs) in zip(
        tables_of(features, num_grids), pairwise(widths), strict=True
    ):
        pairs, knots, _, own = tables.shape
        wide = np.zeros((inputs // 2, knots, knots, outputs), np.float32)
        wide[:pairs, ..., :own] = tables
        rng = cupy.random.default_rng(0)
        workload = Workload(
            rng.standard_normal((len(x), inputs), dtype=np.float32),
            cupy.asarray(wide),
            rng.standard_normal((len(x), outputs), dtype=np.float32),
        )
        layers.append(authors.module(workload, authors.fastest_sizes(workload, device_stopwatch)))
        free_memory()
    padded = torch.nn.functional.pad(x, (0, widths[0] - features[0])).T.contiguous()
    return partial(by_torch, partial(by_layers, layers), padded)


class Measured(NamedTuple):
    """Nanoseconds per row, the errors of the lmKANs, and why some ways do not run."""

    nanoseconds: dict[Key, float]
    errors: dict[str, dict[str, float]]
    do_not_run: dict[str, str]


def measure(batch: int, with_authors: bool) -> Measured:
    """Check and time all networks, one after the other, as they need much memory.

    Raises
    ------
    AssertionError
        If results are wrong.
    """
    measured = Measured({}, {}, {})
    of_network = {name: partial(of_lmkan, *each) for name, each in LMKANS.items()}
    of_network |= {f"MLP {width}": partial(of_mlp, width) for width in MLPS}
    for name, function in of_network.items():
        why = ""
        try:
            function(name, batch, with_authors, measured)
        except OUT_OF_MEMORY as error:
            why = authors.reason(error)
        free_memory()  # not in the handler: the exception holds memory
        if why:
            measured.do_not_run[name] = why
    return measured


def of_lmkan(
    features: list[int],
    num_grids: int,
    name: str,
    batch: int,
    with_authors: bool,
    measured: Measured,
) -> None:
    rows = np.random.default_rng(0).standard_normal((batch, features[0]), dtype=np.float32)
    (x,) = on_device([rows])
    ways = calls_of_lmkan(x, features, num_grids)
    measured.errors[name] = check_errors(name, ways, rows[:COMPARED], features, num_grids)
    calls: dict[Key, Call] = {
        (name, how, wanted): captured(partial(evaluate, wanted))
        for how, evaluate in ways.items()
        for wanted in (ENERGIES, FORCES)
    }
    if with_authors:
        try:
            theirs = authors_call(x, features, num_grids)
            check_authors(theirs, ways[FUSED])
            calls |= {
                (name, AUTHORS, wanted): partial(theirs, wanted) for wanted in (ENERGIES, FORCES)
            }
        except authors.DoesNotRun as error:
            measured.do_not_run[f"{name}, {AUTHORS}"] = str(error)
    measured.nanoseconds.update(time_calls(batch, calls))


def of_mlp(width: int, name: str, batch: int, with_authors: bool, measured: Measured) -> None:
    rows = np.random.default_rng(0).standard_normal((batch, FEATURES), dtype=np.float32)
    (x,) = on_device([rows])
    network = mlp(width).to(DEVICE)
    torch.compiler.reset()
    ways = {EAGER: network, COMPILED: torch.compile(network, dynamic=False)}
    calls: dict[Key, Call] = {
        (name, how, wanted): captured(partial(by_torch, each, x, wanted))
        for how, each in ways.items()
        for wanted in (ENERGIES, FORCES)
    }
    measured.nanoseconds.update(time_calls(batch, calls))


def check_errors(
    name: str,
    ways: Mapping[str, Callable[..., Any]],
    rows: NDArray[np.float32],
    features: list[int],
    num_grids: int,
) -> dict[str, float]:
    """Return the largest errors of the outputs, relative to their spread."""
    wide = [each.astype(np.float64) for each in tables_of(features, num_grids)]
    expected = lmkan_cupy.network_forward(rows.astype(np.float64), wide, bound=BOUND)
    errors = {}
    for how, evaluate in ways.items():
        y = evaluate(ENERGIES)[: len(rows)].double().cpu().numpy()
        errors[how] = float(np.abs(y - expected).max() / np.std(expected))
        if how != HALF and not errors[how] <= MAX_ERROR:
            raise AssertionError(f"{name}, {how}: off by {errors[how]:.2g} of the outputs' spread")
    return errors


def check_authors(theirs: Callable[..., Any], ours: Callable[..., Any]) -> None:
    """Compare outputs and derivatives of the authors' layers with ours."""
    for what, result, same in zip(("y", "grad_x"), theirs(FORCES), ours(FORCES), strict=True):
        own = result[: same.shape[1]].T
        difference = float(torch.linalg.vector_norm(own - same) / torch.linalg.vector_norm(same))
        if not difference <= authors.MAX_DIFFERENCE:
            raise authors.DoesNotRun(f"{what} is not ours: off by {difference:.2g} of its norm")


def time_calls(batch: int, calls: Mapping[Key, Call]) -> dict[Key, float]:
    """Return the nanoseconds per row of each call, by medians."""
    measurements = {
        key: lambda call=call: (device_stopwatch(call)[0],) for key, call in calls.items()
    }
    timed = interleave(measurements, seconds=SECONDS, rounds=(5, 50))
    return {key: 1e9 * float(np.median(each)) / batch for key, each in timed.items()}


def predictions(batch: int, device: Device) -> dict[Key, float]:
    """Return the nanoseconds per row that the model of the forward predicts for the lmKANs."""
    found = {}
    for name, (features, num_grids) in LMKANS.items():
        for how, table in ((FUSED, "float32"), (HALF, "float16")):
            shape = NetworkShape(tuple(features), num_grids, "float32", table)
            for wanted in (ENERGIES, FORCES):
                gradient = wanted == FORCES
                by_layers = network_pass.seconds_by_layers(shape, batch, device, gradient=gradient)
                if how == FUSED:
                    found[name, BY_LAYERS, wanted] = 1e9 * by_layers / batch
                plan = network_pass.plan_network(shape, batch, device, gradient=gradient)
                seconds = by_layers if plan is None else plan.prediction.seconds
                found[name, how, wanted] = 1e9 * seconds / batch
    return found


def rows(nanoseconds: Mapping[Key, float]) -> Iterator[list[str]]:
    """Yield a row of the table for every network and what is computed."""
    ways = {(name, wanted): {} for name, _, wanted in nanoseconds}
    for (name, how, wanted), each in nanoseconds.items():
        ways[name, wanted][how] = each
    for (name, wanted), own in ways.items():
        yield [name, wanted, *(f"{own[how]:.3g}" if how in own else "" for how in WAYS)]


WAYS = (FUSED, HALF, BY_LAYERS, AUTHORS, EAGER, COMPILED)


def check(nanoseconds: Mapping[Key, float]) -> Iterator[CheckedTarget]:
    """Yield the targets at the largest batch; nanoseconds may be a model's."""
    name = name_of(16, 8)
    own, forces = nanoseconds[name, FUSED, ENERGIES], nanoseconds[name, FUSED, FORCES]
    layers = nanoseconds[name, BY_LAYERS, ENERGIES]
    yield CheckedTarget(f"{name}: ns a row", "<= 0.3", f"{own:.3g}", own <= 0.3)
    small, large = (nanoseconds[f"layer {each}, G=8", FUSED, ENERGIES] for each in ("8-8", "16-16"))
    yield CheckedTarget("layer 8-8 / layer 16-16", "< 1", f"{small / large:.2f}", small < large)
    gain = layers / own
    yield CheckedTarget(f"{name}: layer by layer / fused", ">= 2.5", f"{gain:.2f}", gain >= 2.5)
    ratio = forces / own
    yield CheckedTarget(f"{name}: with forces / without", "<= 2.5", f"{ratio:.2f}", ratio <= 2.5)


def joined(nanoseconds: Mapping[Key, float]) -> dict[str, float]:
    return {" | ".join(key): each for key, each in nanoseconds.items()}


def show(out: Console, title: str, nanoseconds: Mapping[Key, float]) -> None:
    show_table(out, f"{title}: nanoseconds a row", ["", "", *WAYS], rows(nanoseconds))


def run(path: Path | None, peer: Path | None, quick: bool) -> None:
    """Measure and show everything, and write it to ``path``."""
    if obstacle := cuda_obstacle():
        sys.exit(obstacle)
    if peer:
        sys.path.insert(0, str(peer))
        authors.require_package()
    torch.backends.cuda.matmul.allow_tf32 = False
    circumstances = results_file.circumstances() | {"gpu": describe()}
    out = console()
    for name, value in circumstances.items():
        out.print(f"{name}: {value}")
    batches = []
    for batch in BATCHES[:1] if quick else BATCHES:
        predicted = predictions(batch, kernel_cache.device())
        show(out, f"{batch} rows, predicted by the model, not measured", predicted)
        measured = measure(batch, with_authors=peer is not None)
        show(out, f"{batch} rows", measured.nanoseconds)
        for name, why in measured.do_not_run.items():
            out.print(f"{name} does not run: {why}")
        batches.append(
            {
                "batch": batch,
                "ns per row": joined(measured.nanoseconds),
                "predicted": joined(predicted),
                "errors": measured.errors,
                "do not run": measured.do_not_run,
            }
        )
    targets = list(check(measured.nanoseconds))
    show_table(out, "Targets", ("", "target", "measured", "met"), target_rows(targets))
    if path:
        results = {
            "bench": "networks-gpu",
            "circumstances": circumstances,
            "batches": batches,
            "targets": [asdict(target) for target in targets],
        }
        results_file.write(path, results)
