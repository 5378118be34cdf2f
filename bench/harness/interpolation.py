"""Interpolation of inner functions in torch: the table rows that samples read, and their weights.

Every hat and slope comes with its magnitude, |factor| + i (bound of its own error in float32), see
:mod:`.rounding`.
"""

from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

import lmkan_cupy

from .rounding import EXP_ULP, HAT_ROUNDINGS, SLOPE_ROUNDINGS, size_and_error

#: Rounding unit of float32.
UNIT = 2.0**-24


class Interpolation(NamedTuple):
    """The cells that samples fall into; the last axis is that of the lower and the upper knot."""

    rows: Tensor  # [B, 2^d P]: of the corners of each pair, in tables seen as [P S ... S, O]
    hats: tuple[Tensor, ...]  # [B, P, 2] of each of the d coordinates
    slopes: tuple[Tensor, ...]  # [B, P, 2]
    hat_magnitudes: tuple[Tensor, ...]
    slope_magnitudes: tuple[Tensor, ...]

    @property
    def weights(self) -> Tensor:
        """The weights [B, 2^d P] with which a layer adds its rows."""
        return corner_products(*self.hats)

    @property
    def magnitudes(self) -> Tensor:
        """The magnitudes [B, 2^d P] of the weights."""
        return corner_products(*self.hat_magnitudes)


def interpolation(x: Tensor, num_grids: int, dimension: int = 2) -> Interpolation:
    """Return where samples ``x`` [B, I], float64, read the tables."""
    x = by_pair(x, dimension).flatten(1)
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(num_grids)).to(x)  # float32 as in the engines
    cell = scaled_sigma(x, num_grids).floor().clamp(0, num_grids - 1).long()
    left, right = knots[cell], knots[cell + 1]
    width = right - left
    u = (x - left) / width
    hats = torch.stack([1 - u, u], -1)
    # The roundings of u, the last one of 1 - u, and what the choice of the neighbouring cell adds,
    # see the reach of a knot in tests/tolerances.py: 2 / (s h) is about 2 G.
    most = torch.maximum(left.abs(), right.abs())
    roundings = HAT_ROUNDINGS * x.abs() + (HAT_ROUNDINGS + 1) * most + 2 * EXP_ULP
    error = (roundings / width + 3 * num_grids)[..., None] + hats.abs()
    slopes = torch.stack([-1 / width, 1 / width], -1)

    def by_coordinate(values: Tensor) -> tuple[Tensor, ...]:
        return tuple(values[:, axis::dimension] for axis in range(dimension))

    rows = torch.arange(x.shape[1] // dimension, device=x.device)[:, None]
    for i in by_coordinate(cell):
        corners = torch.stack([i, i + 1], -1)[..., None, :]
        rows = ((num_grids + 1) * rows[..., None] + corners).flatten(-2)
    return Interpolation(
        rows.flatten(1),
        by_coordinate(hats),
        by_coordinate(slopes),
        by_coordinate(torch.complex(hats.abs(), UNIT * error)),
        by_coordinate(size_and_error(slopes, SLOPE_ROUNDINGS, UNIT)),
    )


def scaled_sigma(x: Tensor, num_grids: int) -> Tensor:
    """Return G sigma(x), whose whole part is the interval of x."""
    tail = 0.5 * torch.exp(-x.abs())
    return num_grids * torch.where(x > 0, 1 - tail, tail)


def weighted_sum(tables: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of rows [B, N] of tables with weights [B, N], by torch's kernel for it."""
    return embedding_bag(rows, tables.flatten(0, -2), per_sample_weights=weights, mode="sum")


def corner_products(*of_knots: Tensor) -> Tensor:
    """Return a number [B, 2^d P] for every corner, the product of those of its knots [B, P, 2]."""

    def product(first: Tensor, second: Tensor) -> Tensor:
        return (first[..., :, None] * second[..., None, :]).flatten(2)

    return reduce(product, of_knots).flatten(1)


def by_pair(x: Tensor, dimension: int) -> Tensor:
    """Return [B, P, d] for [B, I]; what the last group of d features lacks is the constant 0."""
    return pad(x, (0, -x.shape[1] % dimension)).unflatten(1, (-1, dimension))
