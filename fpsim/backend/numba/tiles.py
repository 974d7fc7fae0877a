"""Tiles: blocks of vectors that kernels hold in registers, and the operations on them.

A tile is a Numba value of `rows` x `vectors` LLVM vectors of 512 bits each (LLVM splits them where a machine has narrower
ones). Operations are written once, as Python functions over `Vector`, and become instructions when a kernel is
compiled; so nothing depends on what the loop vectorizer makes of a loop, and compilation stays short.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.datamodel import models
from numba.extending import intrinsic, register_model

from fpsim.backend.numba.processor import FEATURES, HAS_FMA

REGISTER_BITS = 512
EXPONENT = {32: 0x7F800000, 64: 0x7FF0000000000000}
SIGN = {32: 0x80000000, 64: 0x8000000000000000}
_HAS_SIGN_MASKS = "avx2" in FEATURES and "avx512f" not in FEATURES
HAS_MASK_REGISTERS = FEATURES.issuperset(("avx512f", "avx512dq"))  # a bit for each lane


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
    """One or more LLVM vectors of a type under construction; an operation on several is issued for one after the other.

    Several at once hide each other's latency. An operand of one vector serves them all. Integer operators act on integer
    vectors, the others on float vectors.
    """

    def __init__(self, builder: Any, *values: Any, reload: Callable[[], Vector] | None = None):
        self.builder, self.values, self._reload = builder, values, reload

    def again(self) -> Vector:
        """The same, read from memory once more where it came from there: the likely path keeps no copy for an unlikely one."""
        if self._reload is None:
            return self
        nothing = ir.FunctionType(ir.VoidType(), [])
        self.builder.asm(nothing, "", "~{memory}", [], side_effect=True)  # as if memory had changed
        return self._reload()

    @property
    def value(self) -> Any:
        (value,) = self.values
        return value

    @property
    def type(self) -> ir.VectorType:
        return self.values[0].type

    @property
    def lanes(self) -> int:
        return int(self.type.count)

    @property
    def width(self) -> int:
        element = self.type.element
        return {ir.FloatType: 32, ir.DoubleType: 64}.get(type(element)) or int(element.width)

    @property
    def is_float(self) -> bool:
        return isinstance(self.type.element, (ir.FloatType, ir.DoubleType))

    def split(self) -> list[Vector]:
        """Each of its vectors by itself."""
        return [Vector(self.builder, value) for value in self.values]

    def _each(self, build: Callable[..., Any], *others: Any) -> Vector:
        """What `build` makes of each vector and its counterparts; a number stands for itself in every lane."""
        count = max(len(x.values) for x in (self, *others) if isinstance(x, Vector))
        columns = []
        for x in (self, *others):
            values = x.values if isinstance(x, Vector) else (ir.Constant(self.type, [x] * self.lanes),)
            columns.append(values * count if len(values) == 1 else values)
        return Vector(self.builder, *(build(*row) for row in zip(*columns, strict=True)))

    def _apply(self, name: str, other: Any) -> Vector:
        return self._each(getattr(self.builder, name), other)

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

    def __rshift__(self, count: Any) -> Vector:
        return self._apply("lshr", count)

    def all_sign(self) -> Vector:
        """-1 where an integer is negative, else 0."""
        return self._apply("ashr", self.width - 1)

    def compare(self, operator: str, other: Any) -> Vector:
        """A mask; for floats every comparison with a NaN is false."""
        compare = self.builder.fcmp_ordered if self.is_float else self.builder.icmp_unsigned
        return self._each(lambda left, right: compare(operator, left, right), other)

    def select(self, yes: Vector, no: Vector) -> Vector:
        return self._each(self.builder.select, yes, no)

    def _as(self, element: ir.Type) -> Vector:
        kind = ir.VectorType(element, self.lanes)
        return self._each(lambda value: self.builder.bitcast(value, kind))

    def ints(self) -> Vector:
        return self._as(ir.IntType(self.width))

    def floats(self) -> Vector:
        return self._as(ir.FloatType() if self.width == 32 else ir.DoubleType())

    def absolute(self) -> Vector:
        return (self.ints() & (SIGN[self.width] - 1)).floats()

    def with_sign_of(self, other: Vector) -> Vector:
        sign = SIGN[self.width]
        return ((self.ints() & (sign - 1)) | (other.ints() & sign)).floats()

    def or_sign_of(self, other: Vector) -> Vector:
        """Itself where it is not zero and has the other's sign; the zero +0 with the other's sign."""
        return (self.ints() | (other.ints() & SIGN[self.width])).floats()

    def negative(self) -> Vector:
        return (self.ints() ^ SIGN[self.width]).floats()

    def call(self, name: str, *others: Vector, code: int | None = None) -> Vector:
        """What an intrinsic of LLVM gives, with an immediate where it takes one."""
        extra = [] if code is None else [ir.Constant(ir.IntType(32), code)]
        kinds = [self.type] * (1 + len(others)) + [constant.type for constant in extra]
        function = cgutils.get_or_insert_function(self.builder.module, ir.FunctionType(self.type, kinds), name)
        return self._each(lambda *values: self.builder.call(function, [*values, *extra]), *others)

    def times_plus(self, factor: Vector, term: Vector, fused: bool = False) -> Vector:
        """self * factor + term in one rounding; without `fused` the product must be exact, so that two are the same."""
        if not (fused or HAS_FMA):
            return self * factor + term
        return self.call(f"llvm.fma.v{self.lanes}f{self.width}", factor, term)

    def part(self, first: int, lanes: int) -> Vector:
        """Some neighboring lanes."""
        kind = ir.VectorType(ir.IntType(32), lanes)
        places = ir.Constant(kind, [ir.Constant(ir.IntType(32), first + lane) for lane in range(lanes)])
        nothing = ir.Constant(self.type, ir.Undefined)
        return self._each(lambda value: self.builder.shuffle_vector(value, nothing, places))

    def beside(self, other: Vector) -> Vector:
        """The lanes of both."""
        count = 2 * self.lanes
        places = ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(count)))
        return self._each(lambda left, right: self.builder.shuffle_vector(left, right, places), other)

    def doubled(self) -> Vector:
        """float32 to float64."""
        kind = ir.VectorType(ir.DoubleType(), self.lanes)
        return self._each(lambda value: self.builder.fpext(value, kind))

    def halved(self) -> Vector:
        """float64 to float32."""
        kind = ir.VectorType(ir.FloatType(), self.lanes)
        return self._each(lambda value: self.builder.fptrunc(value, kind))

    def numbers(self) -> Vector:
        """-1 in the lanes of this mask, else 0: integers as wide as what was compared."""
        kind = ir.VectorType(ir.IntType(REGISTER_BITS // self.lanes), self.lanes)
        return self._each(lambda mask: self.builder.sext(mask, kind))

    def population(self) -> Any:
        """How many lanes of this mask are set: an integer of 64 bits."""
        bits = self.builder.bitcast(self.value, ir.IntType(self.lanes))
        return self.builder.ctpop(self.builder.zext(bits, ir.IntType(64)))

    def unsigned_to_double(self) -> Vector:
        kind = ir.VectorType(ir.DoubleType(), self.lanes)
        return self._each(lambda value: self.builder.uitofp(value, kind))


def together(vectors: Sequence[Vector]) -> Vector:
    """Several vectors as one."""
    values = (value for vector in vectors for value in vector.values)
    return Vector(vectors[0].builder, *values, reload=lambda: together([vector.again() for vector in vectors]))


def any_unset(masks: Vector) -> Any:
    """Whether some lane of some mask is not set."""
    builder = masks.builder
    first, *others = masks.values
    if not _HAS_SIGN_MASKS:
        for mask in others:
            first = builder.and_(first, mask)
        bits = builder.bitcast(first, ir.IntType(masks.lanes))
        return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, -1))
    # LLVM would pack masks into bytes; a register of signs is one instruction away from a number.
    element = ir.IntType(REGISTER_BITS // masks.lanes)
    parts = []
    for mask in masks.values:
        wide = builder.sext(mask, ir.VectorType(element, masks.lanes))
        parts += [Vector(builder, wide).part(start, masks.lanes // 2) for start in (0, masks.lanes // 2)]
    every = parts[0]
    for part in parts[1:]:
        every = every & part
    kind, suffix = (ir.FloatType(), "ps") if element.width == 32 else (ir.DoubleType(), "pd")
    register = ir.VectorType(kind, masks.lanes // 2)
    signature = ir.FunctionType(ir.IntType(32), [register])
    function = cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.avx.movmsk.{suffix}.256")
    bits = builder.call(function, [builder.bitcast(every.value, register)])
    return builder.icmp_unsigned("!=", bits, ir.Constant(bits.type, 2 ** (masks.lanes // 2) - 1))


def if_some_unset(fine: Vector, do: Callable[[], None]) -> None:
    """What `do` builds, in a branch held unlikely, where some lane of some mask is not set."""
    with fine.builder.if_then(any_unset(fine), likely=False):
        do()


def unless_all(fine: Vector, values: Vector, otherwise: Callable[[], Vector]) -> Vector:
    """`values` if every lane of every mask in `fine` is set, else what `otherwise` computes, in a branch held unlikely."""
    builder = fine.builder
    some = any_unset(fine)
    usual = builder.block
    with builder.if_then(some, likely=False):
        careful = otherwise()
        unusual = builder.block
    results = []
    for quick, sure in zip(values.values, careful.values, strict=True):
        result = builder.phi(quick.type)
        result.add_incoming(quick, usual)
        result.add_incoming(sure, unusual)
        results.append(result)
    return Vector(builder, *results)


def larger(left: Vector, right: Vector) -> Vector:
    """The larger of two values that are not NaN."""
    return left.compare(">", right).select(left, right)


def larger_power(left: Vector, right: Vector) -> Vector:
    """The larger of two powers of two, zeros or infinities, none negative: as integers, which more of a processor's units
    compare.
    """
    if left.width == 64 and not HAS_MASK_REGISTERS:
        return larger(left, right)
    bits, others = left.ints(), right.ints()
    return bits.compare(">", others).select(bits, others).floats()


def smaller(left: Vector, right: Vector) -> Vector:
    """The smaller of two values that are not NaN."""
    return left.compare("<", right).select(left, right)


def _range(code: int, left: Vector, right: Vector) -> Vector:
    """VRANGE with an immediate; it takes the other operand for a quiet NaN."""
    mask, word = ir.IntType(left.lanes), ir.IntType(32)
    kinds = [left.type, left.type, word, left.type, mask, word]
    name = f"llvm.x86.avx512.mask.range.p{'s' if left.width == 32 else 'd'}.512"
    function = cgutils.get_or_insert_function(left.builder.module, ir.FunctionType(left.type, kinds), name)
    every, mode = mask(-1), word(4)  # the current rounding, which changes nothing
    return left._each(lambda x, y: left.builder.call(function, [x, y, word(code), x, every, mode]), right)


def larger_magnitude(left: Vector, right: Vector) -> Vector:
    """The larger of two magnitudes; that of the other where one is a NaN, or without mask registers right's."""
    return _range(0b1011, left, right) if HAS_MASK_REGISTERS else larger(left.absolute(), right.absolute())


