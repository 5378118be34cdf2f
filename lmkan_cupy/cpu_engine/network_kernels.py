# mypy: ignore-errors
"""The kernels of a whole network for the CPU: blocks of rows go through all layers in the caches."""

from collections import namedtuple

import numpy as np
from numba import carray, types
from numba.extending import intrinsic, overload

from .kernels import (
    PAIR_TILE,
    _add_slopes,
    _chunked,
    _element,
    _fetch,
    _finish,
    _gather,
    _Groups,
    _jit,
    _load,
    _locate_pair,
    _multiply_add,
    _new_block,
    _new_cells,
    _store,
)

#: A layer of a network as the kernels take it, with the addresses of its arrays. Tables: ``values``
#: is [P, S, S, O], float16 as 16-bit words where ``is_half``, ``knots_or_transposed`` the knots [S].
#: A linear layer has ``num_knots`` 0: ``values`` is its weight [O, I], ``knots_or_transposed`` the
#: weight as [I, O], ``bias`` [O].
STEP = np.dtype(
    [
        ("in_features", np.int64),
        ("out_features", np.int64),
        ("num_knots", np.int64),
        ("is_half", np.bool_),
        ("bound", np.float64),
        ("values", np.intp),
        ("knots_or_transposed", np.intp),
        ("bias", np.intp),
    ],
    align=True,
)


