# mypy: ignore-errors
"""The kernels of an lmKAN layer for the CPU, compiled by Numba.

Symbols: B samples, I inputs, O outputs, P = ceil(I / 2) pairs, G grid intervals, S = G + 1 knots.

Every kernel treats one pair at a time. The samples of a block are grouped by the cell that they
fall into (:func:`_group`), and the groups are walked: the four table rows of a cell, or the
gradients of these rows, stay in registers while all samples of the cell pass by. A row of O outputs
is cut into chunks of a fixed number of outputs, each of which is one vector of the processor's
instructions (:class:`_Vector`), so that nothing is left to an auto-vectoriser.

What a sample gets depends on nothing but its own values, and what a table gets is added in the
order of the samples: results do not depend on how the work is cut.

All compiled code stands in this one file, since Numba's disk cache notices changes of the file
that holds a kernel and of no other. Its types are Numba's, not Python's, so it is not type-checked.
"""

import operator
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

# --- Vectors: a chunk of a table row in registers -------------------------------------------------

_INT32 = ir.IntType(32)
_LLVM_TYPES = {types.uint32: _INT32, types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class _Vector(types.Type):
    """Numba type of ``width`` numbers in registers; LLVM spreads them over what the CPU has."""

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype = dtype
        self.width = width
        super().__init__(name=f"_Vector({dtype}, {width})")


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: _Vector) -> None:
        llvm_type = ir.VectorType(_LLVM_TYPES[vector.dtype], vector.width)
        super().__init__(manager, vector, llvm_type)


def _lanes(builder, vector, lanes):
    """The LLVM vector of the named lanes of a vector."""
    mask = ir.Constant(ir.VectorType(_INT32, len(lanes)), lanes)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def _as_vector(builder, value, llvm_type):
    """A vector as it is, a scalar in all lanes of a vector of ``llvm_type``."""
    if value.type == llvm_type:
        return value
    one_lane = builder.insert_element(ir.Constant(llvm_type, ir.Undefined), value, _INT32(0))
    return _lanes(builder, one_lane, [0] * llvm_type.count)


