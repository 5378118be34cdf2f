# mypy: ignore-errors
"""What depends on the dimension d of a layer for the CPU kernels: the 2^d corners of a cell.

Tables ``[P, S, ..., S, O]`` tell d by the number of their axes, so the compiler knows it, and all
loops over axes and corners are written out. Corner k of a cell is the upper knot along axis a where
bit ``d - 1 - a`` of k is set, else the lower one: for d = 2 the corners 0 to 3 are (i, j),
(i, j+1), (i+1, j), (i+1, j+1).

Inside a cell a function is ``sum over m of c_m prod u_a``, where u are the positions, and the
product is over the axes a whose bit a of m is set. Its *coefficients* are c_1, c_2, ...: for d = 2
those of u, of v and of u v. The constant c_0 is not needed for derivatives.

Compiled by Numba, whose types are not Python's, so this is not type-checked.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from .vectors import (
    INTP,
    Vector,
    as_vector,
    concatenated,
    element_of,
    fold,
    fused,
    lanes_of,
    loaded,
    vector_of,
    write,
)


@register_jitable
def dimension_of(tables: Any) -> int:
    """Return d."""
    return tables.ndim - 2


@register_jitable
def num_nodes(tables: Any) -> int:
    """Return the number of nodes of a table, S^d."""
    return tables.shape[1] ** (tables.ndim - 2)


@intrinsic(prefer_literal=True)
def tables_shape(typing_context, in_features, num_knots, out_features, dimension):
    """The shape [P, S, ..., S, O] of tables of a dimension."""
    d = dimension.literal_value
    shape = types.UniTuple(types.intp, d + 2)

    def generate(context, builder, signature, arguments):
        features, knots, outputs, _ = arguments
        pairs = builder.sdiv(builder.add(features, INTP(d - 1)), INTP(d))
        return context.make_tuple(builder, shape, [pairs, *[knots] * d, outputs])

    return shape(types.intp, types.intp, types.intp, dimension), generate


def _unpacked(builder, values):
    return cgutils.unpack_tuple(builder, values, values.type.count)


def _tuple_of(dtype, tables, count=None):
    """The type of d numbers or vectors, or of ``count``."""
    return types.UniTuple(dtype, tables.ndim - 2 if count is None else count)


# --- Coordinates, positions and weights -----------------------------------------------------------


@intrinsic
def column(typing_context, array, n, tables):
    """The d numbers ``array[a, n]``, one for each axis."""
    numbers = _tuple_of(array.dtype, tables)

    def generate(context, builder, signature, arguments):
        value, n, _ = arguments
        length = builder.extract_value(context.make_array(array)(context, builder, value).shape, 1)
        places = [builder.add(builder.mul(INTP(a), length), n) for a in range(numbers.count)]
        each = [element_of(context, builder, array, value, place) for place in places]
        return context.make_tuple(builder, numbers, each)

    return numbers(array, types.intp, tables), generate


@intrinsic(prefer_literal=True)
def load_points(typing_context, array, index, count, tables):
    """A vector of the d coordinates of each of ``count`` points, from point ``index`` on."""
    dimension = tables.ndim - 2
    vector = Vector(array.dtype, dimension * count.literal_value)

    def generate(context, builder, signature, arguments):
        value, index, *_ = arguments
        first = builder.mul(index, INTP(dimension))
        return loaded(context, builder, array, value, first, vector)

    return vector(array, types.intp, count, tables), generate


@intrinsic(prefer_literal=True)
def load_each(typing_context, array, starts, index, width):
    """For each of some starts a vector of ``width`` elements, from ``index`` after it on."""
    vector = vector_of(array, width)
    vectors = types.UniTuple(vector, starts.count)

    def generate(context, builder, signature, arguments):
        value, starts, index, _ = arguments
        places = [builder.add(start, index) for start in _unpacked(builder, starts)]
        each = [loaded(context, builder, array, value, place, vector) for place in places]
        return context.make_tuple(builder, vectors, each)

    return vectors(array, starts, types.intp, width), generate


@intrinsic
def by_axis(typing_context, points, tables):
    """The d vectors of the coordinates along each axis, of a vector of points."""
    dimension = tables.ndim - 2
    each = _tuple_of(Vector(points.dtype, points.width // dimension), tables)

    def generate(context, builder, signature, arguments):
        lanes = [list(range(axis, points.width, dimension)) for axis in range(dimension)]
        vectors = [lanes_of(builder, arguments[0], some) for some in lanes]
        return context.make_tuple(builder, each, vectors)

    return each(points, tables), generate


@intrinsic
def products(typing_context, first, second):
    """The products of vectors, one by one."""

    def generate(context, builder, signature, arguments):
        pairs = zip(*(_unpacked(builder, each) for each in arguments), strict=True)
        return context.make_tuple(builder, first, [builder.fmul(*pair) for pair in pairs])

    return first(first, second), generate


@intrinsic
def node_of(typing_context, knots, num_knots):
    """The numbers of nodes, e.g. i S + j, for vectors of their knots along each axis."""
    vector = knots.dtype

    def generate(context, builder, signature, arguments):
        first, *rest = _unpacked(builder, arguments[0])
        count = as_vector(builder, arguments[1], first.type)
        for following in rest:
            first = builder.add(builder.mul(count, first), following)
        return first

    return vector(knots, vector.dtype), generate


def _one(llvm_type):
    count = getattr(llvm_type, "count", None)
    return ir.Constant(llvm_type, 1.0 if count is None else [1.0] * count)


def _weights(builder, position):
    """The weights of the corners at a position in a cell, each a product of d numbers."""
    weights = None
    for upper in reversed(position):
        lower = builder.fsub(_one(upper.type), upper)
        if weights is None:
            weights = [lower, upper]
        else:
            weights = [builder.fmul(side, each) for side in (lower, upper) for each in weights]
    return weights


def _weight_slopes(builder, position, direction):
    """The derivatives of these weights in a direction."""
    (upper, *rest), (along, *rest_along) = position, direction
    if not rest:
        return [builder.fneg(along), along]
    lower = builder.fsub(_one(upper.type), upper)
    weights, slopes = _weights(builder, rest), _weight_slopes(builder, rest, rest_along)
    results = []
    for side, change in ((lower, builder.fneg(along)), (upper, along)):
        for weight, slope in zip(weights, slopes, strict=True):
            results.append(builder.fadd(builder.fmul(side, slope), builder.fmul(change, weight)))
    return results


@intrinsic
def corner_weights(typing_context, position):
    """The weights of the 2^d corners at a position in a cell: d numbers or vectors."""
    weights = types.UniTuple(position.dtype, 2**position.count)

    def generate(context, builder, signature, arguments):
        each = _weights(builder, _unpacked(builder, arguments[0]))
        return context.make_tuple(builder, weights, each)

    return weights(position), generate


@intrinsic
def corner_weight_slopes(typing_context, position, direction):
    """The derivatives of these weights in a direction, in units of the cell's widths."""
    slopes = types.UniTuple(position.dtype, 2**position.count)

    def generate(context, builder, signature, arguments):
        each = _weight_slopes(builder, *(_unpacked(builder, value) for value in arguments))
        return context.make_tuple(builder, slopes, each)

    return slopes(position, direction), generate


