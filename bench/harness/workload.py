"""What is timed: a layer's input, tables and output gradient."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import lmkan_cupy
from lmkan_cupy.array_library import Array


@dataclass(frozen=True)
class Workload:
    """The float32 arrays of one layer; ``x`` is standard normal, as after batch normalisation."""

    x: Array  # [B, I]
    tables: Array  # [P, S, ..., S, O]
    grad_y: Array  # [B, O]

    @property
    def num_grids(self) -> int:
        return int(self.tables.shape[1]) - 1

    @property
    def dimension(self) -> int:
        return int(self.tables.ndim) - 2

    @property
    def evaluations(self) -> int:
        """Number of inner functions that one forward evaluates, B P O."""
        return int(self.x.shape[0] * self.tables.shape[0] * self.tables.shape[-1])

    def with_tables(self, dtype: Any) -> "Workload":
        """Return the same workload with tables rounded to a dtype."""
        return replace(self, tables=self.tables.astype(dtype, copy=False))

    def first(self, samples: int) -> "Workload":
        """Return the workload of the first samples."""
        return replace(self, x=self.x[:samples], grad_y=self.grad_y[:samples])


def make_workload(
    in_features: int,
    out_features: int,
    num_grids: int,
    batch: int,
    xp: Any = np,
    *,
    dimension: int = 2,
) -> Workload:
    """Return arrays of the library ``xp``, numpy or cupy."""
    rng = xp.random.default_rng(0)
    sizes = in_features, out_features, num_grids
    return Workload(
        x=rng.standard_normal((batch, in_features), dtype=np.float32),
        tables=lmkan_cupy.init_tables(*sizes, dimension=dimension, rng=rng, xp=xp),
        grad_y=rng.standard_normal((batch, out_features), dtype=np.float32),
    )