def smaller_magnitude(left: Vector, right: Vector) -> Vector:
    """The smaller of two magnitudes; that of the other where one is a NaN."""
    return _range(0b1010, left, right)


def larger_by_magnitude(left: Vector, right: Vector) -> Vector:
    """That of two numbers whose magnitude is larger; either of two equal ones."""
    return _range(0b0111, left, right)


def in_pairs(operation: Callable[[Vector, Vector], Vector], vectors: list[Vector]) -> Vector:
    """One vector of several, by halves: a chain of operations would take longer."""
    while len(vectors) > 1:
        vectors = [operation(*vectors[i : i + 2]) if i + 1 < len(vectors) else vectors[i] for i in range(0, len(vectors), 2)]
    return vectors[0]


def largest_of_lanes(vector: Vector) -> Any:
    """The largest of a vector's numbers, none of them NaN, as a scalar."""
    while vector.lanes > 1:
        half = vector.lanes // 2
        vector = larger(vector.part(0, half), vector.part(half, half))
    return vector.builder.extract_element(vector.value, ir.Constant(ir.IntType(32), 0))


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

    def load() -> Vector:
        instruction = builder.load(pointer)
        instruction.align = 4
        return Vector(builder, instruction, reload=load)

    return load()


def load_scalar(builder: Any, data: Any, offset: Any, lanes: int) -> Vector:
    """One number from memory in every lane."""
    pointer = builder.gep(data, [offset])

    def load() -> Vector:
        return Vector(builder, splat(builder, builder.load(pointer), lanes).value, reload=load)

    return load()


@intrinsic(prefer_literal=True)
def zero_tile(typing_context: Any, element: Any, rows: Any, vectors: Any) -> Any:
    """A tile of +0."""
    tile = TileType(element.dtype, rows.literal_value, vectors.literal_value)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(context.get_value_type(tile), None)

    return tile(element, rows, vectors), generate


def tile_places(builder: Any, tile: TileType, offset: Any, stride: Any) -> list[Any]:
    return [
        builder.add(builder.add(offset, builder.mul(stride, index(row))), index(vector * tile.lanes))
        for row in range(tile.rows)
        for vector in range(tile.vectors)
    ]


class Stored:
    """Some vectors of an array, read and written where they lie: registers are few."""

    def __init__(self, builder: Any, data: Any, places: list[Any], lanes: int):
        self._builder, self._data, self._places, self._lanes = builder, data, places, lanes

    def __getitem__(self, position: int) -> Vector:
        return load_vector(self._builder, self._data, self._places[position], self._lanes)

    def __setitem__(self, position: int, vector: Vector) -> None:
        pointer = vector_pointer(self._builder, self._data, self._places[position], self._lanes)
        self._builder.store(vector.value, pointer).align = 4

    def increase(self, position: int, count: Any) -> None:
        """Add an integer of 64 bits to the one that is kept in a vector's place."""
        pointer = self._builder.gep(self._data, [self._places[position]])
        pointer = self._builder.bitcast(pointer, ir.IntType(64).as_pointer())
        before = self._builder.load(pointer)
        before.align = 4
        self._builder.store(self._builder.add(before, count), pointer).align = 4


@intrinsic
def store_tile(typing_context: Any, tile: Any, array: Any, offset: Any, stride: Any) -> Any:
    """Write a tile to a flat array, row r from `offset + r * stride`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, array, arguments[1])
        values = vectors_of(builder, arguments[0], tile.count)
        for vector, place in zip(values, tile_places(builder, tile, arguments[2], arguments[3]), strict=True):
            builder.store(vector.value, vector_pointer(builder, data, place, tile.lanes)).align = 4
        return context.get_dummy_value()

    return types.void(tile, array, offset, stride), generate


@intrinsic
def load_tile(typing_context: Any, like: Any, array: Any, offset: Any, stride: Any) -> Any:
    """A tile like `like` from a flat array, row r from `offset + r * stride`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = data_of(context, builder, array, arguments[1])
        places = tile_places(builder, like, arguments[2], arguments[3])
        vectors = [load_vector(builder, data, place, like.lanes) for place in places]
        return tile_of(builder, context.get_value_type(like), vectors)

    return like(like, array, offset, stride), generate
