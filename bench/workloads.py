"""What is timed: the arrays of one layer, and a float64 evaluation that they are checked with."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

import lmkan_cupy
from lmkan_cupy.array_library import Array


@dataclass(frozen=True)
class Workload:
    """The float32 arrays of one layer; ``x`` is standard normal, as after batch normalisation."""

    x: Array  # [B, I]
    tables: Array  # [P, S, S, O]
    grad_y: Array  # [B, O]

    @property
    def num_grids(self) -> int:
        return int(self.tables.shape[1]) - 1

    @property
    def evaluations(self) -> int:
        """Inner functions evaluated by one forward, B P O."""
        return int(self.x.shape[0] * self.tables.shape[0] * self.tables.shape[3])


def make_workload(
    in_features: int, out_features: int, num_grids: int, batch: int, xp: Any = np
) -> Workload:
    """Return arrays of the library ``xp``, numpy or cupy."""
    rng = xp.random.default_rng(0)
    return Workload(
        x=rng.standard_normal((batch, in_features), dtype=np.float32),
        tables=lmkan_cupy.init_tables(in_features, out_features, num_grids, rng=rng, xp=xp),
        grad_y=rng.standard_normal((batch, out_features), dtype=np.float32),
    )


def corners(x: Tensor, num_grids: int) -> tuple[Tensor, Tensor]:
    """Where a layer reads its tables, seen as rows [P S S, O], and with which weights.

    Parameters
    ----------
    x : Tensor [B, I]
        float64; the weights are differentiable with respect to it.
    num_grids : int

    Returns
    -------
    rows : Tensor [B, 4 P]
        int64; the four corners of the cell of pair 0, then those of pair 1, and so on.
    weights : Tensor [B, 4 P]
        float64; ``y[b] = sum_n weights[b, n] tables[rows[b, n]]``.
    """
    x = _completed(x)
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(num_grids, dtype="float64")).to(x.device)
    cell = _scaled_sigma(x, num_grids).floor().clamp(0, num_grids - 1).long()
    position = (x - knots[cell]) / (knots[cell + 1] - knots[cell])
    i, j = cell[:, 0::2], cell[:, 1::2]
    u, v = position[:, 0::2], position[:, 1::2]

    size = num_grids + 1
    pair = torch.arange(x.shape[1] // 2, device=x.device)
    first = (pair * size + i) * size + j  # row of T[p, i, j]
    rows = torch.stack([first, first + 1, first + size, first + size + 1], dim=-1)
    weights = torch.stack([(1 - u) * (1 - v), (1 - u) * v, u * (1 - v), u * v], dim=-1)
    return rows.flatten(1), weights.flatten(1)


def weighted_sum(tables: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The sum of an lmKAN layer by torch's own kernel for it; rows and weights of `corners`."""
    flat = tables.flatten(0, 2)
    return embedding_bag(rows, flat, per_sample_weights=weights, mode="sum")


def check(workload: Workload) -> None:
    """Compare what will be timed with a float64 evaluation of the layer.

    The forwards and ``grad_x`` are compared for every 32nd sample, ``grad_tables`` for the first
    and the last pair.

    Raises
    ------
    AssertionError
        Naming the result that is wrong, with its first wrong values.
    """
    x, tables, grad_y = (
        torch.from_dlpack(array) for array in (workload.x, workload.tables, workload.grad_y)
    )
    num_grids, some, ends = workload.num_grids, slice(None, None, 32), [0, -1]

    x_some = x[some].double().requires_grad_()
    rows, weights = corners(x_some, num_grids)
    y = weighted_sum(tables.double(), rows, weights)
    (grad_x,) = torch.autograd.grad(y, x_some, grad_y[some].double())
    x_ends = _completed(x).reshape(len(x), -1, 2)[:, ends].flatten(1).double()
    tables_ends = tables[ends].double().requires_grad_()
    y_ends = weighted_sum(tables_ends, *corners(x_ends, num_grids))
    (grad_tables,) = torch.autograd.grad(y_ends, tables_ends, grad_y.double())

    our_y = torch.from_dlpack(lmkan_cupy.forward(workload.x, workload.tables))
    our_grad_x, our_grad_tables = map(
        torch.from_dlpack, lmkan_cupy.backward(workload.grad_y, workload.x, workload.tables)
    )
    # At a knot the derivative is one of the two one-sided ones, and rounding decides which.
    scaled = _scaled_sigma(x[some].double(), num_grids)
    away_from_knots = (scaled - scaled.round()).abs() > 1e-4

    terms, out_features = rows.shape[1], grad_y.shape[1]
    samples_per_knot = 8 + 4 * len(x) // num_grids**2
    _assert_close("forward", our_y[some], y, terms)
    _assert_close("embedding_bag", weighted_sum(tables, rows, weights.float()), y, terms)
    _assert_close(
        "grad_x", our_grad_x[some][away_from_knots], grad_x[away_from_knots], out_features
    )
    _assert_close("grad_tables", our_grad_tables[ends], grad_tables, samples_per_knot)


def _completed(x: Tensor) -> Tensor:
    """An odd number of features is completed by the constant 0."""
    return pad(x, (0, x.shape[1] % 2))


def _scaled_sigma(x: Tensor, num_grids: int) -> Tensor:
    """G sigma(x): its whole part is the interval of x."""
    tail = 0.5 * torch.exp(-x.abs())
    return num_grids * torch.where(x > 0, 1 - tail, tail)


def _assert_close(name: str, result: Tensor, expected: Tensor, terms: int) -> None:
    """A float32 sum of n terms may be off by ``n eps`` of the largest sum."""
    allowed = terms * torch.finfo(torch.float32).eps * expected.abs().max().item()
    torch.testing.assert_close(
        result.double(), expected, rtol=0, atol=allowed, msg=lambda text: f"{name}: {text}"
    )