def _pointer(context, builder, array_type, array, index, llvm_type):
    """Address of element ``index`` of a C-contiguous array, counted over all its axes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), llvm_type.as_pointer())


def _half_to_float(builder, bits, llvm_type):
    """Numbers of float16 given as 16-bit words, exactly and without an instruction for it.

    Shifted into the fields of float32 they are too small by 2^112; only infinity and NaN, whose
    exponent is all ones, do not follow a multiplication.
    """
    words = ir.VectorType(_INT32, llvm_type.count)

    def constant(value):
        return ir.Constant(words, [value] * llvm_type.count)

    wide = builder.zext(bits, words)
    shifted = builder.shl(builder.and_(wide, constant(0x7FFF)), constant(13))
    scale = ir.Constant(llvm_type, [2.0**112] * llvm_type.count)
    scaled = builder.bitcast(builder.fmul(builder.bitcast(shifted, llvm_type), scale), words)
    is_finite = builder.icmp_unsigned("<", shifted, constant(0x7C00 << 13))
    special = builder.or_(shifted, constant(0xFF << 23))
    sign = builder.shl(builder.and_(wide, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(builder.select(is_finite, scaled, special), sign), llvm_type)


@intrinsic(prefer_literal=True)
def _load(typing_context, array, index, width):
    """``width`` elements of an array from ``index`` on; 16-bit words are read as float16."""
    is_half = array.dtype == types.uint16
    vector = _Vector(types.float32 if is_half else array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        llvm_type = context.get_value_type(vector)
        stored_type = ir.VectorType(ir.IntType(16), vector.width) if is_half else llvm_type
        pointer = _pointer(context, builder, array, arguments[0], arguments[1], stored_type)
        # A row starts at any element: only the alignment of one element can be promised.
        stored = builder.load(pointer, align=array.dtype.bitwidth // 8)
        return _half_to_float(builder, stored, llvm_type) if is_half else stored

    return vector(array, types.intp, width), generate


@intrinsic
def _store(typing_context, array, index, vector):
    """Write a vector into an array from element ``index`` on."""

    def generate(context, builder, signature, arguments):
        llvm_type = context.get_value_type(vector)
        pointer = _pointer(context, builder, array, arguments[0], arguments[1], llvm_type)
        builder.store(arguments[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def _element(typing_context, array, index):
    """Element ``index`` of an array counted over all its axes; no index is negative."""

    def generate(context, builder, signature, arguments):
        llvm_type = context.get_value_type(array.dtype)
        return builder.load(_pointer(context, builder, array, *arguments, llvm_type))

    return array.dtype(array, types.intp), generate


@intrinsic(prefer_literal=True)
def _zeros(typing_context, array, width):
    """A vector of zeros in the dtype of an array."""
    vector = _Vector(array.dtype, width.literal_value)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(vector), None)

    return vector(array, width), generate


@intrinsic
def _multiply_add(typing_context, a, b, c):
    """``a b + c``, fused where the processor can: ``a`` a vector or a scalar, ``b, c`` vectors.

    Fusing is asked for here and nowhere else, so that all samples get the same rounding.
    """

    def generate(context, builder, signature, arguments):
        llvm_type = context.get_value_type(c)
        operands = [_as_vector(builder, value, llvm_type) for value in arguments]
        return _fused(builder, *operands)

    return c(a if isinstance(a, _Vector) else c.dtype, b, c), generate


def _fused(builder, a, b, c):
    letter = "f32" if isinstance(c.type.element, ir.FloatType) else "f64"
    function_type = ir.FunctionType(c.type, [c.type] * 3)
    name = f"llvm.fmuladd.v{c.type.count}{letter}"
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    return builder.call(function, [a, b, c])


def _elementwise(symbol: Callable[[Any, Any], Any], instruction: str) -> None:
    """Give ``+``, ``-`` or ``*`` a meaning for two vectors, or a scalar and a vector."""

    @intrinsic
    def combine(typing_context, a, b):
        def generate(context, builder, signature, arguments):
            llvm_type = context.get_value_type(b)
            operands = [_as_vector(builder, value, llvm_type) for value in arguments]
            return getattr(builder, instruction)(*operands)

        return b(a if isinstance(a, _Vector) else b.dtype, b), generate

    @overload(symbol)
    def overloaded(a, b):
        if isinstance(b, _Vector):
            return lambda a, b: combine(a, b)
        return None


_elementwise(operator.add, "fadd")
_elementwise(operator.sub, "fsub")
_elementwise(operator.mul, "fmul")


@intrinsic
def _where_reached(typing_context, x, bound, value, otherwise):
    """In every lane ``value`` where ``x >= bound``, else what ``otherwise`` holds."""

    def generate(context, builder, signature, arguments):
        x, bound, value, otherwise = arguments
        is_reached = builder.fcmp_ordered(">=", x, _as_vector(builder, bound, x.type))
        return builder.select(is_reached, _as_vector(builder, value, otherwise.type), otherwise)

    return otherwise(x, x.dtype, otherwise.dtype, otherwise), generate


def _fold(builder, vector, groups):
    """Add up the lanes of each of ``groups`` equal parts of a vector, by halves."""
    while vector.type.count > groups:
        size = vector.type.count // groups
        starts = range(0, vector.type.count, size)
        halves = [
            _lanes(builder, vector, [s + k for s in starts for k in range(h, h + size // 2)])
            for h in (0, size // 2)
        ]
        vector = builder.fadd(*halves)
    return vector


@intrinsic
def _total(typing_context, vector):
    """The sum of a vector, a scalar."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(_fold(builder, arguments[0], 1), _INT32(0))

    return vector.dtype(vector), generate


