"""The CPU engine, for NumPy arrays: kernels that Numba compiles, run in threads of our own.

:mod:`lmkan_cupy.functional` calls these functions after it has checked all arguments. Inputs are
C-contiguous. Outputs arrive uninitialised, and every element of them is written.
"""

from functools import cache
from typing import Any

import numpy as np

from ..array_checks import compute_dtype_of
from ..array_library import Array
from . import compiling, kernels, network_kernels
from .convolution import conv2d_backward as conv2d_backward
from .convolution import conv2d_backward_backward as conv2d_backward_backward
from .convolution import conv2d_forward as conv2d_forward
from .convolution import conv2d_jvp as conv2d_jvp
from .corners import dimension_of, num_nodes
from .layout import grid, intervals_of, is_gathered, stored
from .network import network_forward as network_forward
from .network import network_value_and_grad as network_value_and_grad
from .threads import in_ranges, num_threads


def forward(x: Array, tables: Array, out: Array) -> None:
    """Overwrite ``out`` [B, O] with the layer of ``x`` [B, I], ``tables`` [P, S, ..., S, O]."""
    _evaluate(x, tables, None, False, out)


def jvp(
    tangent_x: Array | None,
    tangent_tables: Array | None,
    x: Array,
    tables: Array,
    tangent_y: Array,
) -> None:
    """Overwrite ``tangent_y`` [B, O] with the layer's derivative along both tangents together.

    Along ``tangent_tables`` it is the layer with these tables.
    """
    if tangent_x is not None:
        _evaluate(x, tables, tangent_x, False, tangent_y)
    if tangent_tables is not None:
        _evaluate(x, tangent_tables, None, tangent_x is not None, tangent_y)


