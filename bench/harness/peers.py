"""The layers that the benchmarks compare, ours and others', ready to be timed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from lmkan_cupy.adapters.torch import lmkan as lmkan_of_tensors
from torch import Tensor, nn

import lmkan_cupy

from .interpolation import interpolation, weighted_sum
from .timing import Stopwatch, stopwatch
from .workload import Workload


@dataclass(frozen=True)
class TimedLayer:
    """A layer with its arguments.

    Attributes
    ----------
    forward : function
        Returns the output.
    backward : function
        Takes what ``forward`` returned, and returns the gradients of the input and of all
        parameters, for lmKAN layers ``(grad_x, grad_tables)``.
    share : float
        The fraction of the workload's samples that one call computes; times are scaled to all.
    stopwatch : function
        :func:`.timing.stopwatch`, or another function with its signature.
    """

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]
    share: float = 1.0
    stopwatch: Stopwatch = stopwatch

    def time_forward(self) -> tuple[float]:
        """Return the seconds of a forward that keeps nothing for a backward."""
        with torch.no_grad():
            forward, _ = self.stopwatch(self.forward)
        return (forward / self.share,)

    def time_step(self) -> tuple[float, float]:
        """Return the seconds of the backward of a training step, and of forward and backward."""
        forward, y = self.stopwatch(self.forward)
        backward, _ = self.stopwatch(self.backward, y)
        return backward / self.share, (forward + backward) / self.share


def lmkan(workload: Workload) -> TimedLayer:
    """Return our functions on the arrays of a workload."""
    x, grad_y, tables = workload.x, workload.grad_y, workload.tables
    return TimedLayer(
        forward=lambda: lmkan_cupy.forward(x, tables),
        backward=lambda y: lmkan_cupy.backward(grad_y, x, tables),
    )


def embedding_bag(workload: Workload) -> TimedLayer:
    """Return the same sum in torch, rows and weights given, so that only the sum is timed.

    Its gradients are those of tables and weights; ``grad_x`` would take further time.
    """
    at = interpolation(torch.from_dlpack(workload.x).double(), workload.num_grids)
    rows, weights = at.rows, at.weights.float().requires_grad_()
    tables = torch.from_dlpack(workload.tables).requires_grad_()
    return torch_layer(
        lambda: weighted_sum(tables, rows, weights), [weights, tables], _grad_y(workload)
    )


def linear(workload: Workload, dtype: torch.dtype = torch.float32) -> TimedLayer:
    x = torch.from_dlpack(workload.x).to(dtype).requires_grad_()
    in_features, out_features = workload.x.shape[1], workload.grad_y.shape[1]
    layer = nn.Linear(in_features, out_features, device=x.device, dtype=dtype)
    grad_y = _grad_y(workload).to(dtype)
    return torch_layer(lambda: layer(x), [x, *layer.parameters()], grad_y)


def tf32_linear(workload: Workload) -> TimedLayer:
    """Return a float32 linear layer whose products are rounded to TF32."""
    layer = linear(workload)

    def in_tf32(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            torch.backends.cuda.matmul.allow_tf32 = True
            try:
                return call(*arguments)
            finally:
                torch.backends.cuda.matmul.allow_tf32 = False

        return called

    return TimedLayer(in_tf32(layer.forward), in_tf32(layer.backward))


def plain_torch(workload: Workload) -> TimedLayer:
    """Return our layer in plain torch operations, ``engine="torch"``, under ``torch.compile``."""
    torch.compiler.reset()
    x = torch.from_dlpack(workload.x).requires_grad_()
    tables = torch.from_dlpack(workload.tables).requires_grad_()
    compiled = torch.compile(partial(lmkan_of_tensors, engine="torch"), dynamic=False)
    return torch_layer(lambda: compiled(x, tables), [x, tables], _grad_y(workload))


def kan(package: str, workload: Workload) -> TimedLayer:
    """Return the KAN layer of a PyPI package, of the same shape and grid size.

    All of it runs under ``torch.compile``, which its package uses in part or offers: on a CPU that
    was the fastest setting for all of them, or as fast.
    """
    torch.compiler.reset()  # otherwise earlier shapes count against the recompilation limit
    batch, in_features = workload.x.shape
    out_features = workload.grad_y.shape[1]
    layer = KAN_LAYERS[package](in_features, out_features, workload.num_grids)

    @torch.compile(dynamic=False)
    def forward(x: Tensor) -> Tensor:
        result = layer(x)
        y: Tensor = result[0] if package == "pykan" else result  # pykan also returns what it plots
        return y

    # pykan has intermediate results [B, O, I]: one such array may take 512 MB.
    samples = min(batch, 2**27 // (in_features * out_features)) if package == "pykan" else batch
    x = torch.from_dlpack(workload.x[:samples]).requires_grad_()
    parameters = [p for p in layer.parameters() if p.requires_grad]
    grad_y = _grad_y(workload)[:samples]
    return torch_layer(lambda: forward(x), [x, *parameters], grad_y, samples / batch)


def kan_versions() -> dict[str, str | None]:
    """Return the versions of the KAN packages, None for one that is not installed."""
    versions: dict[str, str | None] = dict.fromkeys(KAN_LAYERS)
    for package in versions:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def torch_layer(
    forward: Callable[[], Tensor], inputs: Sequence[Tensor], grad_y: Tensor, share: float = 1.0
) -> TimedLayer:
    return TimedLayer(forward, lambda y: torch.autograd.grad(y, inputs, grad_y), share)


def _grad_y(workload: Workload) -> Tensor:
    return torch.from_dlpack(workload.grad_y)


# Nearly all of a standard normal input lies in this range; it does not change the time.
_GRID_RANGE = (-3.0, 3.0)


def _flashkan(in_features: int, out_features: int, num_grids: int) -> nn.Module:
    from flashkan import KANLayer

    layer: nn.Module = KANLayer(
        in_features, out_features, grid_size=num_grids, grid_range=_GRID_RANGE
    )
    return layer


def _inkan(in_features: int, out_features: int, num_grids: int) -> nn.Module:
    from inkan import KANLayer

    layer: nn.Module = KANLayer(
        in_features, out_features, grid_size=num_grids, grid_range=_GRID_RANGE, compile_basis=False
    )  # compiled with the rest of the layer instead
    return layer


def _pykan(in_features: int, out_features: int, num_grids: int) -> nn.Module:
    from kan.KANLayer import KANLayer

    layer: nn.Module = KANLayer(in_features, out_features, num=num_grids, grid_range=_GRID_RANGE)
    return layer


KAN_LAYERS = {"flashkan": _flashkan, "inkan": _inkan, "pykan": _pykan}