@intrinsic
def _dot_products(typing_context, a, b, c, d):
    """The vector ``(a.b, a.c, a.d, 0)``: three sums folded together cost little more than one."""
    result = _Vector(a.dtype, 4)
    pieces = [range(k, min(k + 16, a.width)) for k in range(0, a.width, 16)]

    def generate(context, builder, signature, arguments):
        def dot_product(other):
            total = None
            for piece in pieces:
                factors = [_lanes(builder, vector, list(piece)) for vector in (arguments[0], other)]
                if total is None:
                    total = builder.fmul(*factors)
                else:
                    total = _fused(builder, *factors, total)
            return total

        def join(first, second):
            count = 2 * first.type.count
            mask = ir.Constant(ir.VectorType(_INT32, count), list(range(count)))
            return builder.shuffle_vector(first, second, mask)

        sums = [dot_product(other) for other in arguments[1:]]
        sums.append(ir.Constant(sums[0].type, None))
        return _fold(builder, join(join(*sums[:2]), join(*sums[2:])), 4)

    return result(a, b, c, d), generate


@intrinsic
def _to_float64(typing_context, vector):
    """A vector in float64."""
    result = _Vector(types.float64, vector.width)

    def generate(context, builder, signature, arguments):
        if vector == result:
            return arguments[0]
        return builder.fpext(arguments[0], context.get_value_type(result))

    return result(vector), generate


# --- Walking a row of outputs chunk by chunk ------------------------------------------------------

