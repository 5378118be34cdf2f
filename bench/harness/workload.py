"""What is timed: the arrays of one layer."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import lmkan_cupy
from lmkan_cupy.array_library import Array


@dataclass(frozen=True)
class Workload:
    """The arrays of one layer, float32; ``x`` is standard normal, as after batch normalisation."""

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

    def with_tables(self, dtype: Any) -> "Workload":
        """Return the same with its tables rounded to a dtype."""
        return replace(self, tables=self.tables.astype(dtype, copy=False))

    def first(self, samples: int) -> "Workload":
        return replace(self, x=self.x[:samples], grad_y=self.grad_y[:samples])


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
