"""The engine "torch": a layer and its penalty in plain torch operations.

It gathers the corners of every sample's cell and adds them with their weights. It serves devices
and exporters that have nothing but torch, and independent checks. It can be differentiated any
number of times; autograd keeps the 2^d rows of every sample and group, ``2^d [B, P, O]``.
"""

import operator
from collections.abc import Sequence
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from lmkan_cupy import array_checks
from lmkan_cupy.grid import sigma_grid

from .exchange import dtype_name


def forward(x: Tensor, tables: Tensor) -> Tensor:
    """Return the layer ``y [..., O]`` of ``x [..., I]`` and ``tables [P, S, ..., S, O]``.

    The same function as :func:`lmkan_cupy.forward`.
    """
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    num_knots, out_features = tables.shape[1], tables.shape[-1]
    intervals, positions = _cells(x, tables)
    rows, node = tables.to(x.dtype).reshape(-1, out_features), _number(intervals, num_knots)
    parts = [
        # A weight [..., P, 1] is shared by all outputs.
        (weight.unsqueeze(-1) * rows[node + place]).sum(-2)
        for weight, place in _corners(positions, num_knots)
    ]
    return sum(parts[1:], parts[0])


def forward_for_onnx(x: Tensor, tables: Tensor) -> Tensor:
    """Return what :func:`forward` does, in the operations that ONNX runtimes do fastest.

    That is one gather, from tables that hold the corners of every cell side by side, which a
    runtime prepares once, and one matrix product with the weights of the corners of all groups.
    """
    array_checks.check_layer_like(
        "lmkan", x.shape, dtype_name(x.dtype), tables.shape, dtype_name(tables.dtype)
    )
    num_knots, out_features = tables.shape[1], tables.shape[-1]
    intervals, positions = _cells(x, tables)
    weights = torch.stack([weight for weight, _ in _corners(positions, num_knots)], -1)
    values, ends = tables.to(x.dtype), (slice(None, -1), slice(1, None))
    corners = [values[(slice(None), *each)] for each in product(ends, repeat=len(positions))]
    cells = torch.stack(corners, -2).reshape(-1, len(corners), out_features)
    # [..., P 2^d, O]
    rows = cells[_number(intervals, num_knots - 1)].flatten(-3, -2)
    return torch.matmul(weights.flatten(-2).unsqueeze(-2), rows).squeeze(-2)


def hessian_penalty(tables: Tensor) -> Tensor:
    """Return the roughness R of all functions, 0-d: :func:`lmkan_cupy.hessian_penalty`."""
    array_checks.check_tables_like("hessian_penalty", tables.shape, dtype_name(tables.dtype))
    tables = tables.to(torch.float64 if tables.dtype == torch.float64 else torch.float32)
    width = _knots(tables.shape[1], tables).diff()
    span = width[:-1] + width[1:]

    dimension = tables.ndim - 2

    def curvature(values: Tensor) -> Tensor:
        """Second differences along the first axis of knots."""
        slope = values.diff(dim=1) / along_first(width)
        return 2 * slope.diff(dim=1) / along_first(span)

    def central(values: Tensor) -> Tensor:
        return (values[:, 2:] - values[:, :-2]) / along_first(span)

    def along_first(numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, *[1] * dimension)

    total = tables.new_zeros(())
    for axes in combinations_with_replacement(range(1, dimension + 1), 2):
        first, last = axes
        inner = [slice(None)] * tables.ndim
        for axis in {*range(1, dimension + 1)} - {*axes}:
            inner[axis] = slice(1, -1)
        values = tables[tuple(inner)].transpose(1, first)
        if first == last:
            total = total + curvature(values).square().sum()
        else:
            total = total + 2 * central(central(values).transpose(1, last)).square().sum()
    num_nodes: int = len(span) ** dimension
    return total / num_nodes


def _cells(x: Tensor, tables: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return a cell's intervals and the positions in them, d times [..., P] each, of x [..., I]."""
    groups, num_knots, *more_knots, _ = tables.shape
    dimension = 1 + len(more_knots)
    if lacking := -x.shape[-1] % dimension:  # the last group is completed by zeros
        x = torch.nn.functional.pad(x, (0, lacking))
    interval, position = _locate(x, _knots(num_knots, x))
    by_group = (*x.shape[:-1], groups, dimension)
    return interval.reshape(by_group).unbind(-1), position.reshape(by_group).unbind(-1)


def _corners(positions: Sequence[Tensor], num_knots: int) -> list[tuple[Tensor, int]]:
    """Return the weights [..., P] of a cell's corners, and their places after the first one."""
    first, *rest = positions
    corners = [(1 - first, 0), (first, 1)]
    for u in rest:
        sides = (1 - u, 0), (u, 1)
        corners = [
            (weight * side, num_knots * place + step)
            for weight, place in corners
            for side, step in sides
        ]
    return corners


def _number(indices: Sequence[Tensor], size: int) -> Tensor:
    """Return the number [..., P] of an element of arrays [P, size, ..., size]."""
    number = torch.arange(indices[0].shape[-1], device=indices[0].device)
    for index in indices:
        number = number * size + index
    return number


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
