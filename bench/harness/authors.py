"""The authors' layer beside ours, where ``--peer`` names a folder with their package lmKAN.

They launch kernels without asking whether that succeeded, and where sizes do not fit, zeros are
left: what is timed was compared with ours before. Whatever fails is a reason and not an error.
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

from .peers import Layer, torch_layer
from .timing import Stopwatch
from .workload import Workload

#: Sizes of kernels are tried on as many samples at most, and timed so often.
TRIED_SAMPLES = 2**16
REPEATS = 3

#: Most that a result of theirs may be off, in norms. They are compiled for fast, inexact
#: exponentials: near a knot, for some 1e-5 of the inputs, the other of the two slopes is taken,
#: which changes the norm of a gradient by 3e-3. A tile of outputs that is missing changes it by
#: more than 1e-1.
OFF = 1e-2


class DoesNotRun(Exception):
    """Why a layer cannot be timed."""


def require_package() -> None:
    """Raise an ImportError where their package cannot be imported."""
    import_module("lmKAN")


def module(workload: Workload, sizes: dict[str, Any]) -> Any:
    """Their module with the tables of a workload, and tile and block sizes of its kernels."""
    from lmKAN import LMKAN2DLayer

    tables = torch.from_dlpack(workload.tables)
    in_features, out_features = workload.x.shape[1], workload.grad_y.shape[1]
    made = LMKAN2DLayer(workload.num_grids, in_features, out_features, **sizes).to(tables.device)
    with torch.no_grad():
        made.func_parameter.copy_(tables.permute(1, 2, 3, 0))
    return made


def layer(workload: Workload, sizes: dict[str, Any]) -> Layer:
    """Their layer, in their layout ``[features, batch]``."""
    x = torch.from_dlpack(workload.x).T.contiguous().requires_grad_()
    made = module(workload, sizes)
    grad_y = torch.from_dlpack(workload.grad_y).T.contiguous()
    return torch_layer(lambda: made(x), [x, made.func_parameter], grad_y)


def fastest_sizes(workload: Workload, clock: Stopwatch) -> dict[str, Any]:
    """Return tile and block sizes of their fastest kernels for a workload.

    Raises
    ------
    DoesNotRun
        If there are none that give our results.
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
    """Return the choice of the least time; those that fail in any way are left out."""
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
    """Return what an error says, in one line."""
    return " ".join([type(error).__name__ + ":", *str(error).splitlines()[:1]])


def compare(theirs: Layer, ours: tuple[Tensor, ...]) -> None:
    """Compare the output, and both gradients if they are given, in their layout.

    Raises
    ------
    AssertionError
        If a result is off.
    """
    y = theirs.forward()
    results = [y]
    if len(ours) > 1:
        results += theirs.backward(y)
        _report_refusal_in_autograd(y.device)
    for name, result, expected in zip(("y", "grad_x", "grad_tables"), results, ours, strict=False):
        # Operations of torch, which also report a launch of theirs that was refused.
        off = torch.linalg.vector_norm(result.detach() - expected) / torch.linalg.vector_norm(
            expected
        )
        if not off <= OFF:
            raise AssertionError(f"{name} is not ours: off by {off:.2g} of its norm")


def _report_refusal_in_autograd(device: torch.device) -> None:
    """Let torch raise what CUDA says of a refused launch in a backward, before others hear of it.

    That is kept for the thread that launched, and autograd has its own.
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