@intrinsic
def scatter(typing_context, array, index, step, values):
    """Write numbers or vectors into an array at ``index``, ``index + step``, ..."""

    def generate(context, builder, signature, arguments):
        target, index, step, packed = arguments
        for value in _unpacked(builder, packed):
            write(context, builder, array, target, index, value)
            index = builder.add(index, step)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, values), generate


# --- The table rows of a cell ---------------------------------------------------------------------


def _places(context, builder, tables, array, row):
    """Where the 2^d rows of a cell begin, the first of them at ``row``."""
    shape = context.make_array(tables)(context, builder, array).shape
    num_knots = builder.extract_value(shape, 1)
    steps = [builder.extract_value(shape, tables.ndim - 1)]
    for _ in range(tables.ndim - 3):
        steps.append(builder.mul(steps[-1], num_knots))
    places = [row]
    for step in reversed(steps):
        places = [each for place in places for each in (place, builder.add(place, step))]
    return places


@intrinsic(prefer_literal=True)
def load_corners(typing_context, tables, row, width):
    """The vectors of ``width`` outputs at the corners of the cell whose first is at ``row``."""
    vector = vector_of(tables, width)
    corners = _tuple_of(vector, tables, 2 ** (tables.ndim - 2))

    def generate(context, builder, signature, arguments):
        array, row, _ = arguments
        places = _places(context, builder, tables, array, row)
        rows = [loaded(context, builder, tables, array, place, vector) for place in places]
        return context.make_tuple(builder, corners, rows)

    return corners(tables, types.intp, width), generate


