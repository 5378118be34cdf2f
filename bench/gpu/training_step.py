"""Whole steps of training one layer: loss, penalty, backward, Adam."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import cupy
import torch
from lmkan_cupy.adapters.torch import LMKANLinear
from torch import Tensor, cuda, nn

from ..harness import authors
from ..harness.cuda_device import OUT_OF_MEMORY, device_stopwatch, free_memory
from ..harness.results_file import OURS
from ..harness.workload import Workload, make_workload

#: Gives the loss before the step.
Step: TypeAlias = Callable[[], Tensor]

NUM_GRIDS, BATCH, FEATURES = 16, 2**14, (128, 512)
REPEATS, STEPS = 5, 10

#: Steps that come first: they compile, and make the optimiser's state.
WARMUP = 3

#: Most by which the loss after these may differ from ours, relative to it. It has fallen by 2 % and
#: more by then, so one wrong gradient in twenty is seen. Rounding matters only where it decides the
#: sign of a gradient, of which Adam's first steps know little more.
OFF = 1e-3

PENALTY = 1e-6


class Maker(NamedTuple):
    """How to make a step, so that one at a time is in memory.

    Attributes
    ----------
    step : callable
    captured : bool
        In a CUDA graph.
    same : bool
        The function is ours: so must the loss be.
    forgiven : tuple of exceptions
        What makes it a step that does not run.
    """

    step: Callable[[], Step]
    captured: bool = False
    same: bool = True
    forgiven: tuple[type[Exception], ...] = OUT_OF_MEMORY


def measure(with_authors: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Return milliseconds, host and device, and peak memory of steps, by shape and layer."""
    return {f"{features} x {features}": _measure(features, with_authors) for features in FEATURES}


def _measure(features: int, with_authors: bool) -> dict[str, dict[str, Any]]:
    workload = make_workload(features, features, NUM_GRIDS, BATCH, cupy)
    results: dict[str, dict[str, Any]] = {}
    for name, maker in _makers(workload, with_authors):
        try:
            measured = _of_step(maker)
            if maker.same:
                ours = results.get(OURS, {}).get("loss", measured["loss"])
                _check_loss(name, measured["loss"], ours)
            results[name] = measured
        except maker.forgiven as error:
            results[name] = {"does not run": authors.reason(error)}
        free_memory()
    return results


def _of_step(maker: Maker) -> dict[str, float]:
    """Return milliseconds, the loss after some steps, and MB beyond the data at the most."""
    before = cuda.memory_allocated()
    step = maker.step()
    cuda.reset_peak_memory_stats()
    # What is captured is not to have run on the default stream, the one the authors launch on.
    side = cuda.Stream() if maker.captured else cuda.current_stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(WARMUP):
            step()
    cuda.current_stream().wait_stream(side)
    if maker.captured:
        step = _captured(step)
    loss = float(step())
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(STEPS):
            step()
        cuda.synchronize()
        taken.append((time.perf_counter() - start) / STEPS)
    peak = (cuda.max_memory_allocated() - before) / 2**20
    return {"ms": 1e3 * statistics.median(taken), "peak MB": peak, "loss": loss}


def _check_loss(name: str, loss: float, ours: float) -> None:
    if not abs(loss - ours) <= OFF * abs(ours):
        raise AssertionError(f"{name}: the loss is {loss}, ours {ours}")


def _makers(workload: Workload, with_authors: bool) -> Iterator[tuple[str, Maker]]:
    x, target = torch.from_dlpack(workload.x), torch.from_dlpack(workload.grad_y)
    features = x.shape[1]

    def ours(engine: Any = None, compiled: bool = False) -> Step:
        layer = LMKANLinear(features, features, NUM_GRIDS, engine=engine, device=x.device)
        with torch.no_grad():
            layer.tables.copy_(torch.from_dlpack(workload.tables))
        torch.compiler.reset()
        forward = torch.compile(layer, dynamic=False) if compiled else layer
        return _step(layer, lambda: _error(forward(x), target) + PENALTY * layer.hessian_penalty())

    def linear() -> Step:
        layer = nn.Linear(features, features, device=x.device)
        return _step(layer, lambda: _error(layer(x), target))

    yield OURS, Maker(ours)
    yield f"{OURS} in a graph", Maker(ours, captured=True)
    yield "nn.Linear", Maker(linear, same=False)
    yield 'engine="torch", compiled', Maker(lambda: ours("torch", compiled=True))
    if not with_authors:
        return
    columns, targets = x.T.contiguous(), target.T.contiguous()  # their layout

    def theirs() -> Step:
        layer = authors.module(workload, authors.fastest_sizes(workload, device_stopwatch))

        def loss() -> Tensor:
            penalty = layer.get_hessian_regularization()
            return _error(layer(columns), targets) + PENALTY * penalty

        return _step(layer, loss)

    yield "authors", Maker(theirs, forgiven=(Exception,))


def _error(y: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(y, target)


def _step(layer: nn.Module, loss: Callable[[], Tensor]) -> Step:
    parameters = list(layer.parameters())
    on_device = parameters[0].is_cuda
    optimizer = torch.optim.Adam(parameters, lr=1e-3, fused=True, capturable=on_device)

    def step() -> Tensor:
        optimizer.zero_grad()
        before = loss()
        before.backward()
        optimizer.step()
        return before.detach()

    return step


@dataclass(frozen=True)
class _Replay:
    """A step in a CUDA graph, which writes to what the step and its loss keep alive."""

    step: Step
    loss: Tensor
    graph: Any

    def __call__(self) -> Tensor:
        self.graph.replay()
        return self.loss


def _captured(step: Step) -> Step:
    graph = cuda.CUDAGraph()
    with cuda.graph(graph):
        loss = step()
    return _Replay(step, loss, graph)
