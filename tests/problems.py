"""Inputs for the tests: awkward sizes, dtypes and memory layouts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import pytest
from oracle import Array

import lmkan_cupy
from lmkan_cupy.array_library import array_library


class Sizes(NamedTuple):
    batch: int
    in_features: int
    out_features: int
    num_grids: int

    @property
    def pairs(self) -> int:
        return (self.in_features + 1) // 2

    def __str__(self) -> str:
        return "B{}-I{}-O{}-G{}".format(*self)


SIZES = [
    Sizes(0, 4, 3, 5),
    Sizes(1, 1, 1, 3),
    Sizes(3, 2, 1, 4),
    Sizes(33, 5, 7, 10),
    Sizes(33, 12, 65, 40),
    Sizes(1000, 7, 33, 8),
    Sizes(9000, 4, 33, 6),
    Sizes(7, 3, 300, 4),
    Sizes(40, 31, 5, 5),
]
"""Empty, single, one below and above powers of two; beyond any block of samples, outputs, pairs."""

SMALL = Sizes(33, 5, 7, 10)


class Dtypes(NamedTuple):
    """Of x, all cotangents and results; and of the tables."""

    x: str
    tables: str

    def __str__(self) -> str:
        return f"{self.x}-{self.tables}-tables"


DTYPES = [
    Dtypes("float32", "float32"),
    Dtypes("float64", "float64"),
    Dtypes("float32", "float16"),
]
FLOAT32, FLOAT64, HALF_TABLES = DTYPES


class Problem(NamedTuple):
    """Arguments of every function on one layer; as made, NumPy arrays and no x near a knot."""

    x: Any
    tables: Any
    grad_y: Any
    ggx: Any
    ggt: Any

    def __repr__(self) -> str:
        """What a failing property shows: the values that matter, the shapes of all else."""
        return f"Problem(x={self.x!r}, tables={self.tables.dtype}{self.tables.shape}, ...)"

    def on(self, xp: Any, layout: str = "contiguous") -> Problem:
        """The same in arrays of the library `xp` and a memory layout out of `LAYOUTS`."""
        return Problem(*(LAYOUTS[layout](xp, xp.asarray(array)) for array in self))


def make_problem(
    rng: np.random.Generator,
    sizes: Sizes = SMALL,
    dtypes: Dtypes = FLOAT32,
    *,
    dimension: int = 2,
) -> Problem:
    batch, in_features, out_features, num_grids = sizes
    knots = lmkan_cupy.sigma_grid(num_grids, dtype=dtypes.x)
    x = away_from_knots(rng.normal(0, 2, (batch, in_features)).astype(dtypes.x), knots)
    pairs = -(-in_features // dimension)
    shape = (pairs, *[num_grids + 1] * dimension, out_features)
    return Problem(
        x=x,
        tables=rng.uniform(-1, 1, shape).astype(dtypes.tables),
        grad_y=rng.normal(size=(batch, out_features)).astype(dtypes.x),
        ggx=rng.normal(size=x.shape).astype(dtypes.x),
        ggt=rng.normal(size=shape).astype(dtypes.x),
    )


def all_results(problem: Problem) -> list[Any]:
    """What all functions give that promise the same bits for the same arguments.

    In this order: y; `jvp`; grad_x, grad_tables; the three of `backward_backward`; R and its
    gradient.
    """
    x, tables, grad_y, ggx, ggt = problem
    return [
        lmkan_cupy.forward(x, tables),
        lmkan_cupy.jvp(ggx, ggt, x, tables),
        *lmkan_cupy.backward(grad_y, x, tables),
        *lmkan_cupy.backward_backward(ggx, ggt, grad_y, x, tables),
        *lmkan_cupy.hessian_penalty_and_grad(tables),
    ]


def away_from_knots(x: Array, knots: Array, margin: float = 1e-3) -> Array:
    """x, with whatever is nearer than `margin` to an inner knot moved to the right.

    The default is far above any rounding and any step of a finite difference, and far below the
    smallest interval of the grids in these tests (0.05).
    """
    near = np.any(np.abs(x[..., None] - knots[1:-1]) < margin, axis=-1)
    return np.where(near, x + 2 * np.asarray(margin, x.dtype), x)


LAYOUTS: dict[str, Callable[[Any, Any], Any]] = {
    "contiguous": lambda xp, array: xp.ascontiguousarray(array),
    "transposed": lambda xp, array: xp.ascontiguousarray(array.T).T,
    "stepped": lambda xp, array: xp.repeat(array, 2, axis=-1)[..., ::2],
    "reversed": lambda xp, array: xp.ascontiguousarray(array[::-1])[::-1],
    "broadcast": lambda xp, array: xp.broadcast_to(array[:1], array.shape),
}
"""Views of a memory layout; all but "broadcast", which repeats its first row, keep the values."""


def first_short(values: Iterable[Any], count: int = 1) -> list[Any]:
    """Parameters of which only the first stay in the short run; a tuple is several arguments."""
    return [
        pytest.param(
            *(each if type(each) is tuple else (each,)),
            marks=[] if number < count else pytest.mark.long,
        )
        for number, each in enumerate(values)
    ]


def nan_filled(shape: tuple[int, ...], dtype: np.dtype[Any], beside: Array) -> Array:
    """An array full of NaN, or of the largest number where a dtype of whole numbers has none."""
    poison = np.nan if dtype.kind == "f" else np.iinfo(dtype).max
    filled: Array = array_library(beside).full(shape, poison, dtype)
    return filled