@intrinsic
def add_corners(typing_context, y, weights, place, corners):
    """``y`` plus the corners, weighted by the ``weights [N, 2^d]`` at a place, one by one."""

    def generate(context, builder, signature, arguments):
        y, array, place, rows = arguments
        first = builder.mul(place, INTP(corners.count))
        for k, row in enumerate(_unpacked(builder, rows)):
            weight = element_of(context, builder, weights, array, builder.add(first, INTP(k)))
            y = fused(builder, as_vector(builder, weight, y.type), row, y)
        return y

    return y(y, weights, types.intp, corners), generate


@intrinsic(prefer_literal=True)
def gather_corners(
    typing_context, sums, samples, first, sample_step, cells, weights, room, tables, row
):
    """Each sample's sum plus the weighted corners of its cell for one pair, one by one.

    The cell is ``cells[first + sample sample_step]``; its weights are at the same place and at
    multiples of ``room``, a constant, after it. The table row of cell 0 begins at ``row``.
    """
    vector, step = sums.dtype, room.literal_value

    def generate(context, builder, signature, arguments):
        each, numbers, first, sample_step, cell_array, weight_array, _, table, row = arguments
        shape = context.make_array(tables)(context, builder, table).shape
        num_outputs = builder.extract_value(shape, tables.ndim - 1)
        results = []
        for number, y in zip(*(_unpacked(builder, some) for some in (numbers, each)), strict=True):
            place = builder.add(builder.mul(number, sample_step), first)
            cell = builder.zext(element_of(context, builder, cells, cell_array, place), INTP)
            corner = builder.add(row, builder.mul(cell, num_outputs))
            for k, start in enumerate(_places(context, builder, tables, table, corner)):
                weight_place = builder.add(place, INTP(k * step))
                weight = element_of(context, builder, weights, weight_array, weight_place)
                chunk = loaded(context, builder, tables, table, start, vector)
                y = fused(builder, as_vector(builder, weight, y.type), chunk, y)
            results.append(y)
        return context.make_tuple(builder, sums, results)

    index = types.intp
    signature = sums(sums, samples, index, index, cells, weights, room, tables, index)
    return signature, generate


# --- Gradients ------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def no_sums(typing_context, tables, width):
    """Zeros for the corners of a cell."""
    vector = vector_of(tables, width)
    sums = _tuple_of(vector, tables, 2 ** (tables.ndim - 2))

    def generate(context, builder, signature, arguments):
        zero = ir.Constant(context.get_value_type(vector), None)
        return context.make_tuple(builder, sums, [zero] * sums.count)

    return sums(tables, width), generate


@intrinsic
def add_products(typing_context, sums, weights, place, vector):
    """The sums of the corners plus a vector times the ``weights [N, 2^d]`` at a place."""

    def generate(context, builder, signature, arguments):
        before, array, place, factor = arguments
        first = builder.mul(place, INTP(sums.count))
        after = []
        for k, total in enumerate(_unpacked(builder, before)):
            weight = element_of(context, builder, weights, array, builder.add(first, INTP(k)))
            after.append(fused(builder, as_vector(builder, weight, total.type), factor, total))
        return context.make_tuple(builder, sums, after)

    return sums(sums, weights, types.intp, vector), generate


@intrinsic
def add_to_rows(typing_context, grad_tables, row, sums):
    """Add the sums of the corners to the rows of the cell whose first is at ``row``."""

    def generate(context, builder, signature, arguments):
        array, row, totals = arguments
        places = _places(context, builder, grad_tables, array, row)
        for place, total in zip(places, _unpacked(builder, totals), strict=True):
            before = loaded(context, builder, grad_tables, array, place, sums.dtype)
            after = builder.fadd(before, total)
            write(context, builder, grad_tables, array, place, after)
        return context.get_dummy_value()

    return types.void(grad_tables, types.intp, sums), generate


