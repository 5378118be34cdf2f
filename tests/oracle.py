"""The layer in float64 NumPy, written from its definition: slow and obviously right.

Nothing is shared with the engines, neither code nor idea. No cell is located: every coordinate is
weighed against all S knots by dense hat functions, and all else is a sum of products of these.

Axes, everywhere: b sample, p group of the d inputs of an inner function (a pair where d = 2), s, t
and r knot along the coordinates of a group, o output. Arrays are [B, I] (x), [P, S, ..., S, O]
(tables, with d axes of knots) and [B, O] (y).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
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

    value, slope : [d, B, P, S]
        The hat function of every knot, and its derivative, at each coordinate of every group.
        Linear beyond the outermost knots; at a knot the slope is that to its right.
    in_features : int
        I, which is less than d P where the last coordinates are the constant 0.
    """

    value: Array
    slope: Array
    in_features: int


def by_group(features: Array, dimension: int) -> Array:
    """[B, I] to [d, B, P]; the last group is completed by zeros."""
    padded = np.pad(features, [(0, 0), (0, -features.shape[1] % dimension)])
    return np.stack([padded[:, axis::dimension] for axis in range(dimension)])


def by_feature(groups: Array, in_features: int) -> Array:
    """[d, B, P] to [B, I]: the inverse of `by_group`."""
    dimension, batch, num_groups = groups.shape
    return np.moveaxis(groups, 0, -1).reshape(batch, dimension * num_groups)[:, :in_features]


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


def basis(x: Array, knots: Array, dimension: int = 2) -> Basis:
    value, slope = hats(by_group(x.astype(np.float64), dimension), knots.astype(np.float64))
    return Basis(value, slope, x.shape[1])


def per_group(factors: Sequence[Array], tables: Array) -> Array:
    """[B, P, O]: what every inner function gives for the bases [B, P, S] of its coordinates."""
    knots = "str"[: len(factors)]
    bases = ",".join(f"bp{knot}" for knot in knots)
    return np.einsum(f"{bases},p{knots}o->bpo", *factors, tables, optimize=True)


def spread(grad_y: Array, factors: Sequence[Array]) -> Array:
    """[P, S, ..., S, O]: grad_y [B, O] pulled back to the tables of `per_group`."""
    knots = "str"[: len(factors)]
    bases = ",".join(f"bp{knot}" for knot in knots)
    return np.einsum(f"bo,{bases}->p{knots}o", grad_y, *factors, optimize=True)


def factors_of(at: Basis, *differentiated: int) -> list[Array]:
    """The bases [B, P, S] of all coordinates, those of some of them differentiated."""
    return [
        at.slope[axis] if axis in differentiated else value for axis, value in enumerate(at.value)
    ]


def forward(at: Basis, tables: Array) -> Array:
    """y [B, O]."""
    return per_group(at.value, tables).sum(axis=1)


def backward(grad_y: Array, at: Basis, tables: Array) -> tuple[Array, Array]:
    """grad_x [B, I] and grad_tables [P, S, ..., S, O]."""
    grad_groups = np.stack(
        [
            np.einsum("bo,bpo->bp", grad_y, per_group(factors_of(at, axis), tables))
            for axis in range(len(at.value))
        ]
    )
    return by_feature(grad_groups, at.in_features), spread(grad_y, at.value)


def jvp(tangent_x: Array, tangent_tables: Array, at: Basis, tables: Array) -> Array:
    """The derivative [B, O] of y along a direction in x and one in the tables."""
    change = per_group(at.value, tangent_tables)
    for axis, along in enumerate(by_group(tangent_x, len(at.value))):
        change = change + along[..., None] * per_group(factors_of(at, axis), tables)
    return change.sum(axis=1)


def backward_backward(
    ggx: Array, ggt: Array, grad_y: Array, at: Basis, tables: Array
) -> tuple[Array, Array, Array]:
    """Cotangents of grad_y, x and tables for the cotangents ggx, ggt of what `backward` returns.

    Inside a cell, second derivatives along one axis are zero.
    """
    dimension = len(at.value)
    weigh = by_group(ggx, dimension)[..., None]
    grad_groups, grad_tables = [], 0.0
    for axis in range(dimension):
        change = per_group(factors_of(at, axis), ggt)
        for other in range(dimension):
            if other != axis:
                mixed = per_group(factors_of(at, axis, other), tables)
                change = change + weigh[other] * mixed
        grad_groups.append(np.einsum("bo,bpo->bp", grad_y, change))
        factors = factors_of(at, axis)
        factors[axis] = weigh[axis] * factors[axis]
        grad_tables = grad_tables + spread(grad_y, factors)
    return (
        jvp(ggx, ggt, at, tables),
        by_feature(np.stack(grad_groups), at.in_features),
        grad_tables,
    )


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


def second_derivatives(at: Stencils, dimension: int) -> list[tuple[int, list[Array]]]:
    """How often each second derivative counts, and its stencil along each axis."""
    result = []
    for axis in range(dimension):
        along = [at.value] * dimension
        along[axis] = at.second
        result.append((1, along))
    for first, last in combinations(range(dimension), 2):
        along = [at.value] * dimension
        along[first] = along[last] = at.first
        result.append((2, along))
    return result


def applied(stencils: Sequence[Array], tables: Array) -> Array:
    """[P, G - 1, ..., G - 1, O]: a derivative at the inner knots."""
    inner, knots = "ijk"[: len(stencils)], "str"[: len(stencils)]
    matrices = ",".join(map("".join, zip(inner, knots, strict=True)))
    return np.einsum(f"{matrices},p{knots}o->p{inner}o", *stencils, tables, optimize=True)


def hessian_penalty(at: Stencils, tables: Array) -> Array:
    """R, the roughness of all inner functions."""
    dimension = tables.ndim - 2
    inner_axes = tuple(range(1, dimension + 1))
    total = 0.0
    for count, along in second_derivatives(at, dimension):
        derivative = applied(along, tables)
        total = total + count * (derivative * derivative).mean(axis=inner_axes).sum()
    return np.asarray(total)


def hessian_penalty_grad(at: Stencils, tables: Array) -> Array:
    """dR/dT [P, S, ..., S, O]."""
    dimension = tables.ndim - 2
    inner_knots = at.value.shape[0] ** dimension
    total = 0.0
    for count, along in second_derivatives(at, dimension):
        transposed = [matrix.T for matrix in along]
        total = total + 2.0 * count / inner_knots * applied(transposed, applied(along, tables))
    return np.asarray(total)
