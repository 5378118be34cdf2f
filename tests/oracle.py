"""The layer in float64 NumPy, written from its definition: slow and obviously right.

Nothing is shared with the engines, neither code nor idea. No cell is located: every coordinate is
weighed against all S knots by dense hat functions, and all else is a sum of products of these.

Axes, everywhere: b sample, p input pair, s and t knot along the first and the second coordinate of
a pair, o output. Arrays are [B, I] (x), [P, S, S, O] (tables) and [B, O] (y).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def sigma(x: Array) -> Array:
    """The distribution function of a Laplace variable."""
    tail = 0.5 * np.exp(-np.abs(x))
    return np.where(x <= 0, tail, 1 - tail)


def sigma_grid(num_grids: int) -> Array:
    """Knots [G + 1]: sigma(k_i) = i / G inside; the outermost intervals repeat their neighbour."""
    lower_half = np.log(2 * np.arange(1, num_grids // 2 + 1) / num_grids)
    upper_half = -lower_half[::-1]
    inner = np.concatenate([lower_half, upper_half[1 - num_grids % 2 :]])
    first, last = 2 * inner[0] - inner[1], 2 * inner[-1] - inner[-2]
    return np.concatenate([[first], inner, [last]])


class Basis(NamedTuple):
    """Hat functions at the coordinates of all samples.

    value, slope : [2, B, P, S]
        The hat function of every knot, and its derivative, at the first and the second coordinate
        of every pair. Linear beyond the outermost knots; at a knot the slope is that to its right.
    in_features : int
        I, which is 2 P - 1 where the last coordinate is the constant 0.
    """

    value: Array
    slope: Array
    in_features: int


def by_pair(features: Array) -> Array:
    """[B, I] to [2, B, P]; an odd I is completed by zeros."""
    padded = np.pad(features, [(0, 0), (0, features.shape[1] % 2)])
    return np.stack([padded[:, 0::2], padded[:, 1::2]])


def by_feature(pairs: Array, in_features: int) -> Array:
    """[2, B, P] to [B, I]: the inverse of `by_pair`."""
    _, batch, num_pairs = pairs.shape
    return np.moveaxis(pairs, 0, -1).reshape(batch, 2 * num_pairs)[:, :in_features]


def hats(points: Array, knots: Array) -> tuple[Array, Array]:
    """Value and slope [..., S] of every hat function at `points` [...]."""
    points = points[..., None]
    left, width = knots[:-1], np.diff(knots)
    breakpoints = knots[1:-1]
    inside = (points >= np.append(-np.inf, breakpoints)) & (points < np.append(breakpoints, np.inf))
    position = (points - left) / width

    value = np.zeros((*points.shape[:-1], len(knots)))
    value[..., :-1] += np.where(inside, 1 - position, 0)
    value[..., 1:] += np.where(inside, position, 0)
    slope = np.zeros_like(value)
    slope[..., :-1] -= np.where(inside, 1 / width, 0)
    slope[..., 1:] += np.where(inside, 1 / width, 0)
    return value, slope


def basis(x: Array, knots: Array) -> Basis:
    value, slope = hats(by_pair(x.astype(np.float64)), knots.astype(np.float64))
    return Basis(value, slope, x.shape[1])


def per_pair(first: Array, second: Array, tables: Array) -> Array:
    """[B, P, O]: what every inner function gives for the basis [B, P, S] of its two coordinates."""
    return np.einsum("bps,bpt,psto->bpo", first, second, tables, optimize=True)


def forward(at: Basis, tables: Array) -> Array:
    """y [B, O]."""
    return per_pair(*at.value, tables).sum(axis=1)


def backward(grad_y: Array, at: Basis, tables: Array) -> tuple[Array, Array]:
    """grad_x [B, I] and grad_tables [P, S, S, O]."""
    (u, v), (du, dv) = at.value, at.slope
    grad_pairs = np.stack(
        [
            np.einsum("bo,bpo->bp", grad_y, per_pair(du, v, tables)),
            np.einsum("bo,bpo->bp", grad_y, per_pair(u, dv, tables)),
        ]
    )
    grad_tables = np.einsum("bo,bps,bpt->psto", grad_y, u, v, optimize=True)
    return by_feature(grad_pairs, at.in_features), grad_tables


def jvp(tangent_x: Array, tangent_tables: Array, at: Basis, tables: Array) -> Array:
    """The derivative [B, O] of y along a direction in x and one in the tables."""
    (u, v), (du, dv) = at.value, at.slope
    along_first, along_second = by_pair(tangent_x)
    return np.sum(
        along_first[..., None] * per_pair(du, v, tables)
        + along_second[..., None] * per_pair(u, dv, tables)
        + per_pair(u, v, tangent_tables),
        axis=1,
    )


def backward_backward(
    ggx: Array, ggt: Array, grad_y: Array, at: Basis, tables: Array
) -> tuple[Array, Array, Array]:
    """Cotangents of grad_y, x and tables for the cotangents ggx, ggt of what `backward` returns."""
    (u, v), (du, dv) = at.value, at.slope
    along_first, along_second = by_pair(ggx)
    weigh = along_first[..., None], along_second[..., None]

    mixed = per_pair(du, dv, tables)
    grad_pairs = np.stack(
        [
            np.einsum("bo,bpo->bp", grad_y, weigh[1] * mixed + per_pair(du, v, ggt)),
            np.einsum("bo,bpo->bp", grad_y, weigh[0] * mixed + per_pair(u, dv, ggt)),
        ]
    )
    grad_tables = np.einsum("bo,bps,bpt->psto", grad_y, weigh[0] * du, v, optimize=True)
    grad_tables = grad_tables + np.einsum(
        "bo,bps,bpt->psto", grad_y, u, weigh[1] * dv, optimize=True
    )
    return jvp(ggx, ggt, at, tables), by_feature(grad_pairs, at.in_features), grad_tables


class Stencils(NamedTuple):
    """Finite differences as dense matrices [G - 1, S], one row per inner knot."""

    value: Array
    first: Array
    second: Array


def stencils(knots: Array) -> Stencils:
    knots = knots.astype(np.float64)
    width = np.diff(knots)
    before, after = width[:-1, None], width[1:, None]
    previous, here, following = (np.eye(len(knots))[k : len(knots) - 2 + k] for k in range(3))
    first = (following - previous) / (before + after)
    second = 2 / (before + after) * ((following - here) / after - (here - previous) / before)
    return Stencils(here, first, second)


def curvatures(at: Stencils, tables: Array) -> tuple[Array, Array, Array]:
    """f_xx, f_xy, f_yy [P, G - 1, G - 1, O] at the inner knots."""

    def apply(along_first: Array, along_second: Array) -> Array:
        return np.einsum("is,jt,psto->pijo", along_first, along_second, tables, optimize=True)

    return apply(at.second, at.value), apply(at.first, at.first), apply(at.value, at.second)


def hessian_penalty(at: Stencils, tables: Array) -> Array:
    """R, the roughness of all inner functions."""
    f_xx, f_xy, f_yy = curvatures(at, tables)
    return np.sum((f_xx * f_xx + 2 * f_xy * f_xy + f_yy * f_yy).mean(axis=(1, 2)))


def hessian_penalty_grad(at: Stencils, tables: Array) -> Array:
    """dR/dT [P, S, S, O]."""
    f_xx, f_xy, f_yy = curvatures(at, tables)

    def transposed(along_first: Array, along_second: Array, curvature: Array) -> Array:
        return np.einsum("is,jt,pijo->psto", along_first, along_second, curvature, optimize=True)

    inner_knots = f_xx.shape[1] * f_xx.shape[2]
    return (
        2.0
        / inner_knots
        * (
            transposed(at.second, at.value, f_xx)
            + 2 * transposed(at.first, at.first, f_xy)
            + transposed(at.value, at.second, f_yy)
        )
    )
