"""Expected results with elementwise error bounds: one rule, no number chosen by taste.

The rule, |factor| + i error, stands in `bench/harness/rounding.py`, for the benchmarks use it too.
Here it is applied to one run of the oracle on magnitudes. Arrays that a caller hands over and the
knots are exact. The errors of the other factors are:

hat value
    u = (x - k) / h takes HAT_ROUNDINGS, of terms no larger than (|x| + |k|) / h: far outside the
    grid u carries the rounding of x / h. One more rounding makes 1 - u.
hat slope
    1 / h takes SLOPE_ROUNDINGS.
cell choice
    floor(G sigma(x)) may pick the neighbouring cell if x is closer to an inner knot k than

        reach = r (2 EXP_ULP + 2 / s + |k|),  s = sigma'(k) = min(sigma(k), 1 - sigma(k)):

    the exponential, the difference and the product with G, and the knot's own rounding, each over
    the slope of sigma. The neighbour's hats, prolonged by |x - k|, differ by at most reach / h. As
    s h is about 1 / G, this is about G r max |second difference of T|, see lmkan_cupy/README.md.
    Slopes jump there: comparisons of derivatives leave such inputs out, see `near_knot`.
stencil of the penalty
    A coefficient takes STENCIL_ROUNDINGS.

A gradient of tables is a sum over samples. Engines add up blocks of them, and then these sums: a
term goes through no more additions than `additions_over` says.

What is stored in a narrower dtype carries that rounding as well, see `Expected.stored`.

On a GPU the forward may interpolate float16 tables in half precision, see `interpolation_in_half`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracle
from oracle import Array

from bench.harness.rounding import (
    EXP_ULP,
    HAT_ROUNDINGS,
    SLOPE_ROUNDINGS,
    STENCIL_ROUNDINGS,
    error_bound,
    size_and_error,
)
from lmkan_cupy import sigma_grid
from lmkan_cupy.array_checks import LinearLayer, Network
from lmkan_cupy.array_library import is_cupy_array

MOST_OF_BLOCK, FEWEST_OF_BLOCK = 4096, 1024
"""Samples of a block of the CPU engine. In `cuda/`, where a warp adds up a stretch, a block its
stretches and a chunk its blocks, fewer additions follow each other."""


def host(array: Any) -> Array:
    """`array` as a NumPy array: the one place where results come back to the host."""
    on_host: Array = array.get() if is_cupy_array(array) else np.asarray(array)
    return on_host


def to_float64(array: Any) -> Array:
    """`array` on the host in float64, which holds every narrower number exactly."""
    return host(array).astype(np.float64)


def unit(dtype: Any) -> float:
    """Rounding unit r of `dtype`, plus that of the oracle, which rounds in float64."""
    return float(np.finfo(dtype).eps / 2 + np.finfo(np.float64).eps / 2)


def knots_of(tables: Any, dtype: Any) -> Array:
    """The knots that belong to tables [P, S, ..., S, O] in arithmetic of `dtype`; see test_grid."""
    return host(sigma_grid(tables.shape[1] - 1, dtype=dtype))


def reach(knots: Array) -> Array:
    """Distance [G - 1] from each inner knot within which a rounded sigma may miss the cell."""
    inner = np.abs(knots[1:-1].astype(np.float64))
    return unit(knots.dtype) * (2 * EXP_ULP + 2 / (0.5 * np.exp(-inner)) + inner)


def near_knot(x: Array, knots: Array) -> Array:
    """True [...] where the cell, so the derivative at x [...], may be that of either side."""
    distance = np.abs(to_float64(x)[..., None] - to_float64(knots[1:-1]))
    return np.any(distance <= reach(knots), axis=-1)


@dataclass(frozen=True)
class Expected:
    """A result, and how far from it each element of a correct computation may be."""

    value: Array
    bound: Array

    def stored(self, dtype: Any) -> Expected:
        """The same, rounded to `dtype` at the end; below the smallest normal in fixed steps."""
        limits = np.finfo(dtype)
        magnitude = np.maximum(np.abs(self.value) + self.bound, float(limits.smallest_normal))
        return Expected(self.value, self.bound + float(limits.eps) / 2 * magnitude)

    def check(self, actual: Any) -> None:
        """Fail, naming the worst element, if `actual` is out of bounds anywhere."""
        actual = to_float64(actual)
        assert actual.shape == self.value.shape
        error = np.abs(actual - self.value)
        wrong = ~(error <= self.bound)  # so that a NaN is wrong
        if wrong.any():
            excess = np.nan_to_num(error, nan=np.inf) - self.bound
            worst = np.unravel_index(np.argmax(excess), wrong.shape)
            raise AssertionError(
                f"{wrong.sum()} of {wrong.size} elements out of bounds, the worst at "
                f"{tuple(map(int, worst))}: got {actual[worst]}, expected {self.value[worst]} "
                f"within {self.bound[worst]:.3g}"
            )


def check_each(results: Iterable[Any], all_expected: Iterable[Expected]) -> None:
    for result, expected in zip(results, all_expected, strict=True):
        expected.check(result)


def additions_over(batch: int) -> int:
    """The most additions of a sum over samples that a term goes through."""
    return min(batch, MOST_OF_BLOCK + batch // FEWEST_OF_BLOCK)


def expected(value: Array, magnitude: Array, terms: int, dtype: Any) -> Expected:
    """`value`, a sum of `terms` products, bounded by the oracle's result on magnitudes."""
    return Expected(value, error_bound(magnitude, terms, unit(dtype)))


