"""FastKAN: the Kolmogorov-Arnold layer with Gaussian radial functions of one variable, a baseline.

Li, "Kolmogorov-Arnold Networks are Radial Basis Function Networks", arXiv 2405.06721:
``num_grids`` Gaussians on an even grid over [-2, 2], one linear map of all their values, plus a
linear map of SiLU of the inputs. Inputs are batch-normalised, as for the other networks; the
author's layer normalisation would remove mean and length, which matters with few features.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

GRID_RANGE = (-2.0, 2.0)


class FastKANLayer(nn.Module):
    """A layer ``[B, I] -> [B, O]``.

    Parameters
    ----------
    in_features, out_features : int
        Sizes I and O.
    num_grids : int
        Gaussians per input, whose width is the distance between neighbours.
    """

    centres: Tensor

    def __init__(self, in_features: int, out_features: int, num_grids: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(in_features, affine=False)
        self.register_buffer("centres", torch.linspace(*GRID_RANGE, num_grids))
        self.width = (GRID_RANGE[1] - GRID_RANGE[0]) / (num_grids - 1)
        self.spline = nn.Linear(in_features * num_grids, out_features, bias=False)
        nn.init.trunc_normal_(self.spline.weight, std=0.1)
        self.branch = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        distance = (self.norm(x)[..., None] - self.centres) / self.width
        gaussians = torch.exp(-(distance**2))
        y: Tensor = self.spline(gaussians.flatten(-2)) + self.branch(nn.functional.silu(x))
        return y


def make_fastkan(sizes: Sequence[int], num_grids: int) -> nn.Sequential:
    return nn.Sequential(*(FastKANLayer(i, o, num_grids) for i, o in pairwise(sizes)))


def fastkan_flops(sizes: Sequence[int], num_grids: int) -> int:
    """Return the multiply-adds of the linear maps for one row, without the exponentials."""
    return sum((num_grids + 1) * i * o for i, o in pairwise(sizes))
