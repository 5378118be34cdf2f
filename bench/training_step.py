"""Whole steps of training one layer on the first CUDA device: loss, penalty, backward, Adam."""

import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import cupy
import torch
from lmkan_cupy.adapters.torch import LMKANLinear
from torch import Tensor, nn

from . import peers
from .device import device_stopwatch, free_memory
from .record import OURS
from .workloads import make_workload

Step: TypeAlias = Callable[[], object]

NUM_GRIDS = 16
REPEATS, STEPS = 5, 10


def measure(features: int, batch: int, with_authors: bool) -> dict[str, dict[str, float]]:
    """Return milliseconds of each step, host and device, and the peak of memory in MB."""
    results = {}
    for name, make in _steps(features, batch, with_authors).items():
        step = make()
        step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        taken = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            for _ in range(STEPS):
                step()
            torch.cuda.synchronize()
            taken.append((time.perf_counter() - start) / STEPS)
        peak = torch.cuda.max_memory_allocated() / 2**20
        results[name] = {"ms": 1e3 * statistics.median(taken), "peak MB": peak}
        del step
        free_memory()
    return results


def _steps(features: int, batch: int, with_authors: bool) -> dict[str, Callable[[], Step]]:
    """Return what makes each step, so that one at a time is in memory."""
    x, target = (torch.randn(batch, features, device="cuda") for _ in range(2))

    def ours(engine: Any = None, compiled: bool = False) -> Step:
        layer = LMKANLinear(features, features, NUM_GRIDS, engine=engine, device="cuda")
        torch.compiler.reset()
        forward = torch.compile(layer, dynamic=False) if compiled else layer
        return _step(layer, lambda: _error(forward(x), target) + 1e-6 * layer.hessian_penalty())

    def linear() -> Step:
        layer = nn.Linear(features, features, device="cuda")
        return _step(layer, lambda: _error(layer(x), target))

    makers = {
        OURS: ours,
        f"{OURS} in a graph": lambda: _captured(ours()),
        "nn.Linear": linear,
    }
    if features <= 128:  # else it needs too much memory
        makers['engine="torch", compiled'] = lambda: ours("torch", compiled=True)
    if with_authors:
        workload = make_workload(features, features, NUM_GRIDS, batch, cupy)
        if sizes := peers.authors_sizes(workload, device_stopwatch):

            def authors() -> Step:
                layer = peers.authors_layer(workload, sizes)
                columns, targets = x.T.contiguous(), target.T.contiguous()  # their layout

                def loss() -> Tensor:
                    penalty = layer.get_hessian_regularization()
                    return _error(layer(columns), targets) + 1e-6 * penalty

                return _step(layer, loss)

            makers["authors"] = authors
    return makers


def _error(y: Tensor, target: Tensor) -> Tensor:
    return nn.functional.mse_loss(y, target)


def _step(layer: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, fused=True, capturable=True)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def _captured(step: Step) -> Step:
    """Return the replay of a step in a CUDA graph."""
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