@intrinsic
def _pointer(typing_context, address):
    """The pointer that an address stands for."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


#: Room for a block of N rows on its way through a network: ``features``, the inputs of all layers,
#: ``start[k]`` those of layer k; ``cut``, those of one layer, cut at its bound; ``cells``.
_Room = namedtuple("_Room", "features, start, cut, cells")


@_jit
def _new_room(size, steps, x, keeps_all):
    """Room for N = ``size`` rows; unless it ``keeps_all`` inputs, only those of two layers."""
    widest = steps.in_features.max()
    start = np.empty(steps.size, np.int64)
    total = 0
    for k in range(steps.size):
        start[k] = total if keeps_all else k % 2 * size * widest
        total += size * steps[k].in_features
    features = np.empty(total if keeps_all else 2 * size * widest, x.dtype)
    cells = _new_cells(size, PAIR_TILE, x, x[:0])
    return _Room(features, start, np.empty(size * widest, x.dtype), cells)


@_jit
def _matrix(buffer, start, rows, columns):
    """A part of a buffer as a matrix [rows, columns]."""
    return buffer[start : start + rows * columns].reshape((rows, columns))


@_jit
def _grid(step, x):
    return carray(_pointer(step.knots_or_transposed), (step.num_knots,), x.dtype)


@_jit
def _standardise(x, shift, scale, out):
    """``out = (x - shift) * scale``, rows [N, I]."""
    size, in_features = x.shape
    for n in range(size):
        for i in range(in_features):
            out[n, i] = (x[n, i] - shift[i]) * scale[i] if shift.size else x[n, i]


@_jit
def _cut(x, bound, out):
    """Cut rows [N, I] at ``+-bound``; a NaN passes."""
    size, in_features = x.shape
    for n in range(size):
        for i in range(in_features):
            value = x[n, i]
            value = bound if value > bound else value
            out[n, i] = -bound if value < -bound else value


@_jit
def _tables(step, dtype):
    pairs = (step.in_features + 1) // 2
    shape = (pairs, step.num_knots, step.num_knots, step.out_features)
    return carray(_pointer(step.values), shape, dtype)


def _of_step(walk):
    """Turn ``walk(tables, x, *arguments)`` into a function that takes a step instead of tables."""

    def call(step, x, *arguments):
        pass

    @overload(call)
    def overloaded(step, x, *arguments):
        if x.dtype == types.float64:
            return lambda step, x, *arguments: walk(_tables(step, np.float64), x, *arguments)

        def as_stored(step, x, *arguments):
            if step.is_half:
                walk(_tables(step, np.uint16), x, *arguments)
            else:
                walk(_tables(step, np.float32), x, *arguments)

        return as_stored

    return call


@_of_step
@_jit
def _gather_layer(tables, x, knots, cells, out):
    """Write the outputs [N, O] of a layer for rows [N, I]."""
    out[:] = 0
    _gather(tables, x, x[:0], knots, cells, out)


@_chunked(32, 16, 8, 4, 2, 1)
def _multiply(width):
    """``out[b] = bias + sum over k of x[b, k] matrix[k]``."""

    def walk(first, x, matrix, bias, out):
        size, terms = x.shape
        num_outputs = out.shape[1]
        for n in range(size):
            y = _load(bias, first, width)
            for k in range(terms):
                row = _load(matrix, k * num_outputs + first, width)
                y = _multiply_add(_element(x, n * terms + k), row, y)
            _store(out, n * num_outputs + first, y)

    return walk


@_jit
def _apply(step, x, cut, cells, out):
    """Write the outputs [N, O] of one layer for rows [N, I]."""
    inputs, outputs = step.in_features, step.out_features
    if step.num_knots == 0:
        matrix = carray(_pointer(step.knots_or_transposed), (inputs, outputs), x.dtype)
        bias = carray(_pointer(step.bias), (outputs,), x.dtype)
        _multiply(0, outputs, x, matrix, bias, out)
        return
    knots = _grid(step, x)
    _cut(x, x.dtype.type(step.bound), cut)
    _gather_layer(step, cut, knots, cells, out)


@_jit
def _through(x, shift, scale, steps, room, out):
    """Write the outputs [N, O] of a network for a block of rows [N, I]."""
    size = x.shape[0]
    last = steps.size - 1
    rows = _matrix(room.features, room.start[0], size, x.shape[1])
    _standardise(x, shift, scale, rows)
    for k in range(steps.size):
        step = steps[k]
        if k == last:
            following = out
        else:
            following = _matrix(room.features, room.start[k + 1], size, step.out_features)
        _apply(step, rows, _matrix(room.cut, 0, size, step.in_features), room.cells, following)
        rows = following


@_of_step
@_jit
def _pull_back_layer(tables, x, grad_y, knots, grad_x):
    """Write ``grad_x`` [N, I], ``grad_y`` [N, O] pulled back to the inputs of a layer."""
    size, in_features = x.shape
    block = _new_block(size, knots)
    slopes = np.empty((size, 4), x.dtype)
    numbers = np.arange(size + 1)
    each_alone = _Groups(block.positions.cell, numbers, numbers, block.groups.weights)
    for pair in range(tables.shape[0]):
        tile = pair % PAIR_TILE
        if tile == 0:
            _fetch(x, pair, block.coordinates)
        _locate_pair(tile, size, knots, block)
        slopes[:] = 0
        _add_slopes(0, grad_y.shape[1], size, each_alone, pair, grad_y, tables, slopes)
        _finish(pair, block.positions, slopes, x[:0], False, grad_x)


@_jit
def _pull_back(step, x, grad_y, cut, grad_x):
    """Write ``grad_x`` [N, I], ``grad_y`` [N, O] pulled back to the uncut inputs of one layer."""
    size, inputs = x.shape
    if step.num_knots == 0:
        matrix = carray(_pointer(step.values), (step.out_features, inputs), x.dtype)
        _multiply(0, inputs, grad_y, matrix, np.zeros(inputs, x.dtype), grad_x)
        return
    bound = x.dtype.type(step.bound)
    _cut(x, bound, cut)
    _pull_back_layer(step, cut, grad_y, _grid(step, x), grad_x)
    for n in range(size):
        for i in range(inputs):
            if abs(x[n, i]) > bound:
                grad_x[n, i] = 0


def network_kernel(begin, end, block, x, shift, scale, steps, out):
    """Compute ``out`` [B, O] of a network for the rows from ``begin`` to ``end`` of ``x`` [B, I].

    They go through it ``block`` rows at a time, after ``(x - shift) * scale``.
    """
    room = _new_room(min(block, end - begin), steps, x, False)
    for first in range(begin, end, block):
        chosen = slice(first, min(first + block, end))
        _through(x[chosen], shift, scale, steps, room, out[chosen])


def network_grad_kernel(begin, end, block, x, grad_y, shift, scale, steps, out, grad_x):
    """Compute ``out`` as :func:`network_kernel` does, and ``grad_x`` [B, I].

    That is ``grad_y`` [B, O] pulled back to ``x``.
    """
    room = _new_room(min(block, end - begin), steps, x, True)
    gradients = np.empty((2, room.cut.size), x.dtype)
    one = x.dtype.type(1)
    for first in range(begin, end, block):
        chosen = slice(first, min(first + block, end))
        size = chosen.stop - chosen.start
        _through(x[chosen], shift, scale, steps, room, out[chosen])
        gradient = grad_y[chosen]
        for k in range(steps.size - 1, -1, -1):
            step = steps[k]
            inputs = step.in_features
            rows = _matrix(room.features, room.start[k], size, inputs)
            preceding = _matrix(gradients[k % 2], 0, size, inputs)
            _pull_back(step, rows, gradient, _matrix(room.cut, 0, size, inputs), preceding)
            gradient = preceding
        for n in range(size):
            for i in range(x.shape[1]):
                grad_x[first + n, i] = gradient[n, i] * (scale[i] if scale.size else one)
