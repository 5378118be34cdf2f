"""Whole training steps of one layer: loss, penalty, backward, Adam."""

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

#: Takes a training step and returns the loss before it.
Step: TypeAlias = Callable[[], Tensor]

NUM_GRIDS, BATCH, FEATURES = 16, 2**14, (128, 512)
REPEATS, STEPS = 5, 10

#: Warm-up steps: they compile kernels and create the optimiser's state.
WARMUP = 3

#: Largest relative difference from our loss after these steps. By then it has fallen by at least
#: 2 %, so one wrong gradient in twenty is noticed. Rounding matters only where it decides the sign
#: of a gradient, which is nearly all that Adam's first steps depend on.
MAX_DIFFERENCE = 1e-3

PENALTY = 1e-6


class StepFactory(NamedTuple):
    """Makes a step when it is needed, so that one at a time is in memory.

    Attributes
    ----------
    make : callable
    captured : bool
        Whether the step is captured in a CUDA graph.
    same_function : bool
        Whether the layer computes the same function as ours, so that its loss must be ours.
    tolerated : tuple of exceptions
        The step is reported as one that does not run if it raises one of these.
    """

    make: Callable[[], Step]
    captured: bool = False
    same_function: bool = True
    tolerated: tuple[type[Exception], ...] = OUT_OF_MEMORY


def measure(with_authors: bool) -> dict[str, dict[str, dict[str, Any]]]:
    """Return milliseconds, loss and peak memory of steps, by shape and layer."""
    return {f"{features} x {features}": _measure(features, with_authors) for features in FEATURES}


def _measure(features: int, with_authors: bool) -> dict[str, dict[str, Any]]:
    workload = make_workload(features, features, NUM_GRIDS, BATCH, cupy)
    results: dict[str, dict[str, Any]] = {}
    for name, factory in _factories(workload, with_authors):
        try:
            measured = _measure_step(factory)
            if factory.same_function:
                ours = results.get(OURS, {}).get("loss", measured["loss"])
                _check_loss(name, measured["loss"], ours)
            results[name] = measured
        except factory.tolerated as error:
            results[name] = {"does not run": authors.reason(error)}
        free_memory()
    return results


def _measure_step(factory: StepFactory) -> dict[str, float]:
    """Return milliseconds, the loss after the warm-up, and peak MB beyond the data."""
    before = cuda.memory_allocated()
    step = factory.make()
    cuda.reset_peak_memory_stats()
    # A step to be captured warms up on a side stream; the authors launch on the default one only.
    side = cuda.Stream() if factory.captured else cuda.current_stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        for _ in range(WARMUP):
            step()
    cuda.current_stream().wait_stream(side)
    if factory.captured:
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
    if not abs(loss - ours) <= MAX_DIFFERENCE * abs(ours):
        raise AssertionError(f"{name}: the loss is {loss}, ours {ours}")


def _factories(workload: Workload, with_authors: bool) -> Iterator[tuple[str, StepFactory]]:
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

    yield OURS, StepFactory(ours)
    yield f"{OURS} in a graph", StepFactory(ours, captured=True)
    yield "nn.Linear", StepFactory(linear, same_function=False)
    yield 'engine="torch", compiled', StepFactory(lambda: ours("torch", compiled=True))
    if not with_authors:
        return
    columns, targets = x.T.contiguous(), target.T.contiguous()  # their layout

    def theirs() -> Step:
        layer = authors.module(workload, authors.fastest_sizes(workload, device_stopwatch))

        def loss() -> Tensor:
            penalty = layer.get_hessian_regularization()
            return _error(layer(columns), targets) + PENALTY * penalty

        return _step(layer, loss)

    yield "authors", StepFactory(theirs, tolerated=(Exception,))


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
    """A step in a CUDA graph; holding the step and its loss keeps the graph's memory alive."""

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