def corners(tables: Array) -> int:
    """The number of corners of a cell, 2^d."""
    return 2 ** (tables.ndim - 2)


def basis(x: Array, tables: Array) -> oracle.Basis:
    """The exact hats at x [B, I] in arithmetic of its dtype."""
    return oracle.basis(x, knots_of(tables, x.dtype), tables.ndim - 2)


def rounded_basis(x: Array, tables: Array) -> oracle.Basis:
    """The hats at x as |exact| + i error, in arithmetic of its dtype."""
    return rounded_at(basis(x, tables), x, knots_of(tables, x.dtype))


def rounded_at(exact: oracle.Basis, x: Array, knots: Array, x_error: Any = 0.0) -> oracle.Basis:
    """The hats at x, known up to `x_error`, as |exact| + i error, in the dtype of `knots`."""
    r = unit(knots.dtype)
    off = oracle.by_group(np.broadcast_to(x_error, x.shape), len(exact.value))[..., None]
    close = reach(knots) + off
    points = oracle.by_group(to_float64(x), len(exact.value))[..., None]
    wide = to_float64(knots)

    # A slope is 1 / h at the two corners of the cell, else 0; |k| of one corner is at most |k| + h
    # of the other.
    size = np.abs(exact.slope) * (np.abs(points) + np.abs(wide)) + (exact.slope != 0)
    value_error = r * (HAT_ROUNDINGS * size + np.abs(exact.value)) + np.abs(exact.slope) * off
    misplaced = np.where(np.abs(points - wide[1:-1]) <= close, close, 0)
    before, after = 1 / np.diff(wide)[:-1], 1 / np.diff(wide)[1:]
    for corner, jump in enumerate((before, before + after, after)):
        value_error[..., corner : corner + len(wide) - 2] += misplaced * jump

    return oracle.Basis(
        value=np.abs(exact.value) + 1j * value_error,
        slope=size_and_error(exact.slope, SLOPE_ROUNDINGS, r),
        in_features=exact.in_features,
    )


def rounded_stencils(knots: Array) -> oracle.Stencils:
    value, *derivatives = oracle.stencils(knots)
    r = unit(knots.dtype)
    return oracle.Stencils(
        np.abs(value), *(size_and_error(each, STENCIL_ROUNDINGS, r) for each in derivatives)
    )


def forward(
    x: Any, tables: Any, tables_error: Any = 0.0, *, in_half: bool | None = None
) -> Expected:
    """y [B, O] for x [B, I] and tables [P, S, ..., S, O], exact or known up to `tables_error`.

    With `in_half` interpolated in half precision; by default where a forward may do that.
    """
    if in_half is None:
        in_half = is_cupy_array(tables) and tables.dtype == np.float16
    x, tables = host(x), to_float64(tables)
    value = oracle.forward(basis(x, tables), tables)
    rounded = rounded_basis(x, tables)
    magnitude = oracle.forward(rounded, np.abs(tables) + 1j * tables_error)
    in_float = expected(value, magnitude, corners(tables) * len(tables), x.dtype)
    if not in_half:
        return in_float
    more = interpolation_in_half(rounded, tables, np.abs(magnitude.real) + np.abs(magnitude.imag))
    return Expected(value, in_float.bound + more)


def network(x: Any, layers: Network) -> Expected:
    """y [B, O] of a network; what a layer's inputs may be off by goes through it."""
    return _features(host(x), layers)[-1]


