"""``python -m bench.host_cost``: the host's time for a call, beside ``nn.Linear``.

Microseconds per call of the core on arrays, of the torch adapter, of autograd around it, and of
``nn.Linear``. On a GPU kernels are launched and not waited for.
"""

import argparse
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch
from lmkan_cupy.adapters.torch import LMKANLinear
from lmkan_cupy.adapters.torch.exchange import run
from torch import Tensor

import lmkan_cupy

from .harness.results_file import circumstances
from .harness.timing import interleave, stopwatch

#: Calls in a row: few enough that their kernels, at most ten each, fit into a GPU's queue.
CALLS = 50


def calls(
    device: str, in_features: int, out_features: int, num_grids: int, batch: int
) -> dict[str, Callable[[], object]]:
    """Return the calls that are timed, by name."""
    layer = LMKANLinear(in_features, out_features, num_grids, device=device)
    linear = torch.nn.Linear(in_features, out_features, device=device)
    x = torch.randn(batch, in_features, device=device)
    grad_y = torch.ones(batch, out_features, device=device)
    leaf, tables = x.clone().requires_grad_(), layer.tables.detach()

    def forward_and_backward(module: torch.nn.Module) -> Callable[[], object]:
        wanted = [leaf, *module.parameters()]
        return lambda: torch.autograd.grad(module(leaf), wanted, grad_y)

    def inference(function: Callable[..., Tensor], *arguments: Tensor) -> Callable[[], object]:
        def infer() -> Tensor:
            with torch.inference_mode():
                return function(*arguments)

        return infer

    xp = np if device == "cpu" else import_module("cupy")
    arrays = [xp.from_dlpack(each) for each in (x, tables)]
    grad_y_array = xp.from_dlpack(grad_y)
    return {
        "forward of arrays": lambda: lmkan_cupy.forward(*arrays),
        "backward of arrays": lambda: lmkan_cupy.backward(grad_y_array, *arrays),
        "run: forward of tensors": lambda: run(lmkan_cupy.forward, x, tables),
        "LMKANLinear, inference mode": inference(layer, x),
        "LMKANLinear": lambda: layer(leaf),
        "LMKANLinear and its gradients": forward_and_backward(layer),
        "nn.Linear, inference mode": inference(linear, x),
        "nn.Linear": lambda: linear(leaf),
        "nn.Linear and its gradients": forward_and_backward(linear),
    }


def measure(device: str, sizes: Sequence[int], seconds: float) -> dict[str, float]:
    """Return the microseconds of each of `calls`, medians over rounds."""

    def per_call(call: Callable[[], object]) -> Callable[[], tuple[float]]:
        def repeat() -> None:
            for _ in range(CALLS):
                call()

        def timed() -> tuple[float]:
            taken, _ = stopwatch(repeat)
            if device != "cpu":
                torch.cuda.synchronize()
            return (taken / CALLS,)

        return timed

    timed = {name: per_call(call) for name, call in calls(device, *sizes).items()}
    taken = interleave(timed, seconds=seconds)
    return {name: 1e6 * float(np.median(each)) for name, each in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.host_cost", description=__doc__)
    parser.add_argument("device", nargs="?", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs=4,
        metavar=("I", "O", "G", "B"),
        default=(2, 1, 4, 2),
        help="by default a single function of two samples, so little that only the host counts",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(circumstances())
    for name, taken in measure(arguments.device, arguments.sizes, seconds=20).items():
        print(f"{name:<30} {taken:6.1f} us")


if __name__ == "__main__":
    main()