_jit = numba.njit(nogil=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _chunked(*widths: int) -> Callable[[Callable[[int], Any]], Any]:
    """Make a walk over all outputs of a walk over one chunk of them.

    Decorates ``make(width)``, which gives ``walk(first, *arguments)`` for ``width`` outputs from
    ``first`` on. The result is called as ``walk(0, num_outputs, *arguments)``: as many chunks of
    the first of ``widths`` as fit, then of the next one, down to 1.
    """

    def decorate(make):
        @_jit
        def nothing(first, num_outputs, *arguments):
            pass

        walk = nothing
        for width in reversed(widths):
            walk = chunks(_jit(make(width)), width, walk)
        return walk

    def chunks(walk_chunk, width, walk_rest):
        @_jit
        def walk(first, num_outputs, *arguments):
            while first + width <= num_outputs:
                walk_chunk(first, *arguments)
                first += width
            walk_rest(first, num_outputs, *arguments)

        return walk

    return decorate


# --- Grouping the samples of a block by cell ------------------------------------------------------

#: Pairs whose coordinates are fetched together: in float32 one cache line of a row of ``x``.
PAIR_TILE = 8

#: Coordinates located together.
_LANES = 32

#: Where the N samples of a block lie for one pair: ``row, column`` the two intervals of their cell
#: as i S and j, ``u, v`` the position in it, ``scale_1, scale_2`` one over its widths; all [N].
_Positions = namedtuple("_Positions", "row, column, u, v, scale_1, scale_2")

#: The samples of a block in an order in which those of a cell stand together: ``sample [N]`` their
#: numbers, ``weights [N, 4]`` those of the corners (i, j), (i, j+1), (i+1, j), (i+1, j+1). By group
#: ``node``, i S + j of its cell, and ``start``, its first place, with one more for the end.
_Groups = namedtuple("_Groups", "node, start, sample, weights")

#: With workspace: ``coordinates [2 PAIR_TILE, N]``, ``count [S S]``, and ``scale [G]``, one over
#: the widths of the intervals.
_Block = namedtuple("_Block", "positions, groups, coordinates, count, scale")


@_jit
def _reciprocals(knots, distance):
    """``1 / (k_{i + distance} - k_i)``."""
    scale = np.empty(knots.size - distance, knots.dtype)
    for i in range(scale.size):
        scale[i] = 1 / (knots[i + distance] - knots[i])
    return scale


@_jit
def _new_block(size, knots):
    """Room for ``size`` samples, and for reading on to a multiple of ``_LANES``."""
    # An odd multiple: else all rows of the coordinates would share the same few places of a cache.
    room = (-(-size // _LANES) | 1) * _LANES
    dtype = knots.dtype
    positions = _Positions(
        np.empty(room, np.uint32),
        np.empty(room, np.uint32),
        np.empty(room, dtype),
        np.empty(room, dtype),
        np.empty(room, dtype),
        np.empty(room, dtype),
    )
    groups = _Groups(
        np.empty(room + 1, np.int64),
        np.empty(room + 1, np.int64),
        np.empty(room, np.uint32),
        np.empty((room, 4), dtype),
    )
    coordinates = np.empty((2 * PAIR_TILE, room), dtype)
    count = np.empty(knots.size * knots.size, np.uint32)
    return _Block(positions, groups, coordinates, count, _reciprocals(knots, 1))


@_jit
def _fetch(x, first_pair, coordinates):
    """Transpose the features of the pairs from ``first_pair`` on into ``coordinates``."""
    size, in_features = x.shape
    first = 2 * first_pair
    available = min(2 * PAIR_TILE, in_features - first)
    for n in range(size):
        for k in range(available):
            coordinates[k, n] = x[n, first + k]
    if available % 2 == 1:
        coordinates[available] = 0


@_jit
def _locate(coordinates, begin, size, knots, scale, stride, intervals, positions, scales):
    """Find interval and position of ``size`` coordinates, from element ``begin`` on.

    The interval, here times ``stride``, is the number of inner knots that do not exceed the
    coordinate. That is ``clamp(floor(G sigma(x)), 0, G - 1)`` with neither an exponential nor a
    clamp, and a NaN, which exceeds nothing, falls into interval 0.
    """
    for n in range(0, size, _LANES):
        x = _load(coordinates, begin + n, _LANES)
        interval = _zeros(intervals, _LANES)
        left = knots[0] + _zeros(knots, _LANES)
        factor = scale[0] + _zeros(knots, _LANES)
        for k in range(1, scale.size):
            interval = _where_reached(x, knots[k], np.uint32(k * stride), interval)
            left = _where_reached(x, knots[k], knots[k], left)
            factor = _where_reached(x, knots[k], scale[k], factor)
        _store(intervals, n, interval)
        _store(positions, n, (x - left) * factor)
        _store(scales, n, factor)


@_jit
def _locate_pair(tile, size, knots, block):
    """Find the cells and positions of ``size`` samples for pair ``tile`` of those fetched."""
    at, coordinates, scale = block.positions, block.coordinates, block.scale
    first = 2 * tile * coordinates.shape[1]
    second = first + coordinates.shape[1]
    _locate(coordinates, first, size, knots, scale, knots.size, at.row, at.u, at.scale_1)
    _locate(coordinates, second, size, knots, scale, 1, at.column, at.v, at.scale_2)


@_jit
def _put(n, place, pair, ggx, at, groups):
    """Put sample ``n`` of a block into a place of the grouped order, with its weights."""
    u, v = at.u[n], at.v[n]
    one = at.u.dtype.type(1)
    if ggx.size:
        a = ggx[n, 2 * pair] * at.scale_1[n]
        b = ggx[n, 2 * pair + 1] * at.scale_2[n] if 2 * pair + 1 < ggx.shape[1] else 0 * a
        w_00 = -a * (one - v) - b * (one - u)
        w_01 = b * (one - u) - a * v
        w_10 = a * (one - v) - b * u
        w_11 = a * v + b * u
    else:
        w_00 = (one - u) * (one - v)
        w_01 = (one - u) * v
        w_10 = u * (one - v)
        w_11 = u * v
    groups.sample[place] = n
    weights = groups.weights[place]
    weights[0], weights[1], weights[2], weights[3] = w_00, w_01, w_10, w_11


@_jit
def _group(x, pair, first_pair, knots, ggx, block):
    """Locate the samples of a block ``x`` [N, I] for one pair and group them by their cell.

    The weights are those of the corners; with a cotangent ``ggx`` [N, I] (not empty) they are
    instead the derivatives of these weights in the direction ``ggx``. Pairs are asked for in turn,
    from ``first_pair`` on.

    Returns the number of groups.
    """
    size = x.shape[0]
    tile = (pair - first_pair) % PAIR_TILE
    if tile == 0:
        _fetch(x, pair, block.coordinates)
    _locate_pair(tile, size, knots, block)

    row, column = block.positions.row, block.positions.column
    node, start, count = block.groups.node, block.groups.start, block.count
    if 4 * size < count.size:  # so few samples rarely share a cell: each is a group
        for n in range(size):
            node[n] = row[n] + column[n]
            start[n] = n
            _put(n, n, pair, ggx, block.positions, block.groups)
        start[size] = size
        return size

    # Count the samples of each cell, give each cell its places, then fill them: a stable sort.
    count[:] = 0
    for n in range(size):
        count[row[n] + column[n]] += np.uint32(1)
    num_groups = place = 0
    for cell in range(count.size):
        members = count[cell]
        count[cell] = place
        node[num_groups] = cell  # kept if there are members: no branch that cannot be foreseen
        start[num_groups] = place
        num_groups += members > 0
        place += members
    start[num_groups] = size
    for n in range(size):
        cell = row[n] + column[n]
        place = count[cell]
        count[cell] = place + np.uint32(1)
        _put(n, place, pair, ggx, block.positions, block.groups)
    return num_groups


# --- Kernels --------------------------------------------------------------------------------------
# Entered from Python with a range of samples or pairs. An empty array stands for None, so that
# each kernel is compiled once for a pair of dtypes.


def forward_kernel(begin, end, x, tables, knots, ggx, accumulate, out):
    """Compute ``out`` [B, O] for the samples from ``begin`` to ``end``, one block.

    With ``ggx`` it is the derivative of the layer in the direction ``ggx``. ``accumulate`` adds.
    """
    x, ggx, out = x[begin:end], ggx[begin:end], out[begin:end]
    block = _new_block(end - begin, knots)
    if not accumulate:
        out[:] = 0
    for pair in range(tables.shape[0]):
        num_groups = _group(x, pair, 0, knots, ggx, block)
        _add_rows(0, out.shape[1], num_groups, block.groups, pair, tables, out)


@_chunked(64, 32, 16, 8, 4, 2, 1)
def _add_rows(width):
    """``out[b] += sum of w_n T[p, n]`` over the four corners n, for the samples of all groups."""

    def walk(first, num_groups, groups, pair, tables, out):
        num_knots, num_outputs = tables.shape[2], tables.shape[3]
        for group in range(num_groups):
            node = pair * num_knots * num_knots + _element(groups.node, group)
            row = node * num_outputs + first
            row_00 = _load(tables, row, width)
            row_01 = _load(tables, row + num_outputs, width)
            row_10 = _load(tables, row + num_knots * num_outputs, width)
            row_11 = _load(tables, row + (num_knots + 1) * num_outputs, width)
            for place in range(_element(groups.start, group), _element(groups.start, group + 1)):
                target = _element(groups.sample, place) * num_outputs + first
                y = _load(out, target, width)
                y = _multiply_add(_element(groups.weights, 4 * place), row_00, y)
                y = _multiply_add(_element(groups.weights, 4 * place + 1), row_01, y)
                y = _multiply_add(_element(groups.weights, 4 * place + 2), row_10, y)
                y = _multiply_add(_element(groups.weights, 4 * place + 3), row_11, y)
                _store(out, target, y)

    return walk


def backward_kernel(
    begin,
    end,
    first_output,
    end_output,
    block_size,
    grad_y,
    x,
    tables,
    knots,
    ggx,
    accumulate,
    grad_x,
    grad_tables,
):
    """Pull ``grad_y`` [B, O] back for the pairs from ``begin`` to ``end``.

    What is empty of ``grad_x`` and ``grad_tables`` is not computed; of ``grad_tables`` the outputs
    from ``first_output`` to ``end_output`` are. With ``ggx`` the derivative of the layer in the
    direction ``ggx`` is pulled back. ``accumulate`` adds to ``grad_x``.
    """
    batch, num_outputs = grad_y.shape
    block = _new_block(min(block_size, batch), knots)
    slopes = np.empty((min(block_size, batch), 4), knots.dtype)
    if grad_tables.size:
        grad_tables[begin:end, :, :, first_output:end_output] = 0
    for first in range(0, batch, block_size):
        chosen = slice(first, min(first + block_size, batch))
        g = grad_y[chosen]
        for pair in range(begin, end):
            num_groups = _group(x[chosen], pair, begin, knots, ggx[chosen], block)
            if grad_tables.size:
                _add_row_gradients(
                    first_output, end_output, num_groups, block.groups, pair, g, grad_tables
                )
            if grad_x.size:
                slopes[:] = 0
                _add_slopes(0, num_outputs, num_groups, block.groups, pair, g, tables, slopes)
                _finish(pair, block.positions, slopes, ggx[chosen], accumulate, grad_x[chosen])


@_chunked(64, 32, 16, 8, 4, 2, 1)
def _add_row_gradients(width):
    """``grad_tables[p, n] += sum over b of w_n grad_y[b]`` for the corners n of all groups."""

    def walk(first, num_groups, groups, pair, grad_y, grad_tables):
        num_knots, num_outputs = grad_tables.shape[2], grad_tables.shape[3]
        for group in range(num_groups):
            node = pair * num_knots * num_knots + _element(groups.node, group)
            row_00 = node * num_outputs + first
            row_01 = row_00 + num_outputs
            row_10 = row_00 + num_knots * num_outputs
            row_11 = row_10 + num_outputs
            grad_00 = _load(grad_tables, row_00, width)
            grad_01 = _load(grad_tables, row_01, width)
            grad_10 = _load(grad_tables, row_10, width)
            grad_11 = _load(grad_tables, row_11, width)
            for place in range(_element(groups.start, group), _element(groups.start, group + 1)):
                g = _load(grad_y, _element(groups.sample, place) * num_outputs + first, width)
                grad_00 = _multiply_add(_element(groups.weights, 4 * place), g, grad_00)
                grad_01 = _multiply_add(_element(groups.weights, 4 * place + 1), g, grad_01)
                grad_10 = _multiply_add(_element(groups.weights, 4 * place + 2), g, grad_10)
                grad_11 = _multiply_add(_element(groups.weights, 4 * place + 3), g, grad_11)
            _store(grad_tables, row_00, grad_00)
            _store(grad_tables, row_01, grad_01)
            _store(grad_tables, row_10, grad_10)
            _store(grad_tables, row_11, grad_11)

    return walk


@_chunked(128, 64, 32, 16, 8, 4, 2, 1)
def _add_slopes(width):
    """``slopes[b] += (g.D1, g.D2, g.D12, 0)`` for the samples of all groups, ``g = grad_y[b]``.

    The differences of the cell's rows are ``D1 = T[i+1, j] - T[i, j]``,
    ``D2 = T[i, j+1] - T[i, j]`` and ``D12 = T[i+1, j+1] - T[i+1, j] - D2``.
    """

    def walk(first, num_groups, groups, pair, grad_y, tables, slopes):
        num_knots, num_outputs = tables.shape[2], tables.shape[3]
        for group in range(num_groups):
            node = pair * num_knots * num_knots + _element(groups.node, group)
            row = node * num_outputs + first
            row_00 = _load(tables, row, width)
            row_01 = _load(tables, row + num_outputs, width)
            row_10 = _load(tables, row + num_knots * num_outputs, width)
            row_11 = _load(tables, row + (num_knots + 1) * num_outputs, width)
            d_1, d_2 = row_10 - row_00, row_01 - row_00
            d_12 = row_11 - row_10 - d_2
            for place in range(_element(groups.start, group), _element(groups.start, group + 1)):
                b = np.int64(_element(groups.sample, place))
                g = _load(grad_y, b * num_outputs + first, width)
                sums = _load(slopes, 4 * b, 4) + _dot_products(g, d_1, d_2, d_12)
                _store(slopes, 4 * b, sums)

    return walk


@_jit
def _finish(pair, at, slopes, ggx, accumulate, grad_x):
    """Turn the slopes of a block into ``grad_x[b, 2p]`` and ``grad_x[b, 2p + 1]``."""
    is_complete = 2 * pair + 1 < grad_x.shape[1]
    for n in range(grad_x.shape[0]):
        u, v, scale_1, scale_2 = at.u[n], at.v[n], at.scale_1[n], at.scale_2[n]
        slope_12 = slopes[n, 2]
        if ggx.size:
            slope_1 = ggx[n, 2 * pair + 1] * scale_2 * slope_12 if is_complete else 0 * slope_12
            slope_2 = ggx[n, 2 * pair] * scale_1 * slope_12
        else:
            slope_1 = slopes[n, 0] + v * slope_12
            slope_2 = slopes[n, 1] + u * slope_12
        blemish = 0 * u + 0 * v  # NaN for a bad coordinate, which spoils both gradients of its pair
        grad_1, grad_2 = slope_1 * scale_1 + blemish, slope_2 * scale_2 + blemish
        if accumulate:
            grad_1 += grad_x[n, 2 * pair]
            if is_complete:
                grad_2 += grad_x[n, 2 * pair + 1]
        grad_x[n, 2 * pair] = grad_1
        if is_complete:
            grad_x[n, 2 * pair + 1] = grad_2


def penalty_kernel(begin, end, tables, knots, factor, penalties, grad):
    """Roughness of the functions of the pairs from ``begin`` to ``end`` into ``penalties`` [P].

    ``grad`` becomes ``factor`` times the derivative of their sum, unless it is empty.
    """
    step, span = _reciprocals(knots, 1), _reciprocals(knots, 2)
    penalties[begin:end] = 0
    if grad.size:
        grad[begin:end] = 0
    for pair in range(begin, end):
        _add_penalty(0, tables.shape[3], pair, tables, step, span, factor, penalties, grad)


@_chunked(16, 4, 1)
def _add_penalty(width):
    """Add ``mean of f_xx^2 + 2 f_xy^2 + f_yy^2`` over the inner knots, summed over the outputs.

    ``step`` holds ``1 / (k_{i+1} - k_i)``, ``span`` holds ``1 / (k_{i+2} - k_i)``.
    """

    def walk(first, pair, tables, step, span, factor, penalties, grad):
        num_knots, num_outputs = tables.shape[2], tables.shape[3]
        num_inner = (num_knots - 2) ** 2
        # From the row of knot (i, j) to those of (i + 1, j) and (i, j + 1).
        down, right = num_knots * num_outputs, num_outputs
        total = _to_float64(_zeros(step, width))
        for i in range(1, num_knots - 1):
            for j in range(1, num_knots - 1):
                row = ((pair * num_knots + i) * num_knots + j) * num_outputs + first
                f = _load(tables, row, width)

                ahead = step[i] * (_load(tables, row + down, width) - f)
                behind = step[i - 1] * (f - _load(tables, row - down, width))
                f_xx = 2 * span[i - 1] * (ahead - behind)

                ahead = step[j] * (_load(tables, row + right, width) - f)
                behind = step[j - 1] * (f - _load(tables, row - right, width))
                f_yy = 2 * span[j - 1] * (ahead - behind)

                ahead = _load(tables, row + down + right, width)
                behind = _load(tables, row - down + right, width)
                ahead = ahead - _load(tables, row + down - right, width)
                behind = behind - _load(tables, row - down - right, width)
                f_xy = span[i - 1] * span[j - 1] * (ahead - behind)

                squares = _multiply_add(f_xx, f_xx, _multiply_add(f_yy, f_yy, 2 * f_xy * f_xy))
                total = total + _to_float64(squares)
                if grad.size:
                    c_xx = 4 * factor / num_inner * span[i - 1]
                    add(grad, row + down, c_xx * step[i], f_xx)
                    add(grad, row, -c_xx * (step[i] + step[i - 1]), f_xx)
                    add(grad, row - down, c_xx * step[i - 1], f_xx)

                    c_yy = 4 * factor / num_inner * span[j - 1]
                    add(grad, row + right, c_yy * step[j], f_yy)
                    add(grad, row, -c_yy * (step[j] + step[j - 1]), f_yy)
                    add(grad, row - right, c_yy * step[j - 1], f_yy)

                    c_xy = 4 * factor / num_inner * span[i - 1] * span[j - 1]
                    add(grad, row + down + right, c_xy, f_xy)
                    add(grad, row + down - right, -c_xy, f_xy)
                    add(grad, row - down + right, -c_xy, f_xy)
                    add(grad, row - down - right, c_xy, f_xy)
        penalties[pair] += _total(total) / num_inner

    @_jit
    def add(grad, row, coefficient, vector):
        _store(grad, row, _multiply_add(coefficient, vector, _load(grad, row, width)))

    return walk
