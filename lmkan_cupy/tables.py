"""Making, folding, refining, reading and counting tables: all that happens outside training steps.

Plain array code, the same for NumPy and CuPy. Tables have shape [P, S, ..., S, O]: group of d
inputs (a pair where d = 2), knot of each of them, output; S = G + 1 knots, P = ceil(I / d) groups.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import allocation, array_checks
from .array_library import AnyArray, Array, array_library
from .grid import locate, sigma_grid

#: Optimiser -> the number of arrays of the tables' size that it keeps.
_OPTIMIZER_STATES = {"sgd": 0, "momentum": 1, "adam": 2}


def init_tables(
    in_features: int,
    out_features: int,
    num_grids: int,
    *,
    dimension: int = 2,
    init_scale: float = 0.1,
    dtype: Any = "float32",
    rng: Any = None,
    xp: Any = np,
) -> Array:
    """Draw new tables from U(-a, a), ``a = init_scale / sqrt(in_features)``.

    Parameters
    ----------
    in_features, out_features, num_grids : int
        Sizes I, O >= 1 and G >= 3.
    dimension : {1, 2, 3}
        Inputs d of an inner function.
    init_scale : float
        Size of the outputs at the start for standardised inputs, up to a factor near 1.
    dtype : dtype
        float32, float64, float16 or, with ``xp=cupy``, bfloat16.
    rng : None, int, Generator or RandomState
        A ``numpy.random`` or ``cupy.random`` generator, or the seed of a new one of ``xp``'s.
    xp : module
        ``numpy`` or ``cupy``.

    Returns
    -------
    array [P, S, ..., S, O]
        With d axes of knots.

    Raises
    ------
    TypeError, ValueError
        If a size or ``dtype`` is out of range.
    """
    shape = tables_shape("init_tables", in_features, out_features, num_grids, dimension)
    dtype = array_checks.table_dtype("init_tables", dtype)
    if rng is None or isinstance(rng, int | np.integer):
        rng = xp.random.default_rng(rng)
    drawn_as = array_checks.compute_dtype_of(dtype)
    # A RandomState draws float64 only.
    legacy = getattr(rng, "random_sample", None)
    drawn = legacy(shape) if legacy else rng.random(shape, dtype=drawn_as)
    tables: Array = xp.asarray(drawn, dtype=drawn_as)
    bound = init_bound(in_features, init_scale)
    tables *= 2 * bound
    tables -= bound
    return allocation.aligned(tables.astype(dtype, copy=False))


def fold_linear(tables: AnyArray, weight: AnyArray, bias: AnyArray | None = None) -> Array:
    """Return tables of the layer ``lmkan(x) + W x + c``.

    For d = 2 ``T[p, i, j, o] += W[o, 2p] k_i + W[o, 2p+1] k_j + c[o] / P``: an affine function is a
    spline on any grid, and it continues linearly outside, so this holds everywhere, up to rounding.

    Parameters
    ----------
    tables : array [P, S, ..., S, O]
    weight : array [O, I]
        In the dtype of x, so float32 for half tables. I is one that P groups of d inputs hold.
    bias : array [O], optional
        The constant c, in the dtype of ``weight``.

    Returns
    -------
    array [P, S, ..., S, O]
        In the dtype of ``tables``. The argument itself is not changed.

    Raises
    ------
    TypeError, ValueError
        If shapes, dtypes or devices do not fit.
    """
    return _fold("fold_linear", tables, weight, bias, lambda knots: knots)


def fold_relu(tables: AnyArray, weight: AnyArray, bias: AnyArray | None = None) -> Array:
    """Return tables of the layer ``lmkan(x) + W relu(x) + c``.

    Arguments, result and errors are those of :func:`fold_linear`. ReLU bends at 0, so the grid
    needs a knot there: an odd number of grid intervals is a ValueError, too.
    """
    tables = array_checks.check_tables("fold_relu", tables)
    num_grids = tables.shape[1] - 1
    if num_grids % 2:
        raise ValueError(
            f"fold_relu: tables must have an even num_grids (a knot at 0), got {num_grids}; "
            f"refine them to {2 * num_grids} first"
        )
    return _fold("fold_relu", tables, weight, bias, lambda knots: knots * (knots > 0))


def _fold(
    function: str,
    tables: AnyArray,
    weight: AnyArray,
    bias: AnyArray | None,
    activation: Callable[[Array], Array],
) -> Array:
    tables = array_checks.check_tables(function, tables)
    weight, bias = array_checks.check_weight_and_bias(function, tables, weight, bias)
    xp = array_library(tables)
    pairs, *knots, out_features = tables.shape
    values = activation(sigma_grid(knots[0] - 1, dtype=weight.dtype, xp=xp))
    slopes = xp.zeros((len(knots) * pairs, out_features), weight.dtype)
    slopes[: weight.shape[1]] = weight.T
    slopes = slopes.reshape(pairs, len(knots), *[1] * len(knots), out_features)
    folded: Array = tables
    for axis in range(len(knots)):
        folded = folded + slopes[:, axis] * values.reshape(-1, *[1] * (len(knots) - axis))
    if bias is not None:
        folded += bias / pairs
    return folded.astype(tables.dtype, copy=False)


def refine(tables: AnyArray, num_grids: int) -> Array:
    """Return tables of the same functions on another grid.

    Every function is sampled at the knots of the new grid. Where the new ``num_grids`` is a whole
    multiple of the old one, the functions do not change, up to rounding: they bend at inner knots
    only, and all of these are knots of the new grid. For other numbers, the result interpolates.

    Parameters
    ----------
    tables : array [P, S, ..., S, O]
    num_grids : int
        Intervals of the new grid, at least 3.

    Returns
    -------
    array [P, num_grids + 1, ..., num_grids + 1, O]
        In the dtype of ``tables``.

    Raises
    ------
    TypeError, ValueError
        If ``tables`` is not an array of tables or ``num_grids`` is out of range.
    """
    tables = array_checks.check_tables("refine", tables)
    array_checks.check_num_grids("refine", num_grids)
    xp = array_library(tables)
    old_knots = sigma_grid(tables.shape[1] - 1, dtype="float64", xp=xp)
    i, u = locate(sigma_grid(num_grids, dtype="float64", xp=xp), old_knots)
    right = u.astype(array_checks.compute_dtype_of(tables.dtype))
    refined: Array = tables
    for axis in range(1, tables.ndim - 1):
        lower, upper = refined.take(i, axis), refined.take(i + 1, axis)
        shape = (-1, *[1] * (tables.ndim - 1 - axis))
        refined = (1 - right).reshape(shape) * lower + right.reshape(shape) * upper
    return refined.astype(tables.dtype, copy=False)


def evaluate(tables: AnyArray, pair: int, output: int, *x: Any) -> Array:
    """Evaluate one inner function ``f[pair, output](*x)``, for plots and inspection.

    Parameters
    ----------
    tables : array [P, S, ..., S, O]
    pair, output : int
        Which function, counted from 0.
    *x : arrays or floats
        As many as the function has variables; they broadcast against each other and are converted
        to the dtype of the result.

    Returns
    -------
    array
        Values, of the broadcast shape; float32, or float64 for float64 tables.

    Raises
    ------
    TypeError, ValueError
        If an index is out of range, ``tables`` is not an array of tables, points are masked, or
        there are not as many as variables.
    """
    tables = array_checks.check_tables("evaluate", tables)
    array_checks.check_pair_and_output("evaluate", tables, pair, output)
    variables = tables.ndim - 2
    if len(x) != variables:
        raise TypeError(
            f"evaluate: tables {tables.shape} have functions of {variables} variables, "
            f"got {len(x)} arguments after output"
        )
    for number, points in enumerate(x, start=1):
        array_checks.check_unmasked("evaluate", f"x{number}", points)
    xp = array_library(tables)
    dtype = array_checks.compute_dtype_of(tables.dtype)
    knots = sigma_grid(tables.shape[1] - 1, dtype=dtype, xp=xp)
    function = tables[pair, ..., output].astype(dtype)
    located = [locate(xp.asarray(points, dtype), knots) for points in x]

    def at(knots: tuple[Array, ...]) -> Array:
        """Interpolate along the axes that follow those whose ``knots`` are chosen."""
        if len(knots) == variables:
            values: Array = function[knots]
        else:
            interval, u = located[len(knots)]
            values = (1 - u) * at((*knots, interval)) + u * at((*knots, interval + 1))
        return values

    return at(())


def flops(in_features: int, out_features: int, *, dimension: int = 2) -> int:
    """Return the multiply-adds of a layer per sample, ``2^d ceil(I / d) O``.

    They are counted as in the paper, without those that locate the coordinates. A linear layer has
    ``I O``. A size that is not a whole number of at least 1, or a ``dimension`` d other than 1, 2
    and 3, is a TypeError or a ValueError.
    """
    in_features = array_checks.check_size("flops", "in_features", in_features)
    out_features = array_checks.check_size("flops", "out_features", out_features)
    dimension = array_checks.check_dimension("flops", dimension)
    corners: int = 2**dimension
    return corners * array_checks.num_pairs(in_features, dimension) * out_features


def num_parameters(
    in_features: int, out_features: int, num_grids: int, *, dimension: int = 2
) -> int:
    """Return the number of table values, ``(G + 1)^d ceil(I / d) O``.

    A size that is out of range (I, O >= 1, G >= 3, d = 1, 2 or 3) is a TypeError or a ValueError.
    """
    return math.prod(
        tables_shape("num_parameters", in_features, out_features, num_grids, dimension)
    )


def memory(
    in_features: int,
    out_features: int,
    num_grids: int,
    batch: int,
    *,
    dimension: int = 2,
    dtype: Any = "float32",
    optimizer: str = "adam",
) -> dict[str, int]:
    """Return how many bytes of memory training a layer takes.

    Parameters
    ----------
    in_features, out_features, num_grids : int
        Sizes of the layer.
    batch : int
        Samples per step, B >= 0.
    dimension : {1, 2, 3}
        Inputs of an inner function.
    dtype : dtype
        The dtype of the tables. Gradients and optimiser state of half tables are float32.
    optimizer : {"adam", "momentum", "sgd"}
        Keeps 2, 1 or 0 arrays of the tables' size.

    Returns
    -------
    dict
        Bytes of ``parameters``, ``gradients``, ``optimizer_state``, and ``workspace``: x, y and
        their gradients for ``batch`` samples.

    Raises
    ------
    TypeError, ValueError
        If a size, ``dtype`` or ``optimizer`` is out of range.
    """
    shape = tables_shape("memory", in_features, out_features, num_grids, dimension)
    batch = array_checks.check_size("memory", "batch", batch, at_least=0)
    dtype = array_checks.table_dtype("memory", dtype)
    if optimizer not in _OPTIMIZER_STATES:
        raise ValueError(
            f"memory: optimizer must be one of {', '.join(_OPTIMIZER_STATES)}, got {optimizer!r}"
        )
    size = math.prod(shape)
    item = array_checks.compute_dtype_of(dtype).itemsize
    return {
        "parameters": size * dtype.itemsize,
        "gradients": size * item,
        "optimizer_state": _OPTIMIZER_STATES[optimizer] * size * item,
        "workspace": 2 * batch * (in_features + out_features) * item,
    }


def tables_shape(
    function: str, in_features: int, out_features: int, num_grids: int, dimension: int = 2
) -> tuple[int, ...]:
    """Return [P, S, ..., S, O]; ``function`` names the caller in errors."""
    in_features = array_checks.check_size(function, "in_features", in_features)
    out_features = array_checks.check_size(function, "out_features", out_features)
    num_knots = array_checks.check_num_grids(function, num_grids) + 1
    dimension = array_checks.check_dimension(function, dimension)
    pairs = array_checks.num_pairs(in_features, dimension)
    return pairs, *[num_knots] * dimension, out_features


def init_bound(in_features: int, init_scale: float) -> float:
    """Return the bound of the uniform distribution that new tables are drawn from."""
    return init_scale / math.sqrt(in_features)