def _features(x: Array, layers: Network) -> list[Expected]:
    """The features before, between and after the layers."""
    shift = 0.0 if layers.shift is None else to_float64(layers.shift)
    value = (to_float64(x) - shift) * _scale(layers)
    features = [Expected(value, 2 * unit(x.dtype) * np.abs(value))]
    for layer, bound in zip(layers.layers, layers.bounds, strict=True):
        value, error = features[-1].value, features[-1].bound
        if isinstance(layer, LinearLayer):
            weight, bias = (0.0 if each is None else to_float64(each) for each in layer)
            magnitude = (np.abs(value) + 1j * error) @ np.abs(weight).T + np.abs(bias)
            value, terms = value @ weight.T + bias, value.shape[1] + 1
        else:
            tables, knots = to_float64(layer), knots_of(layer, x.dtype)
            cut, terms = np.clip(value, -bound, bound), corners(tables) * len(tables)
            exact = oracle.basis(cut, knots, tables.ndim - 2)
            magnitude = oracle.forward(rounded_at(exact, cut, knots, error), np.abs(tables))
            value = oracle.forward(exact, tables)
        features.append(expected(value, magnitude, terms, x.dtype))
    return features


def _scale(layers: Network) -> Any:
    return 1.0 if layers.scale is None else to_float64(layers.scale)


def network_backward(grad_y: Any, x: Any, layers: Network) -> tuple[Expected, Array]:
    """grad_x [B, I] of a network, and in which samples [B] it is defined.

    Not where a feature of tables may be on either side of a knot or of their bound.
    """
    x, grad = host(x), to_float64(grad_y)
    r, error, defined = unit(x.dtype), np.zeros_like(grad), np.ones(len(grad), bool)
    steps = zip(layers.layers, layers.bounds, _features(x, layers), strict=False)
    for layer, bound, feature in reversed([*steps]):
        if isinstance(layer, LinearLayer):
            weight = to_float64(layer.weight)
            magnitude = (np.abs(grad) + 1j * error) @ np.abs(weight)
            error, grad = error_bound(magnitude, len(weight), r), grad @ weight
            continue
        tables, knots = to_float64(layer), knots_of(layer, x.dtype)
        cut, off = np.clip(feature.value, -bound, bound), feature.bound
        from_knots = np.abs(cut[..., None] - to_float64(knots[1:-1]))
        from_bound = np.abs(np.abs(feature.value) - bound)
        defined &= (from_knots > reach(knots) + off[..., None]).all(axis=(1, 2))
        defined &= (from_bound > off).all(axis=1)
        exact = oracle.basis(cut, knots, tables.ndim - 2)
        at = rounded_at(exact, cut, knots, off)
        magnitude, _ = oracle.backward(np.abs(grad) + 1j * error, at, np.abs(tables))
        inside = np.abs(feature.value) <= bound
        error = inside * error_bound(magnitude, corners(tables) * tables.shape[-1], r)
        grad = inside * oracle.backward(grad, exact, tables)[0]
    size = np.abs(_scale(layers))
    return Expected(grad * _scale(layers), size * (error + r * np.abs(grad))), defined


def interpolation_in_half(at: oracle.Basis, tables: Array, magnitude: Array) -> Array:
    """What float16 arithmetic inside a cell adds to the bound of a forward; see cuda/cell.cuh.

    With weights w_k of the corners, the sum n of their sizes and a scale s <= 4 n, a power of two,
    every w_k / s is rounded to half, then four products are added, one rounding each. A rounding is
    off by r = 2^-11 of its result or, below the smallest normal, by 2^-25. So per pair

        ((1 + r)^5 - 1) sum |w_k T_k|  +  2^-25 s (sum |T_k| + 4).

    A factor 1 + 2^-20 covers the rounding of n. `magnitude` is the sum of |w_k T_k| over the pairs,
    errors of w_k included. A rounded sigma may pick the cell beside: corners are all knots whose
    hats carry an error in `at`.
    """
    r, smallest = unit("float16"), float(np.finfo(np.float16).smallest_subnormal) / 2
    size = np.sum(at.value.real, axis=-1, keepdims=True)
    corners = at._replace(value=(at.value.imag > 0) * size)
    scaled = 4 * (1 + 2.0**-20) * oracle.forward(corners, np.abs(tables) + 1)
    return ((1 + r) ** 5 - 1) * magnitude + smallest * scaled


def backward(grad_y: Any, x: Any, tables: Any) -> tuple[Expected, ...]:
    """grad_x [B, I] and grad_tables [P, S, ..., S, O]; no x may be `near_knot`."""
    x = host(x)
    grad_y, tables = to_float64(grad_y), to_float64(tables)
    values = oracle.backward(grad_y, basis(x, tables), tables)
    magnitudes = oracle.backward(np.abs(grad_y), rounded_basis(x, tables), np.abs(tables))
    batch, out_features = grad_y.shape
    terms = (corners(tables) * out_features, additions_over(batch))
    return _each_expected(values, magnitudes, terms, x.dtype)