def backward(
    grad_y: Array,
    x: Array,
    tables: Array,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Overwrite ``grad_x`` [B, I] and ``grad_tables`` [P, S, ..., S, O], where not None."""
    _pull_back(grad_y, x, tables, None, False, grad_x, grad_tables)


def backward_backward(
    ggx: Array | None,
    ggt: Array | None,
    grad_y: Array,
    x: Array,
    tables: Array,
    grad_grad_y: Array,
    grad_x: Array,
    grad_tables: Array,
) -> None:
    """Overwrite ``grad_grad_y`` [B, O], ``grad_x`` [B, I] and ``grad_tables`` [P, S, ..., S, O].

    They are the results of :func:`lmkan_cupy.backward_backward`. The first is :func:`jvp` along
    ``ggx`` and ``ggt``. For ``ggx`` the others are a backward in which the layer's derivative in
    the direction ``ggx`` takes the place of the layer; ``ggt`` adds to ``grad_x`` that of the layer
    with tables ``ggt``.
    """
    jvp(ggx, ggt, x, tables, grad_grad_y)
    if ggx is not None:
        _pull_back(grad_y, x, tables, ggx, False, grad_x, grad_tables)
    else:
        grad_tables.fill(0)
    if ggt is not None:
        _pull_back(grad_y, x, ggt, None, ggx is not None, grad_x, None)


def hessian_penalty(
    tables: Array,
    scale: float,
    grad: Array | None,
    penalty: Array,
    *,
    accumulate: bool = False,
) -> None:
    """Overwrite ``penalty`` [] with the roughness R of all inner functions of ``tables``.

    ``grad`` [P, S, ..., S, O], where not None, becomes ``scale dR/dT``; with ``accumulate`` that is
    added to it.
    """
    words, dtype = stored(tables), compute_dtype_of(tables.dtype)
    knots = grid(tables.shape[1] - 1, dtype)
    kernel = compiling.compiled(compiling.PENALTY, dtype, words.dtype, dimension_of(tables))
    penalties = np.empty(len(tables))
    grad = _none(dtype, tables.ndim) if grad is None else grad
    in_ranges(
        lambda begin, end: kernel(begin, end, words, knots, scale, accumulate, penalties, grad),
        len(tables),
        most=kernels.pair_tile(tables),
        work=4 * tables.size,
    )
    penalty[...] = penalties.sum()


def warmup(dtype: np.dtype[Any], tables_dtype: np.dtype[Any], dimension: int) -> None:
    """Compile, or load from the disk cache, what calls with such tables need."""
    stored_dtype = stored(np.empty(0, tables_dtype)).dtype
    for kernel in compiling.KERNELS:
        compiling.compiled(kernel, dtype, stored_dtype, dimension)
    for step in network_kernels.OF_TABLES:
        compiling.step_address(step, dtype, stored_dtype, dimension)


def _evaluate(x: Array, tables: Array, ggx: Array | None, accumulate: bool, out: Array) -> None:
    """Run one of the two forward kernels, each thread for some of the samples."""
    tables, intervals = stored(tables), intervals_of(tables, x.dtype)
    gathers = _gathers(x, tables)
    kernel = compiling.compiled(
        compiling.GATHER if gathers else compiling.FORWARD,
        *(x.dtype, tables.dtype, dimension_of(tables)),
    )
    direction = _none(x.dtype, 2) if ggx is None else ggx
    in_ranges(
        lambda begin, end: kernel(begin, end, x, tables, intervals, direction, accumulate, out),
        len(x),
        most=kernels.MOST_SAMPLES if gathers else kernels.num_grouped(num_nodes(tables)),
        work=_work(x, tables, locating=16 if gathers else 32),
    )


def _pull_back(
    grad_y: Array,
    x: Array,
    tables: Array,
    ggx: Array | None,
    accumulate: bool,
    grad_x: Array | None,
    grad_tables: Array | None,
) -> None:
    """Run the backward kernel, each thread for some of the pairs, which share no results.

    With fewer pairs than threads, ``grad_tables`` is split by outputs and ``grad_x`` by samples
    instead, and the samples are grouped twice. ``grad_x`` alone is always split by samples.
    """
    tables, intervals = stored(tables), intervals_of(tables, x.dtype)
    kernel = compiling.compiled(compiling.BACKWARD, x.dtype, tables.dtype, dimension_of(tables))
    pairs, *_, out_features = tables.shape
    work, block_size = _work(x, tables), kernels.num_grouped(num_nodes(tables))
    direction = _none(x.dtype, 2) if ggx is None else ggx
    no_x, no_tables = _none(x.dtype, 2), _none(x.dtype, tables.ndim)

    def by_pair(begin: int, end: int) -> None:
        some_x = no_x if grad_x is None else grad_x
        kernel(
            *(begin, end, 0, out_features, block_size),
            *(grad_y, x, tables, intervals, direction, accumulate, some_x, grad_tables),
        )

    def tables_by_output(begin: int, end: int) -> None:
        kernel(
            *(0, pairs, begin, end, block_size),
            *(grad_y, x, tables, intervals, direction, accumulate, no_x, grad_tables),
        )

    def x_by_sample(begin: int, end: int) -> None:
        assert grad_x is not None
        b = slice(begin, end)
        kernel(
            *(0, pairs, 0, out_features, block_size),
            *(grad_y[b], x[b], tables, intervals, direction[b], accumulate, grad_x[b], no_tables),
        )

    if grad_tables is not None and pairs >= num_threads():
        in_ranges(by_pair, pairs, most=kernels.pair_tile(tables), work=2 * work)
        return
    if grad_tables is not None:
        in_ranges(tables_by_output, out_features, most=out_features, work=work)
    if grad_x is not None:
        in_ranges(x_by_sample, len(x), most=block_size, work=work)


@cache
def _none(dtype: np.dtype[Any], ndim: int) -> Array:
    """Return the empty array that stands for None in the arguments of a kernel."""
    return np.empty((0,) * ndim, dtype)


def _gathers(x: Array, tables: Array) -> bool:
    """Tell whether a forward gathers: few samples share no cells, and small tables are at hand."""
    return is_gathered(tables.nbytes) or len(x) * tables.shape[-1] <= 2**13


def _work(x: Array, tables: Array, *, locating: int = 32) -> int:
    """Return about how many table elements one evaluation touches.

    Finding the cell of a sample takes as long as ``locating`` of them, by default with grouping.
    """
    out_features: int = tables.shape[-1]
    return len(x) * len(tables) * (out_features + locating)
