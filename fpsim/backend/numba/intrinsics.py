"""Instructions that kernels need and Numba lacks."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.npydecl import parse_dtype
from numba.extending import intrinsic
from numba.np.arrayobj import _empty_nd_impl, populate_array


def _same_width(instruction: str) -> Any:
    """An integer instruction at the width of its operands: Numba's own operators widen int32 to int64."""

    def operation(typing_context: Any, left: Any, right: Any) -> Any:
        if not isinstance(left, types.Integer) or left != right:
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return left(left, right), generate

    operation.__name__ = instruction
    return intrinsic(operation)


int_add = _same_width("add")
int_sub = _same_width("sub")
int_mul = _same_width("mul")
int_and = _same_width("and_")
int_or = _same_width("or_")
int_xor = _same_width("xor")
shift_left = _same_width("shl")
shift_right = _same_width("lshr")


@intrinsic
def shift_down(typing_context: Any, value: Any, count: Any) -> Any:
    """value >> count at its own width, with copies of the sign bit where the type is signed."""
    if not isinstance(value, types.Integer) or value != count:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return (builder.ashr if value.signed else builder.lshr)(*arguments)

    return value(value, count), generate


@intrinsic
def convert_like(typing_context: Any, value: Any, like: Any) -> Any:
    """A float truncated, or an integer of the same width reinterpreted, to the integer type of `like`."""
    if not isinstance(like, types.Integer):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if isinstance(value, types.Integer):
            return arguments[0]
        return (builder.fptosi if like.signed else builder.fptoui)(arguments[0], context.get_value_type(like))

    return like(value, like), generate


def _of_two_integers(name: str, comparison: str) -> Any:
    """The one of two integers that compares so; Numba's own `min` and `max` are compiled for each pair of types anew."""

    def operation(typing_context: Any, left: Any, right: Any) -> Any:
        if not isinstance(left, types.Integer) or not isinstance(right, types.Integer):
            return None
        result = typing_context.unify_types(left, right)
        if not isinstance(result, types.Integer):  # of int64 and uint64
            return None

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            pairs = zip(arguments, signature.args, strict=True)
            one, other = (context.cast(builder, value, argument, result) for value, argument in pairs)
            compare = builder.icmp_signed if result.signed else builder.icmp_unsigned
            return builder.select(compare(comparison, one, other), one, other)

        return result(left, right), generate

    operation.__name__ = name
    return intrinsic(operation)


int_min = _of_two_integers("int_min", "<")
int_max = _of_two_integers("int_max", ">")


def _new_array(name: str, fill: bool) -> Any:
    """A C-contiguous array of a size, or a shape, and a dtype; `numpy.empty` and `numpy.zeros` are compiled for each anew."""

    def operation(typing_context: Any, shape: Any, dtype: Any) -> Any:
        is_tuple = isinstance(shape, types.UniTuple)
        if not isinstance(shape.dtype if is_tuple else shape, types.Integer):
            return None
        result = types.Array(parse_dtype(dtype), shape.count if is_tuple else 1, "C")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            argument = signature.args[0]
            sizes = cgutils.unpack_tuple(builder, arguments[0]) if is_tuple else [arguments[0]]
            kind = argument.dtype if is_tuple else argument
            array = _empty_nd_impl(context, builder, result, [context.cast(builder, size, kind, types.intp) for size in sizes])
            if fill:
                cgutils.memset(builder, array.data, builder.mul(array.itemsize, array.nitems), 0)
            return array._getvalue()

        return result(shape, dtype), generate

    operation.__name__ = name
    return intrinsic(operation)


uninitialized = _new_array("uninitialized", fill=False)
zeroed = _new_array("zeroed", fill=True)


_FLOAT_OF = {32: types.float32, 64: types.float64}
_INT_OF = {types.float32: types.int32, types.float64: types.int64}


@intrinsic
def as_float(typing_context: Any, bits: Any) -> Any:
    """The float32 or float64 whose bits an int32 or int64 (or unsigned) holds."""
    if not isinstance(bits, types.Integer) or bits.bitwidth not in _FLOAT_OF:
        return None
    result = _FLOAT_OF[bits.bitwidth]

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(bits), generate


