"""Convolutions on the CPU engine beside the layer of an array of all windows."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lmkan_cupy.adapters.torch import LMKANConv2d, lmkan
from rich.console import Console
from torch import Tensor

from .console_tables import show_table
from .targets import CheckedTarget
from .timing import Ratio, interleave, ratio, stopwatch

#: The kernel is 3 x 3, with as many pixels of padding as keep the size of an image.
KERNEL = 3
NUM_GRIDS = 8


class Shape(NamedTuple):
    """Images of a convolution that keeps size and number of channels."""

    channels: int
    size: int
    images: int = 64

    def __str__(self) -> str:
        return f"{self.channels} channels, {self.size} x {self.size}, N = {self.images}"


SHAPES = [Shape(channels, size) for channels in (16, 32, 64) for size in (32, 16)]

#: How many times as long all windows should take at least, in a forward and in both passes.
AT_LEAST = {16: (3.0, 1.8), 32: (3.0, 1.8), 64: (2.0, 1.8)}


def of_all_windows(layer: LMKANConv2d, images: Tensor) -> Tensor:
    """Return what the layer gives, from an array of all windows."""
    padded = torch.nn.functional.pad(images, (KERNEL // 2,) * 4)
    views = padded.unfold(2, KERNEL, 1).unfold(3, KERNEL, 1)
    return lmkan(views.permute(0, 2, 3, 1, 4, 5).flatten(3), layer.tables).movedim(-1, 1)


def time_convolutions(
    shapes: Sequence[Shape], seconds: float
) -> dict[Shape, dict[str, dict[str, Any]]]:
    """Check that both ways give the same bits, then time them in turn.

    Gives for each shape and pass the milliseconds of a convolution, and the ratio of the times from
    all windows to them.
    """
    return {shape: _time(shape, seconds) for shape in shapes}


def _time(shape: Shape, seconds: float) -> dict[str, dict[str, Any]]:
    channels, size, count = shape
    torch.manual_seed(0)
    layer = LMKANConv2d(channels, channels, KERNEL, padding=KERNEL // 2, num_grids=NUM_GRIDS)
    images = torch.randn(count, channels, size, size, requires_grad=True)
    leaves, grad_y = (images, layer.tables), torch.randn_like(images)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "convolution": layer,
        "windows": partial(of_all_windows, layer),
    }
    with torch.no_grad():
        y, expected = (way(images) for way in ways.values())
    if not torch.equal(y, expected):
        raise RuntimeError(f"{shape}: the convolution differs from the layer of all windows")

    def measure(way: Callable[[Tensor], Tensor]) -> tuple[float, float]:
        with torch.no_grad():
            forward, _ = stopwatch(way, images)
        both, _ = stopwatch(lambda: torch.autograd.grad(way(images), leaves, grad_y))
        return forward, both

    times = interleave({name: partial(measure, way) for name, way in ways.items()}, seconds=seconds)
    return {
        pass_: {
            "ms": round(1e3 * float(np.median(times["convolution"][k])), 4),
            "windows / ours": asdict(ratio(times["windows"][k], times["convolution"][k])),
        }
        for k, pass_ in enumerate(("forward", "both"))
    }


def show_convolutions(out: Console, results: Mapping[Shape, dict[str, dict[str, Any]]]) -> None:
    """Print the times as a table."""

    def row(shape: Shape) -> Iterator[str]:
        yield str(shape)
        for measured in results[shape].values():
            yield f"{measured['ms']:.4g}"
            yield str(Ratio(**measured["windows / ours"]))

    header = ["", "forward, ms", "windows / ours", "both, ms", "windows / ours"]
    title = f"{KERNEL} x {KERNEL} convolutions, G = {NUM_GRIDS}, float32"
    show_table(out, title, header, map(row, results))


def check_convolutions(
    results: Mapping[Shape, dict[str, dict[str, Any]]],
) -> list[CheckedTarget]:
    """Check how many times as long an array of all windows takes."""
    targets = []
    for shape, passes in results.items():
        for least, (pass_, each) in zip(AT_LEAST[shape.channels], passes.items(), strict=True):
            measured = Ratio(**each["windows / ours"])
            what = f"{shape}, {pass_}: all windows / ours"
            met = measured.median >= least
            targets.append(CheckedTarget(what, f">= {least}", str(measured), met))
    return targets
