"""Bilinear interpolation in torch: the rows of the tables that samples read, and their weights.

Beside every hat and slope stands its magnitude, |factor| + i (bound of its own error in float32),
see :mod:`.rounding`.
"""

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

    rows: Tensor  # [B, 4 P]: of the corners of each pair, in tables seen as [P S S, O]
    hats: tuple[Tensor, Tensor]  # [B, P, 2] of the first and of the second coordinate
    slopes: tuple[Tensor, Tensor]  # [B, P, 2]
    hat_magnitudes: tuple[Tensor, Tensor]
    slope_magnitudes: tuple[Tensor, Tensor]

    @property
    def weights(self) -> Tensor:
        """The weights [B, 4 P] with which a layer adds its rows."""
        return corner_products(*self.hats)

    @property
    def magnitudes(self) -> Tensor:
        """The magnitudes [B, 4 P] of the weights."""
        return corner_products(*self.hat_magnitudes)


def interpolation(x: Tensor, num_grids: int) -> Interpolation:
    """Return where samples ``x`` [B, I], float64, read the tables."""
    x = pad(x, (0, x.shape[1] % 2))  # an odd number of features is completed by the constant 0
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

    def by_coordinate(values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, 0::2], values[:, 1::2]

    i, j = by_coordinate(cell)
    size = num_grids + 1
    first = (torch.arange(i.shape[1], device=x.device) * size + i) * size + j
    return Interpolation(
        torch.stack([first, first + 1, first + size, first + size + 1], -1).flatten(1),
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
    return embedding_bag(rows, tables.flatten(0, 2), per_sample_weights=weights, mode="sum")


def corner_products(first: Tensor, second: Tensor) -> Tensor:
    """Return a number [B, 4 P] for every corner, the product of those of its knots [B, P, 2]."""
    return (first[..., :, None] * second[..., None, :]).flatten(1)
