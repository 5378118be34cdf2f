"""The networks that `bench.networks` times: chains of lmKAN layers, and MLPs."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from torch import nn

import lmkan_cupy

#: Inputs of the networks, and where lmKANs cut the inputs of every layer.
FEATURES = 10
BOUND = 4.0


def name_of(width: int, num_grids: int) -> str:
    return f"lmKAN {width}, G={num_grids}"


def features_of(width: int) -> list[int]:
    """Return the inputs of an lmKAN of three layers, then the outputs of every layer."""
    return [FEATURES, width, width, 1]


def tables_of(features: Sequence[int], num_grids: int) -> list[NDArray[np.float32]]:
    """Return the tables of an lmKAN: bent linear functions, with values of order 1."""
    rng = np.random.default_rng(0)
    found = []
    for inputs, outputs in pairwise(features):
        tables = lmkan_cupy.init_tables(inputs, outputs, num_grids, rng=rng)
        weight = rng.standard_normal((outputs, inputs), dtype=np.float32) / np.sqrt(inputs)
        found.append(lmkan_cupy.fold_linear(tables, weight.astype(np.float32)))
    return found


def mlp(width: int) -> nn.Sequential:
    """Return an MLP with three hidden layers."""
    sizes = [FEATURES, width, width, width]
    hidden = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.SiLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 1)).eval().requires_grad_(False)
