"""The hat functions of a grid: by which weights the values at the knots are interpolated."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

import lmkan_cupy


def hats(coordinates: NDArray[Any], num_knots: int) -> NDArray[Any]:
    """Return the weights [M, S] of the knots for coordinates [M], in their dtype."""
    unit = np.eye(num_knots, dtype=coordinates.dtype)[None, :, None]
    tables = np.ascontiguousarray(np.broadcast_to(unit, (1, *[num_knots] * 3)))
    weights: NDArray[Any] = lmkan_cupy.forward(coordinates[:, None], tables)
    return weights
