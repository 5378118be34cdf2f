# mypy: ignore-errors
"""The kernels of a whole network for the CPU: blocks of rows go through all layers in caches.

A network is a sequence of steps, one for each layer. A step holds the addresses of two compiled
functions, which take rows through it forward and back. So the kernels of a network know nothing of
its layers, and what takes long to compile is compiled once for each kind of layer, when it is first
met. The mathematics is that of :mod:`.kernels`, so the results are theirs, to the bit.

The types are Numba's, not Python's, so this is not type-checked.
"""

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

from .corners import dimension_of, num_nodes, tables_shape
from .kernels import (
    GATHERED,
    ROOM,
    Cells,
    Groups,
    add_gathered,
    add_grouped,
    add_slopes,
    fetch,
    finish,
    locate_pair,
    new_block,
    num_grouped,
    pair_tile,
)
from .vectors import chunked, element, jit, load, multiply_add, store

#: A layer of a network: its sizes; where its inputs are cut; the addresses of the intervals of its
#: grid, of ``forward(step, arrays, workspace, rows, x, out)`` and of
#: ``backward(step, arrays, rows, x, grad_y, grad_x)``, whose arguments are addresses, too. Those of
#: the layer's ``arrays [3]`` come at each call: see the functions that make the steps.
STEP = np.dtype(
    [
        ("in_features", np.int64),
        ("out_features", np.int64),
        ("num_knots", np.int64),
        ("bound", np.float64),
        ("intervals", np.intp),
        ("interval_rows", np.int64),
        ("interval_length", np.int64),
        ("forward", np.intp),
        ("backward", np.intp),
    ],
    align=True,
)


@intrinsic
def _pointer(typing_context, address):
    """The pointer that an address stands for."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.intp), generate


@intrinsic
def _address(typing_context, array):
    """The address of an array's first element."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(array)(context, builder, arguments[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), generate


@intrinsic
def _call(typing_context, function, arguments):
    """Call the function at an address; its ``arguments`` are a tuple of numbers."""

    def generate(context, builder, signature, values):
        numbers = [builder.extract_value(values[1], k) for k in range(arguments.count)]
        function_type = ir.FunctionType(ir.VoidType(), [each.type for each in numbers])
        builder.call(builder.inttoptr(values[0], function_type.as_pointer()), numbers)
        return context.get_dummy_value()

    return types.void(types.intp, arguments), generate


@jit
def _step_at(address):
    return carray(_pointer(address), (1,), STEP)[0]


@jit
def _array_at(arrays, number, shape, dtype):
    """The array whose address is number ``number`` of those at ``arrays``."""
    return carray(_pointer(carray(_pointer(arrays), (3,), np.intp)[number]), shape, dtype)


@chunked(64, 16, 4, 1)
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


#: The most corners of a cell.
_MOST_CORNERS = 8


@jit
def _new_workspace(like):
    """Bytes for the cells that a gathered layer finds on the way."""
    return np.empty(ROOM * (4 + (_MOST_CORNERS + 1) * like.itemsize), np.uint8)


@jit
def _cells_in(workspace, like, tables):
    coordinates = workspace + 4 * ROOM
    weights = coordinates + ROOM * like.itemsize
    return Cells(
        carray(_pointer(workspace), (ROOM,), np.uint32),
        carray(_pointer(weights), (2 ** dimension_of(tables), ROOM), like.dtype),
        carray(_pointer(coordinates), (ROOM,), like.dtype),
        like[:0],
    )


@jit
def _tables_of(step, arrays, stored_dtype, dimension):
    shape = tables_shape(step.in_features, step.num_knots, step.out_features, dimension)
    return _array_at(arrays, 0, shape, stored_dtype)


@jit
def _intervals_of(step, dtype):
    shape = (step.interval_rows, step.interval_length)
    return carray(_pointer(step.intervals), shape, dtype)


def gathered_forward(dtype, stored_dtype, dimension):
    """Make the forward of a layer with tables of a dimension, sample by sample.

    Its first array is the tables [P, S, ..., S, O], float16 as 16-bit words.
    """

    def gathered_forward(address, arrays, workspace, size, x, out):
        step = _step_at(address)
        tables = _tables_of(step, arrays, stored_dtype, dimension)
        intervals = _intervals_of(step, dtype)
        x = carray(_pointer(x), (size, step.in_features), dtype)
        out = carray(_pointer(out), (size, step.out_features), dtype)
        cells, bound = _cells_in(workspace, intervals[0], tables), dtype(step.bound)
        out[:] = 0
        for first in range(0, size, GATHERED):
            rows = slice(first, min(first + GATHERED, size))
            add_gathered(tables, x[rows], bound, x[:0], intervals, cells, out[rows])

    return gathered_forward


def grouped_forward(dtype, stored_dtype, dimension):
    """Make the forward of a layer with tables, cell by cell, see :func:`gathered_forward`."""

    def grouped_forward(address, arrays, workspace, size, x, out):
        step = _step_at(address)
        tables = _tables_of(step, arrays, stored_dtype, dimension)
        intervals = _intervals_of(step, dtype)
        x = carray(_pointer(x), (size, step.in_features), dtype)
        out = carray(_pointer(out), (size, step.out_features), dtype)
        out[:] = 0
        count = num_grouped(num_nodes(tables))
        for first in range(0, size, count):
            rows = slice(first, min(first + count, size))
            add_grouped(tables, x[rows], dtype(step.bound), x[:0], intervals, out[rows])

    return grouped_forward


