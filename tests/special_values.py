"""Inputs that are hard to get right: next to the knots, NaN and infinite."""

from __future__ import annotations

import numpy as np
from oracle import Array

import lmkan_cupy

BAD_VALUES = {"nan": np.nan, "inf": np.inf, "minus-inf": -np.inf}


def around_knots(num_grids: int, dtype: str) -> Array:
    """All knots, and the numbers just before and just after them."""
    knots = lmkan_cupy.sigma_grid(num_grids, dtype=dtype)
    beside = [np.nextafter(knots, np.asarray(side, dtype)) for side in (-np.inf, np.inf)]
    return np.concatenate([knots, *beside])
