"""Where samples read the tables of a layer, with which weights, and how exact these can be.

The magnitude of a factor is the complex number

    |factor| + i (bound of its own error in float32),

so that products of magnitudes have sizes as real parts and, to first order, errors as imaginary
ones: see ``tests/tolerances.py``, which has the errors of all factors.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad

import lmkan_cupy

#: Rounding unit of float32.
UNIT = 2.0**-24


class Corners(NamedTuple):
    """The cells that samples fall into; the last axis is that of the lower and the upper knot."""

    rows: Tensor  # [B, 4 P]: of the corners of each pair, in tables seen as [P S S, O]
    hats: tuple[Tensor, Tensor]  # [B, P, 2] of the first and of the second coordinate
    slopes: tuple[Tensor, Tensor]  # [B, P, 2]
    hat_sizes: tuple[Tensor, Tensor]  # magnitudes
    slope_sizes: tuple[Tensor, Tensor]

    @property
    def weights(self) -> Tensor:
        """With which a layer adds its rows [B, 4 P]."""
        return products(*self.hats)

    @property
    def sizes(self) -> Tensor:
        return products(*self.hat_sizes)


def corners(x: Tensor, num_grids: int) -> Corners:
    """Return where samples ``x`` [B, I], float64, read the tables."""
    x = pad(x, (0, x.shape[1] % 2))  # an odd number of features is completed by the constant 0
    knots = torch.from_numpy(lmkan_cupy.sigma_grid(num_grids)).to(x)  # float32 as in the engines
    cell = scaled_sigma(x, num_grids).floor().clamp(0, num_grids - 1).long()
    left, right = knots[cell], knots[cell + 1]
    width = right - left
    u = (x - left) / width
    hats = torch.stack([1 - u, u], -1)
    # Four roundings of u, the last of 1 - u, and that the neighbouring cell may be chosen.
    most = torch.maximum(left.abs(), right.abs())
    error = ((4 * x.abs() + 5 * most + 8) / width + 3 * num_grids)[..., None] + hats.abs()
    slopes = torch.stack([-1 / width, 1 / width], -1)

    def by_coordinate(each: Tensor) -> tuple[Tensor, Tensor]:
        return each[:, 0::2], each[:, 1::2]

    i, j = by_coordinate(cell)
    size = num_grids + 1
    first = (torch.arange(i.shape[1], device=x.device) * size + i) * size + j
    return Corners(
        torch.stack([first, first + 1, first + size, first + size + 1], -1).flatten(1),
        by_coordinate(hats),
        by_coordinate(slopes),
        by_coordinate(torch.complex(hats.abs(), UNIT * error)),
        by_coordinate(slopes.abs() * (1 + 2j * UNIT)),
    )


def scaled_sigma(x: Tensor, num_grids: int) -> Tensor:
    """G sigma(x): its whole part is the interval of x."""
    tail = 0.5 * torch.exp(-x.abs())
    return num_grids * torch.where(x > 0, 1 - tail, tail)


def weighted_sum(tables: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """The sum of rows [B, N] of tables with weights [B, N] by torch's own kernel for it."""
    return embedding_bag(rows, tables.flatten(0, 2), per_sample_weights=weights, mode="sum")


def products(first: Tensor, second: Tensor) -> Tensor:
    """A number [B, 4 P] for every corner, from those of its knots [B, P, 2]."""
    return (first[..., :, None] * second[..., None, :]).flatten(1)
