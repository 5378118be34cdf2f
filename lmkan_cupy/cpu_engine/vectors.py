# mypy: ignore-errors
"""Vectors of numbers in registers for the CPU kernels, and walking a row of outputs in vectors.

Compiled by Numba, whose types are not Python's, so this is not type-checked.
"""

import operator
from collections.abc import Callable
from inspect import signature
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_jitable, register_model

# --- Vectors: a chunk of a table row in registers -------------------------------------------------

_INT32 = ir.IntType(32)
INTP = ir.IntType(types.intp.bitwidth)
_LLVM_TYPES = {types.uint32: _INT32, types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class Vector(types.Type):
    """Numba type of ``width`` numbers in registers; LLVM spreads them over what the CPU has."""

    def __init__(self, dtype: Any, width: int) -> None:
        self.dtype = dtype
        self.width = width
        super().__init__(name=f"Vector({dtype}, {width})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, vector: Vector) -> None:
        llvm_type = ir.VectorType(_LLVM_TYPES[vector.dtype], vector.width)
        super().__init__(manager, vector, llvm_type)


def lanes_of(builder, vector, numbers):
    """The LLVM vector of the numbered lanes of a vector."""
    mask = ir.Constant(ir.VectorType(_INT32, len(numbers)), numbers)
    return builder.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), mask)


def as_vector(builder, value, llvm_type):
    """A vector as it is, a scalar in all lanes of a vector of ``llvm_type``."""
    if value.type == llvm_type:
        return value
    one_lane = builder.insert_element(ir.Constant(llvm_type, ir.Undefined), value, _INT32(0))
    return lanes_of(builder, one_lane, [0] * llvm_type.count)


def _pointer(context, builder, array_type, array, index, llvm_type):
    """Address of element ``index`` of a C-contiguous array, counted over all its axes."""
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), llvm_type.as_pointer())


def element_of(context, builder, array_type, array, index):
    """The scalar at element ``index`` of a C-contiguous array, counted over all its axes."""
    llvm_type = context.get_value_type(array_type.dtype)
    return builder.load(_pointer(context, builder, array_type, array, index, llvm_type))


def _half_to_float(context, builder, bits, llvm_type):
    """Numbers of float16, given as 16-bit words, in float32."""
    if _converts_halves(context):
        halves = builder.bitcast(bits, ir.VectorType(ir.HalfType(), llvm_type.count))
        return builder.fpext(halves, llvm_type)
    return _half_to_float_by_integers(builder, bits, llvm_type)


def _converts_halves(context):
    """Tell whether the processor has an instruction that converts float16 to float32."""
    return _is_arm(context) or _has(context, "+f16c")


def _is_arm(context):
    return context.codegen().magic_tuple()[0].startswith(("aarch64", "arm64"))


def _has(context, feature):
    """Tell whether the processor has a feature of x86, by LLVM's name."""
    return feature in context.codegen().magic_tuple()[2].split(",")


