# mypy: ignore-errors
"""The kernels of a whole network for the CPU: blocks of rows go through all layers in caches.

Its layers are those of :mod:`.kernels`, so the results are theirs, to the bit. The types are
Numba's, not Python's, so this is not type-checked.
"""

from collections import namedtuple

import numpy as np
from numba import carray, types
from numba.extending import intrinsic, overload

from .kernels import (
    PAIR_TILE,
    Groups,
    add_slopes,
    fetch,
    finish,
    gather,
    locate_pair,
    new_block,
    new_cells,
)
from .vectors import chunked, element, jit, load, multiply_add, store

#: A layer of a network as the kernels take it, with the addresses of its arrays. For tables,
#: ``values`` is [P, S, S, O], of 16-bit words where they are float16 (``is_half``), and
#: ``knots_or_transposed`` the knots [S]. A linear layer has ``num_knots`` 0: ``values`` is its
#: weight [O, I], ``knots_or_transposed`` the same as [I, O], ``bias`` is [O].
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


@jit
def _new_room(size, steps, x, keeps_all):
    """Room for N = ``size`` rows; unless it ``keeps_all`` inputs, only those of two layers."""
    widest = steps.in_features.max()
    start = np.empty(steps.size, np.int64)
    total = 0
    for k in range(steps.size):
        start[k] = total if keeps_all else k % 2 * size * widest
        total += size * steps[k].in_features
    features = np.empty(total if keeps_all else 2 * size * widest, x.dtype)
    cells = new_cells(size, PAIR_TILE, x, x[:0])
    return _Room(features, start, np.empty(size * widest, x.dtype), cells)


@jit
def _matrix(buffer, start, rows, columns):
    """A part of a buffer as a matrix [rows, columns]."""
    return buffer[start : start + rows * columns].reshape((rows, columns))


@jit
def _grid(step, x):
    return carray(_pointer(step.knots_or_transposed), (step.num_knots,), x.dtype)


@jit
def _standardise(x, shift, scale, out):
    """``out = (x - shift) * scale``, rows [N, I]."""
    size, in_features = x.shape
    for n in range(size):
        for i in range(in_features):
            out[n, i] = (x[n, i] - shift[i]) * scale[i] if shift.size else x[n, i]


@jit
def _cut(x, bound, out):
    """Cut rows [N, I] at ``+-bound``; a NaN passes."""
    size, in_features = x.shape
    for n in range(size):
        for i in range(in_features):
            value = x[n, i]
            value = bound if value > bound else value
            out[n, i] = -bound if value < -bound else value


@jit
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
@jit
def _gather_layer(tables, x, knots, cells, out):
    """Write the outputs [N, O] of a layer for rows [N, I]."""
    out[:] = 0
    gather(tables, x, x[:0], knots, cells, out)


@chunked(16, 4, 1)
def _multiply(width):
    """``out[b] = bias + sum over k of x[b, k] matrix[k]``."""

    def walk(first, x, matrix, bias, out):
        size, terms = x.shape
        num_outputs = out.shape[1]
        for n in range(size):
            y = load(bias, first, width)
            for k in range(terms):
                row = load(matrix, k * num_outputs + first, width)
                y = multiply_add(element(x, n * terms + k), row, y)
            store(out, n * num_outputs + first, y)

    return walk


@jit
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


@jit
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
@jit
def _pull_back_layer(tables, x, grad_y, knots, grad_x):
    """Write ``grad_x`` [N, I], ``grad_y`` [N, O] pulled back to the inputs of a layer."""
    size = x.shape[0]
    block = new_block(size, knots)
    slopes = np.empty((size, 4), x.dtype)
    numbers = np.arange(size + 1)
    each_alone = Groups(block.positions.cell, numbers, numbers, block.groups.weights)
    for pair in range(tables.shape[0]):
        tile = pair % PAIR_TILE
        if tile == 0:
            fetch(x, pair, block.coordinates)
        locate_pair(tile, size, knots, block)
        slopes[:] = 0
        add_slopes(0, grad_y.shape[1], size, each_alone, pair, grad_y, tables, slopes)
        finish(pair, block.positions, slopes, x[:0], False, grad_x)


@jit
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