@intrinsic
def coefficients_of(typing_context, corners):
    """The coefficients of the functions with these values at the corners of a cell."""
    coefficients = types.UniTuple(corners.dtype, corners.count - 1)

    def generate(context, builder, signature, arguments):
        values = _unpacked(builder, arguments[0])
        axes = range(corners.count.bit_length() - 1)
        for bit in axes:
            for k in range(corners.count):
                if k >> bit & 1:
                    values[k] = builder.fsub(values[k], values[k - (1 << bit)])
        numbers = [
            sum(1 << bit for bit, axis in zip(axes, reversed(axes), strict=True) if m >> axis & 1)
            for m in range(1, corners.count)
        ]
        return context.make_tuple(builder, coefficients, [values[k] for k in numbers])

    return coefficients(corners), generate


@intrinsic
def dot_products(typing_context, a, others):
    """The vector of ``a.b`` for all others b, then a 0.

    Sums that are folded together cost little more than one.
    """
    result = Vector(a.dtype, others.count + 1)
    pieces = [range(k, min(k + 16, a.width)) for k in range(0, a.width, 16)]

    def generate(context, builder, signature, arguments):
        def dot_product(other):
            total = None
            for piece in pieces:
                factors = [
                    lanes_of(builder, vector, list(piece)) for vector in (arguments[0], other)
                ]
                is_first = total is None
                total = builder.fmul(*factors) if is_first else fused(builder, *factors, total)
            return total

        sums = [dot_product(other) for other in _unpacked(builder, arguments[1])]
        sums.append(ir.Constant(sums[0].type, None))
        return fold(builder, concatenated(builder, sums), result.width)

    return result(a, others), generate


@intrinsic
def coefficients_at(typing_context, array, n, tables):
    """All of the 2^d numbers ``array[n]`` but the last, the coefficients of a function."""
    numbers = _tuple_of(array.dtype, tables, 2 ** (tables.ndim - 2) - 1)

    def generate(context, builder, signature, arguments):
        value, n, _ = arguments
        first = builder.mul(n, INTP(numbers.count + 1))
        places = [builder.add(first, INTP(k)) for k in range(numbers.count)]
        each = [element_of(context, builder, array, value, place) for place in places]
        return context.make_tuple(builder, numbers, each)

    return numbers(array, types.intp, tables), generate


def _derivative(builder, coefficients, position, axes):
    """The derivative along some axes, each once, at a position."""
    values = [ir.Constant(position[0].type, None), *coefficients]  # a constant has no derivative
    for axis, u in reversed([*enumerate(position)]):
        pairs = zip(values[: 1 << axis], values[1 << axis : 2 << axis], strict=True)
        if axis in axes:
            values = [upper for _, upper in pairs]
        else:
            values = [builder.fadd(lower, builder.fmul(u, upper)) for lower, upper in pairs]
    return values[0]


@intrinsic
def partial_derivatives(typing_context, coefficients, position):
    """The derivatives along all axes at a position, in units of the cell's widths."""

    def generate(context, builder, signature, arguments):
        values = [_unpacked(builder, each) for each in arguments]
        partials = [_derivative(builder, *values, {axis}) for axis in range(position.count)]
        return context.make_tuple(builder, position, partials)

    return position(coefficients, position), generate


@intrinsic
def partial_slopes(typing_context, coefficients, position, direction):
    """The derivatives of these in a direction; the second ones along one axis are 0."""

    def generate(context, builder, signature, arguments):
        values, u, along = [_unpacked(builder, each) for each in arguments]
        results = []
        for axis in range(position.count):
            total = ir.Constant(u[axis].type, None)
            terms = [
                builder.fmul(along[other], _derivative(builder, values, u, {axis, other}))
                for other in range(position.count)
                if other != axis
            ]
            for k, term in enumerate(terms):
                total = builder.fadd(total, term) if k else term
            results.append(total)
        return context.make_tuple(builder, position, results)

    return position(coefficients, position, direction), generate