def tables_backward(dtype, stored_dtype, dimension):
    """Make the backward of a layer with tables: the gradient of its inputs before the cut."""

    def tables_backward(address, arrays, size, x, grad_y, grad_x):
        step = _step_at(address)
        inputs, outputs = step.in_features, step.out_features
        tables = _tables_of(step, arrays, stored_dtype, dimension)
        intervals = _intervals_of(step, dtype)
        x = carray(_pointer(x), (size, inputs), dtype)
        grad_y = carray(_pointer(grad_y), (size, outputs), dtype)
        grad_x = carray(_pointer(grad_x), (size, inputs), dtype)
        bound = dtype(step.bound)
        block = new_block(size, tables, dtype)
        slopes = np.empty((size, 2**dimension), dtype)
        numbers = np.arange(size + 1)
        samples = numbers.astype(np.uint32)
        each_alone = Groups(block.positions.node, numbers, samples, block.groups.weights)
        for pair in range(tables.shape[0]):
            tile = pair % pair_tile(tables)
            if tile == 0:
                fetch(x, bound, pair, tables, block.coordinates)
            locate_pair(tile, size, tables, intervals, block)
            slopes[:] = 0
            add_slopes(0, outputs, size, each_alone, pair, grad_y, tables, slopes)
            finish(pair, tables, block.positions, slopes, False, False, grad_x)
        for n in range(size):
            for i in range(inputs):
                if abs(x[n, i]) > bound:
                    grad_x[n, i] = 0

    return tables_backward


#: The functions of a layer with tables.
OF_TABLES = (gathered_forward, grouped_forward, tables_backward)


def linear_forward(dtype, stored_dtype, dimension):
    """Make the forward of a linear layer.

    ``arrays`` are its weight [O, I], the same transposed [I, O], and its bias [O].
    """

    def linear_forward(address, arrays, workspace, size, x, out):
        step = _step_at(address)
        inputs, outputs = step.in_features, step.out_features
        _multiply(
            *(0, outputs, carray(_pointer(x), (size, inputs), dtype)),
            _array_at(arrays, 1, (inputs, outputs), dtype),
            _array_at(arrays, 2, (outputs,), dtype),
            carray(_pointer(out), (size, outputs), dtype),
        )

    return linear_forward


def linear_backward(dtype, stored_dtype, dimension):
    """Make the backward of a linear layer."""

    def linear_backward(address, arrays, size, x, grad_y, grad_x):
        step = _step_at(address)
        inputs, outputs = step.in_features, step.out_features
        _multiply(
            *(0, inputs, carray(_pointer(grad_y), (size, outputs), dtype)),
            _array_at(arrays, 0, (outputs, inputs), dtype),
            np.zeros(inputs, dtype),
            carray(_pointer(grad_x), (size, inputs), dtype),
        )

    return linear_backward


@jit
def _standardise(x, shift, scale, out):
    """``out = (x - shift) * scale``, rows [N, I]; without a shift, the rows as they are."""
    size, in_features = x.shape
    for n in range(size):
        for i in range(in_features):
            out[n * in_features + i] = (x[n, i] - shift[i]) * scale[i] if shift.size else x[n, i]


@jit
def _layer(steps, arrays, k):
    """The addresses that a function of step k begins with."""
    return _address(steps[k : k + 1]), _address(arrays[k])


@jit
def _forward(size, steps, arrays, workspace, features, out):
    """Take rows through all steps: inputs of step k are in ``features[k]``, results in ``out``."""
    last = steps.size - 1
    for k in range(steps.size):
        following = out if k == last else _address(features[(k + 1) % len(features)])
        layer, inputs = _layer(steps, arrays, k), _address(features[k % len(features)])
        _call(steps[k].forward, (*layer, _address(workspace), size, inputs, following))


def network_kernel(begin, end, block, x, shift, scale, steps, arrays, out):
    """Compute ``out`` [B, O] of a network for the rows from ``begin`` to ``end`` of ``x`` [B, I].

    They go through it ``block`` rows at a time, after ``(x - shift) * scale``.
    """
    rows = min(block, end - begin)
    features = np.empty((2, rows * steps.in_features.max()), x.dtype)
    workspace = _new_workspace(x)
    for first in range(begin, end, block):
        size = min(block, end - first)
        _standardise(x[first : first + size], shift, scale, features[0])
        _forward(size, steps, arrays, workspace, features, _address(out[first:]))


def network_grad_kernel(begin, end, block, x, grad_y, shift, scale, steps, arrays, out, grad_x):
    """Compute ``out`` as :func:`network_kernel` does, and ``grad_x`` [B, I].

    That is ``grad_y`` [B, O] pulled back to ``x``.
    """
    rows = min(block, end - begin)
    room = rows * steps.in_features.max()
    features = np.empty((steps.size, room), x.dtype)
    gradients = np.empty((2, room), x.dtype)
    workspace = _new_workspace(x)
    one = x.dtype.type(1)
    for first in range(begin, end, block):
        size = min(block, end - first)
        _standardise(x[first : first + size], shift, scale, features[0])
        _forward(size, steps, arrays, workspace, features, _address(out[first:]))
        gradient = _address(grad_y[first:])
        for k in range(steps.size - 1, -1, -1):
            preceding = _address(gradients[k % 2])
            layer, inputs = _layer(steps, arrays, k), _address(features[k])
            _call(steps[k].backward, (*layer, size, inputs, gradient, preceding))
            gradient = preceding
        for n in range(size):
            for i in range(x.shape[1]):
                factor = scale[i] if scale.size else one
                grad_x[first + n, i] = gradients[0, n * x.shape[1] + i] * factor
