"""``python -m bench.host_cost [cpu | cuda]``: host cost of a call, for a layer of one function.

Microseconds per call, least of the rounds: of the core on arrays, of the torch adapter, of autograd
around it, and of ``nn.Linear``. On a GPU kernels are started and not waited for.
"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

import numpy as np
import torch
from lmkan_cupy.adapters.torch import lmkan
from lmkan_cupy.adapters.torch.exchange import run
from torch import Tensor

import lmkan_cupy
from bench.record import circumstances
from bench.timing import interleave, stopwatch

CALLS = 300


def calls(device: str) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    x, tables = torch.randn(2, 2, device=device), torch.randn(1, 5, 5, 1, device=device)
    linear = torch.nn.Linear(2, 1, device=device)
    leaves = [each.clone().requires_grad_() for each in (x, tables)]
    inputs = (leaves[0], *linear.parameters())
    grad_y = torch.ones(2, 1, device=device)

    def there_and_back(function: Callable[[], Tensor], wanted: Sequence[Tensor]) -> object:
        return torch.autograd.grad(function(), wanted, grad_y)

    def inference(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
        with torch.inference_mode():
            return function(*arguments)

    xp = np if device == "cpu" else import_module("cupy")
    arrays = [xp.from_dlpack(each) for each in (x, tables)]
    return {
        "the core on arrays": lambda: lmkan_cupy.forward(*arrays),
        "run: the core on tensors": lambda: run(lmkan_cupy.forward, x, tables),
        "lmkan, inference mode": lambda: inference(lmkan, x, tables),
        "lmkan": lambda: lmkan(*leaves),
        "lmkan and its gradients": lambda: there_and_back(lambda: lmkan(*leaves), leaves),
        "nn.Linear, inference mode": lambda: inference(linear, x),
        "nn.Linear": lambda: linear(inputs[0]),
        "nn.Linear and its gradients": lambda: there_and_back(lambda: linear(inputs[0]), inputs),
    }


def seconds(call: Callable[[], object]) -> list[float]:
    def repeat() -> None:
        for _ in range(CALLS):
            call()

    return [stopwatch(repeat)[0] / CALLS]


def main(device: str) -> None:
    torch.set_num_threads(1)
    print(circumstances())
    timed = calls(device)
    measured = interleave({name: lambda c=c: seconds(c) for name, c in timed.items()}, seconds=20)
    for name, times in measured.items():
        print(f"{name:<30} {1e6 * times.min():6.1f} us")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "cpu")