@intrinsic
def as_bits(typing_context: Any, value: Any) -> Any:
    """The bits of a float32 or float64 as an int32 or int64."""
    result = _INT_OF.get(value)
    if result is None:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(result))

    return result(value), generate


def _values_at(name: str, kind: Any) -> Any:
    """An array of so many values of a type at an address; what is there must outlive its use."""

    def operation(typing_context: Any, address: Any, size: Any) -> Any:
        if not isinstance(address, types.Integer) or not isinstance(size, types.Integer):
            return None
        result = types.Array(kind, 1, "C")

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            array = context.make_array(result)(context, builder)
            width = context.get_constant(types.intp, kind.bitwidth // 8)
            data = builder.inttoptr(arguments[0], array.data.type)
            populate_array(array, data=data, shape=arguments[1:], strides=[width], itemsize=width, meminfo=None)
            return array._getvalue()

        return result(types.intp, types.intp), generate

    operation.__name__ = name
    return intrinsic(operation)


floats_at = _values_at("floats_at", types.float32)
doubles_at = _values_at("doubles_at", types.float64)


@intrinsic
def fused_multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once, in the operands' float type (IEEE 754-2019, section 5.4.1)."""
    if a not in _INT_OF or not a == b == c:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return a(a, b, c), generate


@intrinsic
def power_series(typing_context: Any, z: Any, coefficients: Any) -> Any:
    """The polynomial in z, highest coefficient first, by Horner's rule; unrolled, so that loops around it become vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z = arguments[0]
        result, *others = cgutils.unpack_tuple(builder, arguments[1])
        for coefficient in others:
            result = builder.fadd(builder.fmul(result, z), coefficient)
        return result

    return z(z, coefficients), generate


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """The place of the lowest bit set in an integer that is not zero."""
    if not isinstance(bits, types.Integer):
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return bits(bits), generate


@intrinsic
def prefer_wide_vectors(typing_context: Any) -> Any:
    """Let LLVM use 512-bit vectors in the function that calls this; by itself it keeps to 256 where there are both."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        # llvmlite's own `add` knows no attributes with values.
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.none(), generate


VECTOR_BYTES = 64


@intrinsic
def stream_vector(typing_context: Any, out: Any, index: Any, buffer: Any, offset: Any) -> Any:
    """Copy 64 bytes from buffer[offset:] to out[index:], past the cache; &out[index] must be a multiple of 64."""
    if not isinstance(out, types.Array) or out.dtype != buffer.dtype:
        return None

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        out_type, _, buffer_type, _ = signature.args
        element = context.get_data_type(out_type.dtype)
        vector = ir.VectorType(element, VECTOR_BYTES * 8 // out_type.dtype.bitwidth)

        def address(array_type: Any, array: Any, position: Any) -> Any:
            data = context.make_array(array_type)(context, builder, array).data
            return builder.bitcast(builder.gep(data, [position]), vector.as_pointer())

        value = builder.load(address(buffer_type, arguments[2], arguments[3]), align=out_type.dtype.bitwidth // 8)
        store = builder.store(value, address(out_type, arguments[0], arguments[1]), align=VECTOR_BYTES)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.none(out, types.intp, buffer, types.intp), generate


@intrinsic(prefer_literal=True)
def prefetch(typing_context: Any, array: Any, index: Any, cache: Any) -> Any:
    """Ask for the cache line of array[index], which may lie outside the array: a hint cannot fault.

    `cache`, a literal, is the nearest one that is to hold it: 1 or 2.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(array)(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        declared = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        locality = word(4 - cache.literal_value)
        builder.call(declared, [address, word(0), locality, word(1)])  # to be read; data
        return context.get_dummy_value()

    return types.none(array, types.intp, cache), generate


@intrinsic
def fence(typing_context: Any) -> Any:
    """Make streamed stores visible to other threads before anything that follows."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate
