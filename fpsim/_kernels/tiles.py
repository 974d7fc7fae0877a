"""Tiles: blocks of vectors that kernels hold in registers, and the operations on them.

A tile is a Numba value of `rows` x `vectors` LLVM vectors of 512 bits each (LLVM splits them where a machine has narrower
ones). Operations are written once, as Python functions over `Vector`, and become instructions when a kernel is
compiled; so nothing depends on what the loop vectorizer makes of a loop, and compilation stays short.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

REGISTER_BITS = 512
EXPONENT = {32: 0x7F800000, 64: 0x7FF0000000000000}
SIGN = {32: 0x80000000, 64: 0x8000000000000000}
_FEATURES = llvmlite.binding.get_host_cpu_features()
HAS_FMA = bool(_FEATURES.get("fma")) or "aarch64" in llvmlite.binding.get_process_triple()
HAS_DIRECTIONS = bool(_FEATURES.get("avx512f"))  # instructions that carry their rounding direction
DOWNWARD, UPWARD, INWARD = 9, 10, 11  # as AVX-512 encodes them, exceptions suppressed


class TileType(types.Type):
    """The Numba type of rows x vectors registers of float32, float64 or uint32."""

    def __init__(self, element: Any, rows: int, vectors: int):
        self.element, self.rows, self.vectors = element, rows, vectors
        self.lanes = REGISTER_BITS // element.bitwidth
        self.count = rows * vectors
        super().__init__(name=f"Tile({element},{rows},{vectors})")


def _ir_element(element: Any) -> ir.Type:
    return {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}[element]


@register_model(TileType)
class _TileModel(models.PrimitiveModel):
    def __init__(self, manager: Any, tile: TileType):
        vector = ir.VectorType(_ir_element(tile.element), tile.lanes)
        super().__init__(manager, tile, ir.ArrayType(vector, tile.count))


class Vector:
    """An LLVM vector under construction. Integer operators act on integer vectors, the others on float vectors."""

    def __init__(self, builder: Any, value: Any):
        self.builder, self.value = builder, value

    @property
    def lanes(self) -> int:
        return int(self.value.type.count)

    @property
    def width(self) -> int:
        element = self.value.type.element
        return {ir.FloatType: 32, ir.DoubleType: 64}.get(type(element)) or int(element.width)

    @property
    def is_float(self) -> bool:
        return isinstance(self.value.type.element, (ir.FloatType, ir.DoubleType))

    def _other(self, other: Any) -> Any:
        return other.value if isinstance(other, Vector) else ir.Constant(self.value.type, [other] * self.lanes)

    def _apply(self, name: str, other: Any) -> Vector:
        return Vector(self.builder, getattr(self.builder, name)(self.value, self._other(other)))

    def __add__(self, other: Any) -> Vector:
        return self._apply("fadd" if self.is_float else "add", other)

    def __sub__(self, other: Any) -> Vector:
        return self._apply("fsub" if self.is_float else "sub", other)

    def __mul__(self, other: Any) -> Vector:
        return self._apply("fmul" if self.is_float else "mul", other)

    def __and__(self, other: Any) -> Vector:
        return self._apply("and_", other)

    def __or__(self, other: Any) -> Vector:
        return self._apply("or_", other)

    def __xor__(self, other: Any) -> Vector:
        return self._apply("xor", other)

    def __rshift__(self, count: int) -> Vector:
        return self._apply("lshr", count)

    def all_sign(self) -> Vector:
        """-1 where an integer is negative, else 0."""
        return self._apply("ashr", self.width - 1)

    def compare(self, operator: str, other: Any) -> Vector:
        """A mask; for floats every comparison with a NaN is false."""
        build = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_unsigned
        return Vector(self.builder, build(operator, self.value, self._other(other)))

    def select(self, yes: Vector, no: Vector) -> Vector:
        return Vector(self.builder, self.builder.select(self.value, yes.value, no.value))

    def ints(self) -> Vector:
        return Vector(self.builder, self.builder.bitcast(self.value, ir.VectorType(ir.IntType(self.width), self.lanes)))

    def floats(self) -> Vector:
        element = ir.FloatType() if self.width == 32 else ir.DoubleType()
        return Vector(self.builder, self.builder.bitcast(self.value, ir.VectorType(element, self.lanes)))

    def absolute(self) -> Vector:
        return (self.ints() & (SIGN[self.width] - 1)).floats()

    def with_sign_of(self, other: Vector) -> Vector:
        sign = SIGN[self.width]
        return ((self.ints() & (sign - 1)) | (other.ints() & sign)).floats()

    def negative(self) -> Vector:
        return (self.ints() ^ SIGN[self.width]).floats()

    def times_plus(self, factor: Vector, term: Vector, fused: bool = False) -> Vector:
        """self * factor + term in one rounding; without `fused` the product must be exact, so that two are the same."""
        if not (fused or HAS_FMA):
            return self * factor + term
        name = f"llvm.fma.v{self.lanes}f{self.width}"
        kind = self.value.type
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(kind, [kind] * 3), name)
        return Vector(self.builder, self.builder.call(function, [self.value, factor.value, term.value]))

    def _directed(self, name: str, direction: int, *others: Vector) -> Vector:
        kind, code = self.value.type, ir.IntType(32)
        suffix = "ps" if self.width == 32 else "pd"
        signature = ir.FunctionType(kind, [kind] * (1 + len(others)) + [code])
        function = cgutils.get_or_insert_function(self.builder.module, signature, f"llvm.x86.avx512.{name}.{suffix}.512")
        values = [self.value, *(other.value for other in others), ir.Constant(code, direction)]
        return Vector(self.builder, self.builder.call(function, values))

    def plus(self, other: Vector, direction: int) -> Vector:
        """The sum rounded downward, upward or inward by one instruction (only with HAS_DIRECTIONS)."""
        return self._directed("add", direction, other)

    def times(self, other: Vector, direction: int) -> Vector:
        """The product, likewise."""
        return self._directed("mul", direction, other)

    def times_plus_toward(self, factor: Vector, term: Vector, direction: int) -> Vector:
        """self * factor + term in one rounding, likewise."""
        return self._directed("vfmadd", direction, factor, term)

    def part(self, first: int, lanes: int) -> Vector:
        """Some neighboring lanes."""
        kind = ir.VectorType(ir.IntType(32), lanes)
        places = ir.Constant(kind, [ir.Constant(ir.IntType(32), first + lane) for lane in range(lanes)])
        nothing = ir.Constant(self.value.type, ir.Undefined)
        return Vector(self.builder, self.builder.shuffle_vector(self.value, nothing, places))

    def unsigned_to_double(self) -> Vector:
        return Vector(self.builder, self.builder.uitofp(self.value, ir.VectorType(ir.DoubleType(), self.lanes)))


def larger(left: Vector, right: Vector) -> Vector:
    """The larger of two values that are not NaN."""
    return left.compare(">", right).select(left, right)


def smaller(left: Vector, right: Vector) -> Vector:
    """The smaller of two values that are not NaN."""
    return left.compare("<", right).select(left, right)


def index(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def splat(builder: Any, scalar: Any, lanes: int) -> Vector:
    """One scalar in every lane."""
    kind = ir.VectorType(scalar.type, lanes)
    nothing = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(nothing, scalar, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), lanes), None)
    return Vector(builder, builder.shuffle_vector(first, nothing, zeros))


def vectors_of(builder: Any, tile: Any, count: int) -> list[Vector]:
    return [Vector(builder, builder.extract_value(tile, i)) for i in range(count)]


def tile_of(builder: Any, kind: ir.Type, vectors: list[Vector]) -> Any:
    tile = ir.Constant(kind, ir.Undefined)
    for position, vector in enumerate(vectors):
        tile = builder.insert_value(tile, vector.value, position)
    return tile


def data_of(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    return context.make_array(array_type)(context, builder, array).data


def vector_pointer(builder: Any, data: Any, offset: Any, lanes: int) -> Any:
    pointer = builder.gep(data, [offset])
    return builder.bitcast(pointer, ir.VectorType(pointer.type.pointee, lanes).as_pointer())


def load_vector(builder: Any, data: Any, offset: Any, lanes: int) -> Vector:
    pointer = vector_pointer(builder, data, offset, lanes)
    instruction = builder.load(pointer)
    instruction.align = 4
    return Vector(builder, instruction)


@intrinsic(prefer_literal=True)
def zero_tile(typing_context: Any, element: Any, rows: Any, vectors: Any) -> Any:
    """A tile of +0."""
    tile = TileType(element.dtype, rows.literal_value, vectors.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(tile), None)

    return tile(element, rows, vectors), generate


def _tile_places(builder: Any, tile: TileType, offset: Any, stride: Any) -> list[Any]:
    return [
        builder.add(builder.add(offset, builder.mul(stride, index(row))), index(vector * tile.lanes))
        for row in range(tile.rows)
        for vector in range(tile.vectors)
    ]


@intrinsic
def store_tile(typing_context: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
    """Write a tile to a flat array, row r from `offset + r * stride`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, array, arguments[1])
        values = vectors_of(builder, arguments[0], tile.count)
        for vector, place in zip(values, _tile_places(builder, tile, arguments[2], arguments[3]), strict=True):
            builder.store(vector.value, vector_pointer(builder, data, place, tile.lanes)).align = 4
        return context.get_dummy_value()

    return types.void(tile, array, offset, stride), generate


@intrinsic
def load_tile(typing_context: Any, like: Any, array: Any, offset: Any, stride: Any) -> Any:
    """A tile like `like` from a flat array, row r from `offset + r * stride`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, array, arguments[1])
        places = _tile_places(builder, like, arguments[2], arguments[3])
        vectors = [load_vector(builder, data, place, like.lanes) for place in places]
        return tile_of(builder, context.get_value_type(like), vectors)

    return like(like, array, offset, stride), generate
