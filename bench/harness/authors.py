"""The layer of the paper's authors, where ``--peer`` names a folder with their package lmKAN.

Their package does not check whether a kernel launch succeeded, and leaves zeros where sizes do not
fit. So results are compared with ours before anything is timed, and a layer that fails is reported
with the reason instead of ending the benchmark.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib import import_module
from itertools import product
from statistics import median
from typing import Any

import torch
from torch import Tensor

import lmkan_cupy

from .peers import TimedLayer, torch_layer
from .timing import Stopwatch
from .workload import Workload

#: Largest number of samples on which kernel sizes are tried, and how often each is timed.
TRIED_SAMPLES = 2**16
REPEATS = 3

#: Largest difference of their results from ours, relative in norm. They are compiled with fast,
#: inexact exponentials: for some 1e-5 of the inputs, those near a knot, the slope of the other side
#: is taken, which changes the norm of a gradient by 3e-3. A missing tile of outputs changes it by
#: more than 1e-1.
MAX_DIFFERENCE = 1e-2


class DoesNotRun(Exception):
    """Why a layer cannot be timed."""


def require_package() -> None:
    """Raise an ImportError if their package cannot be imported."""
    import_module("lmKAN")


def module(workload: Workload, sizes: dict[str, Any]) -> Any:
    """Return their module with the tables of a workload and these kernel sizes."""
    from lmKAN import LMKAN2DLayer

    tables = torch.from_dlpack(workload.tables)
    in_features, out_features = workload.x.shape[1], workload.grad_y.shape[1]
    made = LMKAN2DLayer(workload.num_grids, in_features, out_features, **sizes).to(tables.device)
    with torch.no_grad():
        made.func_parameter.copy_(tables.permute(1, 2, 3, 0))
    return made


def layer(workload: Workload, sizes: dict[str, Any]) -> TimedLayer:
    """Return their layer, in their layout ``[features, batch]``."""
    x = torch.from_dlpack(workload.x).T.contiguous().requires_grad_()
    made = module(workload, sizes)
    grad_y = torch.from_dlpack(workload.grad_y).T.contiguous()
    return torch_layer(lambda: made(x), [x, made.func_parameter], grad_y)


def fastest_sizes(workload: Workload, clock: Stopwatch) -> dict[str, Any]:
    """Return the tile and block sizes of their fastest kernels for a workload.

    Raises
    ------
    DoesNotRun
        If no sizes give our results.
    """
    some = workload.first(TRIED_SAMPLES)
    ours = _ours(some)

    def seconds_forward(sizes: dict[str, Any]) -> float:
        tried = replace(layer(some, sizes), stopwatch=clock)
        compare(tried, ours[:1])
        return median(tried.time_forward()[0] for _ in range(REPEATS))

    def seconds_backward(sizes: dict[str, Any]) -> float:
        tried = replace(layer(some, sizes), stopwatch=clock)
        compare(tried, ours)
        return median(tried.time_step()[0] for _ in range(REPEATS))

    forward = _fastest(
        seconds_forward,
        (
            {"tile_size_forward": tile, "block_size_forward": block}
            for tile, block in product((16, 8, 4), (1024, 512, 256))
        ),
    )
    normal = (
        {"tile_size_backward": tile, "block_size_backward": block}
        for tile, block in product((16, 8, 4), (512, 256))
    )
    fast = {"tile_size_backward": 8, "block_size_backward": 128, "backward_fast_mode": True}
    found = _fastest(seconds_backward, (forward | sizes for sizes in (*normal, fast)))
    if len(workload.x) > TRIED_SAMPLES:
        try:
            compare(layer(workload, found), _ours(workload))
        except Exception as error:
            raise DoesNotRun(reason(error)) from error
    return found


def _fastest(
    seconds: Callable[[dict[str, Any]], float], choices: Iterable[dict[str, Any]]
) -> dict[str, Any]:
    """Return the fastest choice; those that fail in any way are left out."""
    times, failures = [], []
    for sizes in choices:
        try:
            times.append((seconds(sizes), sizes))
        except Exception as error:
            failures.append(reason(error))
    if not times:
        raise DoesNotRun("; ".join(dict.fromkeys(failures)))
    return min(times, key=lambda each: each[0])[1]


def reason(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return " ".join([type(error).__name__ + ":", *str(error).splitlines()[:1]])


def compare(theirs: TimedLayer, ours: tuple[Tensor, ...]) -> None:
    """Compare the output, and both gradients where ours has them, in their layout.

    Raises
    ------
    AssertionError
        If a result differs too much.
    """
    y = theirs.forward()
    results = [y]
    if len(ours) > 1:
        results += theirs.backward(y)
        _report_refusal_in_autograd(y.device)
    for name, result, expected in zip(("y", "grad_x", "grad_tables"), results, ours, strict=False):
        # Operations of torch, which also report a launch of theirs that was refused.
        difference = torch.linalg.vector_norm(
            result.detach() - expected
        ) / torch.linalg.vector_norm(expected)
        if not difference <= MAX_DIFFERENCE:
            raise AssertionError(f"{name} is not ours: off by {difference:.2g} of its norm")


def _report_refusal_in_autograd(device: torch.device) -> None:
    """Let torch raise CUDA's error of a refused launch in their backward, before another call does.

    CUDA keeps it for the thread that launched, which is autograd's own.
    """
    x = torch.ones(1, device=device, requires_grad=True)
    torch.autograd.grad((x * x).sum(), x)


def _ours(workload: Workload) -> tuple[Tensor, ...]:
    y = lmkan_cupy.forward(workload.x, workload.tables)
    grad_x, grad_tables = lmkan_cupy.backward(workload.grad_y, workload.x, workload.tables)
    return (
        torch.from_dlpack(y).T,
        torch.from_dlpack(grad_x).T,
        torch.from_dlpack(grad_tables).permute(1, 2, 3, 0),
    )