def _half_to_float_by_integers(builder, bits, llvm_type):
    """Numbers of float16, given as 16-bit words, converted exactly by ordinary instructions.

    Their bits, shifted into the fields of float32, mean numbers that are too small by a factor of
    2^112. Multiplying by it corrects all but infinity and NaN, whose exponent is all ones.
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


def _stored_type(array, vector, llvm_type):
    return ir.VectorType(ir.IntType(16), vector.width) if _is_half(array) else llvm_type


def _is_half(array):
    return array.dtype == types.uint16


def loaded(context, builder, array_type, array, index, vector):
    """The vector of an array's elements from ``index`` on; 16-bit words are float16 numbers."""
    llvm_type = context.get_value_type(vector)
    stored_type = _stored_type(array_type, vector, llvm_type)
    pointer = _pointer(context, builder, array_type, array, index, stored_type)
    # A row starts at any element: only the alignment of one element can be promised.
    stored = builder.load(pointer, align=array_type.dtype.bitwidth // 8)
    return _half_to_float(context, builder, stored, llvm_type) if _is_half(array_type) else stored


def write(context, builder, array_type, array, index, value):
    """Write a vector or a number into an array from element ``index`` on."""
    pointer = _pointer(context, builder, array_type, array, index, value.type)
    builder.store(value, pointer, align=array_type.dtype.bitwidth // 8)


def vector_of(array, width):
    """The type of ``width`` elements of an array; 16-bit words are float16 numbers."""
    return Vector(types.float32 if _is_half(array) else array.dtype, width.literal_value)


@intrinsic(prefer_literal=True)
def load(typing_context, array, index, width):
    """``width`` elements of an array from ``index`` on; 16-bit words are float16 numbers."""
    vector = vector_of(array, width)

    def generate(context, builder, signature, arguments):
        return loaded(context, builder, array, *arguments[:2], vector)

    return vector(array, types.intp, width), generate


# --- Vectors of several samples at once, so that a sum need not wait for the one before it --------


@intrinsic(prefer_literal=True)
def samples_from(typing_context, first, last, count):
    """The numbers of ``count`` samples from ``first`` on; those after ``last`` are ``last``."""
    samples = types.UniTuple(types.intp, count.literal_value)

    def generate(context, builder, signature, arguments):
        first, last, _ = arguments
        numbers = []
        for k in range(samples.count):
            number = builder.add(first, INTP(k))
            is_there = builder.icmp_signed("<", number, last)
            numbers.append(builder.select(is_there, number, last))
        return context.make_tuple(builder, samples, numbers)

    return samples(types.intp, types.intp, count), generate


@intrinsic(prefer_literal=True)
def load_samples(typing_context, rows, samples, first, length, width):
    """A vector from each sample's row of ``length`` elements, from element ``first`` on."""
    vector = vector_of(rows, width)
    vectors = types.UniTuple(vector, samples.count)

    def generate(context, builder, signature, arguments):
        array, numbers, first, length, _ = arguments
        places = [
            builder.add(builder.mul(number, length), first)
            for number in cgutils.unpack_tuple(builder, numbers, samples.count)
        ]
        each = [loaded(context, builder, rows, array, place, vector) for place in places]
        return context.make_tuple(builder, vectors, each)

    return vectors(rows, samples, types.intp, types.intp, width), generate


@intrinsic
def store_samples(typing_context, rows, samples, first, length, vectors):
    """Write each sample's vector to where :func:`load_samples` finds it."""

    def generate(context, builder, signature, arguments):
        array, numbers, first, length, each = arguments
        numbers = cgutils.unpack_tuple(builder, numbers, samples.count)
        each = cgutils.unpack_tuple(builder, each, samples.count)
        for number, vector in zip(numbers, each, strict=True):
            place = builder.add(builder.mul(number, length), first)
            write(context, builder, rows, array, place, vector)
        return context.get_dummy_value()

    return types.void(rows, samples, types.intp, types.intp, vectors), generate


@intrinsic
def store(typing_context, array, index, vector):
    """Write a vector into an array from element ``index`` on."""

    def generate(context, builder, signature, arguments):
        write(context, builder, array, *arguments)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), generate


@intrinsic
def element(typing_context, array, index):
    """Element ``index`` of an array counted over all its axes; no index is negative."""

    def generate(context, builder, signature, arguments):
        return element_of(context, builder, array, *arguments)

    return array.dtype(array, types.intp), generate


@intrinsic(prefer_literal=True)
def spread(typing_context, value, width):
    """A vector of ``width`` times the same number."""
    vector = Vector(value, width.literal_value)

    def generate(context, builder, signature, arguments):
        return as_vector(builder, arguments[0], context.get_value_type(vector))

    return vector(value, width), generate


@intrinsic
def no_count(typing_context, vector):
    """A vector of as many whole numbers as another has lanes, all 0."""
    counts = Vector(types.uint32, vector.width)

    def generate(context, builder, signature, arguments):
        return ir.Constant(context.get_value_type(counts), None)

    return counts(vector), generate


@intrinsic
def load_like(typing_context, array, index, vector):
    """As many elements of an array as a vector has, from ``index`` on."""

    def generate(context, builder, signature, arguments):
        return loaded(context, builder, array, *arguments[:2], vector)

    return vector(array, types.intp, vector), generate


@intrinsic
def multiply_add(typing_context, a, b, c):
    """``a b + c``, fused where the processor can: ``a`` a vector or a scalar, ``b, c`` vectors.

    Fusing is asked for here and nowhere else, so that all samples get the same rounding.
    """

    def generate(context, builder, signature, arguments):
        llvm_type = context.get_value_type(c)
        operands = [as_vector(builder, value, llvm_type) for value in arguments]
        return fused(builder, *operands)

    return c(a if isinstance(a, Vector) else c.dtype, b, c), generate


def fused(builder, a, b, c):
    """``a b + c`` of vectors, see :func:`multiply_add`."""
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
            operands = [as_vector(builder, value, llvm_type) for value in arguments]
            is_float = isinstance(b.dtype, types.Float)
            return getattr(builder, "f" * is_float + instruction)(*operands)

        return b(a if isinstance(a, Vector) else b.dtype, b), generate

    @overload(symbol)
    def overloaded(a, b):
        if isinstance(b, Vector):
            return lambda a, b: combine(a, b)
        return None


_elementwise(operator.add, "add")
_elementwise(operator.sub, "sub")
_elementwise(operator.mul, "mul")


@intrinsic
def count_reached(typing_context, x, bound, counts):
    """In every lane one more than ``counts`` where ``x >= bound``, a vector or a scalar."""

    def generate(context, builder, signature, arguments):
        x, bound, counts = arguments
        is_reached = builder.fcmp_ordered(">=", x, as_vector(builder, bound, x.type))
        return builder.sub(counts, builder.sext(is_reached, counts.type))  # true is -1

    return counts(x, bound if isinstance(bound, Vector) else x.dtype, counts), generate


@intrinsic
def whole_part(typing_context, x, most):
    """The whole parts of a vector, from 0 to ``most``; that of a NaN is 0."""
    counts = Vector(types.uint32, x.width)

    def generate(context, builder, signature, arguments):
        x, most = arguments
        zero, most = ir.Constant(x.type, None), as_vector(builder, most, x.type)
        x = builder.select(builder.fcmp_ordered(">", x, zero), x, zero)
        x = builder.select(builder.fcmp_ordered("<", x, most), x, most)
        return builder.fptosi(x, context.get_value_type(counts))

    return counts(x, x.dtype), generate


@intrinsic
def cut(typing_context, x, bound):
    """The vector, cut at ``+-bound``; a NaN passes."""

    def generate(context, builder, signature, arguments):
        x, bound = arguments
        for sign, limit in (">", bound), ("<", builder.fneg(bound)):
            limit = as_vector(builder, limit, x.type)
            x = builder.select(builder.fcmp_ordered(sign, x, limit), limit, x)
        return x

    return x(x, x.dtype), generate


#: How many numbers one instruction of x86 picks from.
_PERMUTED = 8


@register_jitable
def table_length(count: int) -> int:
    """The length of a row of ``count`` numbers that :func:`look_up` takes: whole vectors."""
    return -(-count // _PERMUTED) * _PERMUTED


@intrinsic
def look_up(typing_context, table, row, index):
    """In every lane ``table[row, index]``; a short row has a length of :func:`table_length`."""
    vector = Vector(table.dtype, index.width)

    def generate(context, builder, signature, arguments):
        if not (table.dtype == types.float32 and _has(context, "+avx2")):
            return _picked(context, builder, table, *arguments)
        array, row, index = arguments
        first, length = _row_of(context, builder, table, array, row)
        llvm_type = context.get_value_type(vector)
        values = cgutils.alloca_once_value(builder, ir.Constant(llvm_type, ir.Undefined))
        some = Vector(table.dtype, _PERMUTED)
        with cgutils.for_range_slice(builder, INTP(0), length, INTP(_PERMUTED)) as (start, _):
            numbers = loaded(context, builder, table, array, builder.add(first, start), some)
            start = as_vector(builder, builder.trunc(start, _INT32), index.type)
            is_here = builder.icmp_unsigned(">=", index, start)
            chosen = _permuted(builder, numbers, index)
            builder.store(builder.select(is_here, chosen, builder.load(values)), values)
        return builder.load(values)

    return vector(table, types.intp, index), generate


@intrinsic
def pick(typing_context, table, row, index):
    """In every lane ``table[row, index]``, for a long row."""
    vector = Vector(table.dtype, index.width)

    def generate(context, builder, signature, arguments):
        return _picked(context, builder, table, *arguments)

    return vector(table, types.intp, index), generate


def _row_of(context, builder, table, array, row):
    """Where a row begins, and its length."""
    shape = context.make_array(table)(context, builder, array).shape
    length = builder.extract_value(shape, 1)
    return builder.mul(row, length), length


def _picked(context, builder, table, array, row, index):
    first, _ = _row_of(context, builder, table, array, row)
    llvm_type = ir.VectorType(_LLVM_TYPES[table.dtype], index.type.count)
    values = ir.Constant(llvm_type, ir.Undefined)
    for k in map(_INT32, range(index.type.count)):
        lane = builder.zext(builder.extract_element(index, k), INTP)
        value = element_of(context, builder, table, array, builder.add(first, lane))
        values = builder.insert_element(values, value, k)
    return values


def _permuted(builder, numbers, index):
    """In every lane the number that the last bits of its index tell, by AVX2."""
    eight, words = numbers.type, ir.VectorType(_INT32, _PERMUTED)
    name, function_type = "llvm.x86.avx2.permps", ir.FunctionType(eight, [eight, words])
    function = builder.module.globals.get(name) or ir.Function(builder.module, function_type, name)
    starts = range(0, index.type.count, _PERMUTED)
    parts = [
        builder.call(function, [numbers, lanes_of(builder, index, [*range(k, k + _PERMUTED)])])
        for k in starts
    ]
    return concatenated(builder, parts)


def concatenated(builder, vectors):
    """The lanes of equally long vectors, as many as a power of two, one after the other."""
    while len(vectors) > 1:
        count = 2 * vectors[0].type.count
        mask = ir.Constant(ir.VectorType(_INT32, count), list(range(count)))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [builder.shuffle_vector(*pair, mask) for pair in pairs]
    return vectors[0]


def fold(builder, vector, groups):
    """Add up the lanes of each of ``groups`` equal parts of a vector, by halves."""
    while vector.type.count > groups:
        size = vector.type.count // groups
        starts = range(0, vector.type.count, size)
        halves = [
            lanes_of(builder, vector, [s + k for s in starts for k in range(h, h + size // 2)])
            for h in (0, size // 2)
        ]
        vector = builder.fadd(*halves)
    return vector


@intrinsic
def lane_sum(typing_context, vector):
    """The sum of a vector, a scalar."""

    def generate(context, builder, signature, arguments):
        return builder.extract_element(fold(builder, arguments[0], 1), _INT32(0))

    return vector.dtype(vector), generate


@intrinsic
def to_float64(typing_context, vector):
    """A vector in float64."""
    result = Vector(types.float64, vector.width)

    def generate(context, builder, signature, arguments):
        if vector == result:
            return arguments[0]
        return builder.fpext(arguments[0], context.get_value_type(result))

    return result(vector), generate


# --- Walking a row of outputs chunk by chunk ------------------------------------------------------

_OPTIONS = {"nogil": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
jit = numba.njit(**_OPTIONS)

#: For small functions of vectors, which would go through memory to and from a called function.
inlined = numba.njit(**_OPTIONS, forceinline=True)


def chunked(*widths: int) -> Callable[[Callable[[int], Any]], Any]:
    """Turn a walk over one chunk of outputs into a walk over all outputs.

    Decorates ``make(width)``, which gives ``walk(first, *arguments)`` for ``width`` outputs from
    ``first`` on. The result is called as ``walk(0, num_outputs, *arguments)``: as many chunks of
    the first of ``widths`` as fit, then of the next one, down to 1.
    """

    def decorate(make):
        # Written out, as Numba cannot loop over functions. If each loop called the next one, that
        # would be compiled again as a part of it.
        walks = {width: make(width) for width in widths}
        _, *others = signature(walks[1]).parameters
        arguments = ", ".join(others)
        lines = [f"def walk(first, num_outputs, {arguments}):"]
        for width in widths:
            lines += [
                f"    while first + {width} <= num_outputs:",
                f"        walk_{width}(first, {arguments})",
                f"        first += {width}",
            ]
        names = {"__name__": __name__} | {f"walk_{n}": jit(walk) for n, walk in walks.items()}
        exec("\n".join(lines), names)
        return jit(names["walk"])

    return decorate
