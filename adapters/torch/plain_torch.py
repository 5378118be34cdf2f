"""The engine "torch": a layer and its penalty in plain torch operations.

It gathers the four corners of every sample's cell and adds them with their weights. It serves
devices and exporters that have nothing but torch, and independent checks. It can be differentiated
any number of times; autograd keeps four rows per sample and pair, ``4 [B, P, O]``.
"""

import operator

import torch
from torch import Tensor

from lmkan_cupy import array_checks
from lmkan_cupy.grid import sigma_grid

from .exchange import dtype_name


def forward(x: Tensor, tables: Tensor) -> Tensor:
    """Return the layer ``y [..., O]`` of ``x [..., I]`` and ``tables [P, S, S, O]``.

    The same function as :func:`lmkan_cupy.forward`.
    """
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    pairs, num_knots, _, out_features = tables.shape
    i, j, u, v = _cells(x, pairs, num_knots)
    u, v = u.unsqueeze(-1), v.unsqueeze(-1)  # [..., P, 1]: shared by all outputs

    rows = tables.to(x.dtype).reshape(-1, out_features)
    first = (torch.arange(pairs, device=x.device) * num_knots + i) * num_knots + j

    def corner(weight: Tensor, row: Tensor) -> Tensor:
        return (weight * rows[row]).sum(-2)

    return (
        corner((1 - u) * (1 - v), first)
        + corner((1 - u) * v, first + 1)
        + corner(u * (1 - v), first + num_knots)
        + corner(u * v, first + num_knots + 1)
    )


def forward_for_onnx(x: Tensor, tables: Tensor) -> Tensor:
    """Return what :func:`forward` does, in the operations that ONNX runtimes do fastest.

    That is one gather, from tables that hold the four corners of every cell side by side, which a
    runtime prepares once, and one matrix product with the weights of the corners of all pairs.
    """
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    pairs, num_knots, _, out_features = tables.shape
    num_grids = num_knots - 1
    i, j, u, v = _cells(x, pairs, num_knots)
    weights = torch.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], -1)

    low, high = slice(None, -1), slice(1, None)
    values = tables.to(x.dtype)
    corners = [values[:, a, b] for a in (low, high) for b in (low, high)]
    cells = torch.stack(corners, 3).reshape(-1, 4, out_features)  # [P G G, 4, O]
    cell = (torch.arange(pairs, device=x.device) * num_grids + i) * num_grids + j
    rows = cells[cell].reshape(*x.shape[:-1], 4 * pairs, out_features)
    return torch.matmul(weights.reshape(*x.shape[:-1], 1, 4 * pairs), rows).squeeze(-2)


def hessian_penalty(tables: Tensor) -> Tensor:
    """Return the roughness R of all functions, 0-d: :func:`lmkan_cupy.hessian_penalty`."""
    array_checks.check_tables_like("hessian_penalty", tables.shape, dtype_name(tables.dtype))
    tables = tables.to(torch.float64 if tables.dtype == torch.float64 else torch.float32)
    width = _knots(tables.shape[1], tables).diff()
    span = width[:-1] + width[1:]

    def curvature(values: Tensor) -> Tensor:
        """Second differences along the first axis of knots."""
        slope = values.diff(dim=1) / width[:, None, None]
        return 2 * slope.diff(dim=1) / span[:, None, None]

    def central(values: Tensor) -> Tensor:
        return (values[:, 2:] - values[:, :-2]) / span[:, None, None]

    inner = tables[:, 1:-1, 1:-1]
    f_xx = curvature(tables[:, :, 1:-1])
    f_yy = curvature(tables[:, 1:-1].transpose(1, 2))
    f_xy = central(central(tables).transpose(1, 2))
    total = f_xx.square().sum() + 2 * f_xy.square().sum() + f_yy.square().sum()
    return total / (inner.shape[1] * inner.shape[2])


def _cells(x: Tensor, pairs: int, num_knots: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return cell ``i, j`` and position ``u, v`` in it, each [..., P], of x [..., I]."""
    if x.shape[-1] % 2:  # an odd number of inputs is completed by a 0
        x = torch.nn.functional.pad(x, (0, 1))
    interval, position = _locate(x, _knots(num_knots, x))
    by_pair = (*x.shape[:-1], pairs, 2)
    i, j = interval.reshape(by_pair).unbind(-1)
    u, v = position.reshape(by_pair).unbind(-1)
    return i, j, u, v


def _locate(x: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """Return the intervals of coordinates and their positions in them, in [0, 1] inside the grid.

    The same as :func:`lmkan_cupy.grid.locate`, for tensors.
    """
    num_grids = len(knots) - 1
    tail = 0.5 * torch.exp(-x.abs())
    scaled = num_grids * torch.where(x > 0, 1 - tail, tail)
    # A NaN goes to interval 0.
    interval = torch.where(scaled > 0, scaled.clamp(max=num_grids - 1), 0).long()
    left = knots[interval]
    return interval, (x - left) / (knots[interval + 1] - left)


def _knots(num_knots: int, like: Tensor) -> Tensor:
    """Return the knots [S] as a constant on the device of a tensor and in its dtype."""
    # A compiler that keeps sizes symbolic has to fix this one.
    values = _knot_values(operator.index(num_knots), like.dtype)
    return torch.tensor(values, dtype=like.dtype, device=like.device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _knot_values(num_knots: int, dtype: torch.dtype) -> list[float]:
    """Return the knots as numbers, which compilers and exporters take as constants."""
    values: list[float] = sigma_grid(num_knots - 1, dtype=dtype_name(dtype)).tolist()
    return values