def jvp(tangent_x: Any, tangent_tables: Any, x: Any, tables: Any) -> Expected:
    """The derivative of y [B, O] along both tangents; no x may be `near_knot`."""
    x = host(x)
    tangent_x, tangent_tables, tables = map(to_float64, (tangent_x, tangent_tables, tables))
    value = oracle.jvp(tangent_x, tangent_tables, basis(x, tables), tables)
    magnitude = oracle.jvp(
        np.abs(tangent_x), np.abs(tangent_tables), rounded_basis(x, tables), np.abs(tables)
    )
    return expected(value, magnitude, _terms_along(tables), x.dtype)


def _terms_along(tables: Array) -> int:
    """The terms of an output's derivative along d coordinates and the tables."""
    return (tables.ndim - 1) * corners(tables) * len(tables)


def backward_backward(ggx: Any, ggt: Any, grad_y: Any, x: Any, tables: Any) -> tuple[Expected, ...]:
    """Cotangents of grad_y [B, O], x [B, I] and tables [P, S, S, O]; no x may be `near_knot`."""
    x = host(x)
    ggx, ggt, grad_y, tables = map(to_float64, (ggx, ggt, grad_y, tables))
    values = oracle.backward_backward(ggx, ggt, grad_y, basis(x, tables), tables)
    magnitudes = oracle.backward_backward(
        np.abs(ggx), np.abs(ggt), np.abs(grad_y), rounded_basis(x, tables), np.abs(tables)
    )
    batch, out_features = grad_y.shape
    dimension = tables.ndim - 2
    terms = (
        _terms_along(tables),
        dimension * corners(tables) * out_features,
        dimension * additions_over(batch),
    )
    return _each_expected(values, magnitudes, terms, x.dtype)


def fold(
    tables: Any, weight: Any, bias: Any, activation: Callable[[Array], Array], dtype: Any
) -> Expected:
    """Tables with W activation(x) + c absorbed, in arithmetic of `dtype`."""
    values = activation(to_float64(knots_of(tables, dtype)))
    dimension = tables.ndim - 2
    terms = [to_float64(tables), to_float64(bias) / len(tables)]
    for axis, slopes in enumerate(oracle.by_group(to_float64(weight), dimension)):  # [O, P] each
        others = tuple(1 + k for k in range(dimension) if k != axis)
        terms.append(np.expand_dims(np.einsum("op,i->pio", slopes, values), others))
    value, magnitude = sum(terms), sum(map(np.abs, terms))
    return expected(value, magnitude, len(terms), dtype).stored(tables.dtype)


def refine(tables: Any, num_grids: int, dtype: Any) -> Expected:
    """Tables on another grid, in arithmetic of `dtype`: `forward` at the new knots, by pair."""
    knots = host(sigma_grid(num_grids, dtype=dtype))
    dimension = tables.ndim - 2
    axes = np.meshgrid(*[knots] * dimension, indexing="ij")
    points = np.stack(axes, axis=-1).reshape(-1, dimension)
    pairs = [forward(points, table[None]) for table in host(tables)]
    shape = (len(pairs), *[len(knots)] * dimension, -1)
    value, bound = (
        np.stack([getattr(pair, name) for pair in pairs]).reshape(shape)
        for name in ("value", "bound")
    )
    return Expected(value, bound).stored(tables.dtype)


def hessian_penalty(tables: Any, dtype: Any) -> tuple[Expected, Expected]:
    """R and dR/dT [P, S, ..., S, O] in arithmetic of `dtype`.

    A curvature has at most 4 terms. A table value is in 3 curvatures along each axis, and in 4
    along each two.
    """
    tables = to_float64(tables)
    knots = knots_of(tables, dtype)
    exact, rounded = oracle.stencils(knots), rounded_stencils(knots)
    num_pairs, *axes, out_features = tables.shape
    mixed = math.comb(len(axes), 2)
    inner_knots = (len(knots) - 2) ** len(axes)
    curvatures = (len(axes) + mixed) * inner_knots * num_pairs * out_features
    penalty = expected(
        oracle.hessian_penalty(exact, tables),
        oracle.hessian_penalty(rounded, np.abs(tables)),
        curvatures + 2 * 4,
        dtype,
    )
    grad = expected(
        oracle.hessian_penalty_grad(exact, tables),
        oracle.hessian_penalty_grad(rounded, np.abs(tables)),
        3 * len(axes) + 4 * mixed + 4,
        dtype,
    )
    return penalty, grad


def _each_expected(
    values: Iterable[Array], magnitudes: Iterable[Array], terms: Iterable[int], dtype: Any
) -> tuple[Expected, ...]:
    return tuple(
        expected(value, magnitude, count, dtype)
        for value, magnitude, count in zip(values, magnitudes, terms, strict=True)
    )
