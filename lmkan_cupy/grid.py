"""The sigma grid: the only definition of the knots, and how a coordinate finds its interval.

Source: S. Pozdnyakov, P. Schwaller, "Lookup multivariate Kolmogorov-Arnold Networks",
arXiv 2509.07103v2, section 3.1.
"""

from functools import lru_cache
from typing import Any

import numpy as np

from . import array_checks
from .array_library import AnyArray, Array, array_library


def sigma_grid(num_grids: int, *, dtype: Any = "float32", xp: Any = np) -> Array:
    """Return the knots of a grid, the same along both coordinates of every pair.

    ``sigma`` is the cumulative distribution of a Laplace variable, so that a standardised input
    falls into every interval with similar probability::

        sigma(x) = 0.5 exp(x) for x <= 0,  1 - 0.5 exp(-x) for x > 0
        k_i = sigma^-1(i / G) for 0 < i < G,  k_0 = 2 k_1 - k_2,  k_G = 2 k_{G-1} - k_{G-2}

    Parameters
    ----------
    num_grids : int
        Grid intervals per axis, G >= 3.
    dtype : {"float32", "float64"}
        The knots are computed in float64 and rounded once.
    xp : module
        ``numpy`` or ``cupy``.

    Returns
    -------
    array [G + 1]
        Increasing, antisymmetric to the bit; for even G the middle knot is exactly 0.

    Raises
    ------
    TypeError, ValueError
        If ``num_grids`` is not a whole number of at least 3, or ``dtype`` is neither of the two.
    """
    array_checks.check_num_grids("sigma_grid", num_grids)
    dtype = array_checks.compute_dtype("sigma_grid", dtype)
    knots: Array = xp.asarray(_knots(num_grids).astype(dtype))
    return knots


@lru_cache
def _knots(num_grids: int) -> Array:
    """Knots [G + 1] in float64: the left half computed, the right half mirrored."""
    half = num_grids // 2
    left = np.log(2.0 * np.arange(1, half + 1) / num_grids)
    knots = np.empty(num_grids + 1)
    knots[num_grids - half : num_grids] = -left[::-1]
    knots[1 : half + 1] = left  # last, so that the middle knot of an even grid is +0
    knots[0] = 2.0 * knots[1] - knots[2]
    knots[num_grids] = -knots[0]
    knots.flags.writeable = False
    return knots


def locate(x: Array, knots: Array) -> tuple[Array, Array]:
    """Return the interval of every coordinate and its position in it.

    Parameters
    ----------
    x : array
        Coordinates, any shape.
    knots : array [G + 1]
        The grid of :func:`sigma_grid`, in the dtype of ``x``.

    Returns
    -------
    interval : int64 array, shape of ``x``
        ``i = clamp(floor(G sigma(x)), 0, G - 1)``; a NaN goes to interval 0. For an ``x`` within
        rounding of a knot this may be the neighbour of the right interval.
    u : array, shape and dtype of ``x``
        The position ``(x - k_i) / (k_{i+1} - k_i)``, not clamped.
    """
    xp = array_library(x)
    num_grids = len(knots) - 1
    tail = 0.5 * xp.exp(-abs(x))
    scaled = num_grids * xp.where(x > 0, 1 - tail, tail)
    interval = xp.where(scaled > 0, xp.minimum(scaled, num_grids - 1), 0).astype(np.int64)
    left = knots[interval]
    return interval, (x - left) / (knots[interval + 1] - left)


def occupancy(x: AnyArray, num_grids: int) -> tuple[Array, Array]:
    """Count the samples in every interval of a grid, to see whether the inputs are standardised.

    Parameters
    ----------
    x : array [..., I]
        Samples, float32 or float64; leading axes are flattened.
    num_grids : int
        Grid intervals per axis, G >= 3.

    Returns
    -------
    counts : int64 array [I, G]
        Samples in every interval of every feature. Samples beyond the outermost knots count in the
        outermost intervals, a NaN in the first.
    outside : array [I]
        Share of the samples that are beyond the outermost knots or NaN; 0 without samples.

    Raises
    ------
    TypeError, ValueError
        If ``x`` is not a float array with at least one feature, or ``num_grids`` is out of range.
    """
    array_checks.check_num_grids("occupancy", num_grids)
    x = array_checks.check_samples("occupancy", x)
    xp = array_library(x)
    samples = x.reshape(-1, x.shape[-1])
    batch, in_features = samples.shape
    knots = sigma_grid(num_grids, dtype=x.dtype, xp=xp)
    interval, _ = locate(samples, knots)
    flat = (interval + num_grids * xp.arange(in_features)).ravel()
    counts = xp.bincount(flat, minlength=in_features * num_grids)
    inside = (samples >= knots[0]) & (samples <= knots[-1])
    outside = (batch - inside.sum(axis=0)) / max(batch, 1)
    return counts.reshape(in_features, num_grids), outside
