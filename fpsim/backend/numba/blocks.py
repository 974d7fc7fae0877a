"""Block fused multiply-add, as tensor cores do it: align to the largest exponent, truncate, add exactly, round once.

Operands come packed as for `products`, and so do their powers: 2^exponent of each value, the format's least exponent for a
subnormal one, 0 for a zero. So the common alignment is the largest product of powers, and an aligned term is an integer:
the product, which the carrier holds exactly, times a power of two, truncated.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_and
from fpsim.backend.numba.rounding import NEAREST_EVEN
from fpsim.backend.numba.sums_rounding import CAREFUL, LENGTH, Arithmetic, constants_of
from fpsim.backend.numba.tile_operations import operand_pairs
from fpsim.backend.numba.tiles import (
    EXPONENT,
    Vector,
    data_of,
    larger,
    load_tile,
    splat,
    store_tile,
    tile_of,
    vectors_of,
    zero_tile,
)

# What a kernel's settings hold, as bits of the carrier.
SCALE = 0  # less the bits of a power 2^E: the bits of 2^(fraction - E)
LEAST_SCALED = 1  # the least power that a scale can be made from; no product that is not zero has a smaller one
LEAST_ADDEND = 2  # 2^emin of the result, the power of its subnormals
ALONE = 3  # the bits that are kept of an addend below LEAST_SCALED, which is then all there is
SETTINGS = 4

# How a kernel rounds: to nearest even by a row of constants; toward zero to float32 bits, by way of float64 or, where sums
# with the addend stay below 2^31, of int32.
NEAREST, TOWARD_ZERO, TOWARD_ZERO_INTEGERS = range(3)

_OVERFLOW = 2.0**128  # from here on infinity, though rounding is toward zero


@kernel
def powers(values: Any, exponent: Any, least: Any, out: Any) -> None:
    """out[i] = 2^exponent of a finite value, not below `least`; 0 for zero. Flat arrays; `exponent` masks the field."""
    for i in range(values.size):
        power = as_float(int_and(as_bits(values[i]), exponent))
        power = least if power < least else power
        out[i] = power if values[i] != 0 else abs(values[i])


def _double(vector: Vector) -> Vector:
    """An integer or float vector in float64."""
    if not vector.is_float:
        return Vector(vector.builder, vector.builder.sitofp(vector.value, ir.VectorType(ir.DoubleType(), vector.lanes)))
    return vector if vector.width == 64 else vector.doubled()


def _like(vector: Vector, other: Vector) -> Vector:
    """A float vector in the carrier of another, which holds its values."""
    if vector.width == other.width:
        return vector
    return vector.halved() if other.width == 32 else _double(vector)


def _truncated(term: Vector) -> Vector:
    """Toward zero: an int32 below 2^31, or an integer in float64."""
    if term.width == 32:
        return Vector(term.builder, term.builder.fptosi(term.value, ir.VectorType(ir.IntType(32), term.lanes)))
    return term.call(f"llvm.trunc.v{term.lanes}f64")


@intrinsic
def _addend_powers(typing_context: Any, total: Any, settings: Any) -> Any:
    """The powers of a tile of addends."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        least = splat(builder, builder.extract_value(arguments[1], LEAST_ADDEND), total.lanes).floats()
        results = []
        for c in vectors_of(builder, arguments[0], total.count):
            power = larger((c.ints() & EXPONENT[c.width]).floats(), least)
            results.append(c.compare("==", 0.0).select(c.absolute(), power))
        return tile_of(builder, arguments[0].type, results)

    return total(total, settings), generate


@intrinsic
def _align(typing_context: Any, top: Any, a: Any, a_offset: Any, b: Any, b_offset: Any) -> Any:
    """The larger of `top` and the products of powers of one k."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_data, b_data = data_of(context, builder, a, arguments[1]), data_of(context, builder, b, arguments[3])
        pairs = operand_pairs(builder, top, a_data, arguments[2], b_data, arguments[4])
        tops = vectors_of(builder, arguments[0], top.count)
        results = [larger(left * right, old) for old, (left, right) in zip(tops, pairs, strict=True)]
        return tile_of(builder, arguments[0].type, results)

    return top(top, a, a_offset, b, b_offset), generate


@intrinsic
def _scales(typing_context: Any, top: Any, settings: Any) -> Any:
    """What takes a term to units of the last place kept."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        scaled, least = (
            splat(builder, builder.extract_value(arguments[1], place), top.lanes) for place in (SCALE, LEAST_SCALED)
        )
        tops = vectors_of(builder, arguments[0], top.count)
        results = [(scaled - larger(power, least.floats()).ints()).floats() for power in tops]
        return tile_of(builder, arguments[0].type, results)

    return top(top, settings), generate


@intrinsic
def _add_terms(typing_context: Any, terms: Any, scale: Any, a: Any, a_offset: Any, b: Any, b_offset: Any) -> Any:
    """`terms` and the aligned products of one k. Scaling is exact, or underflows where the term is 0 either way.

    In a float32 carrier a tile's bits are int32 sums.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a_data, b_data = data_of(context, builder, a, arguments[2]), data_of(context, builder, b, arguments[4])
        pairs = operand_pairs(builder, terms, a_data, arguments[3], b_data, arguments[5])
        sums, scales = (vectors_of(builder, arguments[i], terms.count) for i in (0, 1))
        results = []
        for total, factor, (left, right) in zip(sums, scales, pairs, strict=True):
            term = _truncated(left * right * factor)
            results.append(total + term if term.is_float else (total.ints() + term).floats())
        return tile_of(builder, arguments[0].type, results)

    return terms(terms, scale, a, a_offset, b, b_offset), generate


class _Finish:
    """The end of a block: the exact sum of terms and addend, in float64 or as an int32, and its rounding."""

    def __init__(self, builder: Any, lanes: int, settings: Any, fraction: Any, kept: Any, row: Any, rounding: int):
        self.floor, self.alone = (
            splat(builder, builder.extract_value(settings, place), lanes) for place in (LEAST_SCALED, ALONE)
        )
        self.fraction, self.kept = (splat(builder, scalar, lanes) for scalar in (fraction, kept))
        constants = [builder.extract_value(row, i) for i in range(LENGTH)]
        self.nearest = Arithmetic(builder, lanes, constants, NEAREST_EVEN, CAREFUL) if rounding == NEAREST else None
        self.by_integers = rounding == TOWARD_ZERO_INTEGERS

    def __call__(self, c: Vector, power: Vector, scale: Vector, terms: Vector) -> Vector:
        rounded = self._of_integers(c, power, scale, terms) if self.by_integers else self._of_doubles(c, power, scale, terms)
        alone = (c.ints() & self.alone).floats() + 0.0  # a zero sum is +0
        rounded = power.compare("<", self.floor.floats()).select(alone, rounded)
        return c.absolute().compare("<", float("inf")).select(rounded, c)  # an infinity stays

    def _of_doubles(self, c: Vector, power: Vector, scale: Vector, terms: Vector) -> Vector:
        whole = _double(terms.ints() if terms.width == 32 else terms) + _double(_truncated(c * scale))
        exact = whole * (_double(power) * self.fraction)  # integers below 2^53, then a power of two
        rounded = self._toward_zero(exact) if self.nearest is None else self.nearest.round(exact, None, True, None)
        return _like(rounded, c)

    def _of_integers(self, c: Vector, power: Vector, scale: Vector, terms: Vector) -> Vector:
        """The nearest float32 to the integer, less one unit where that is beyond it; then a power of two.

        The power is exact: units are at least 2^-126 where the result is taken, and 2^128 and above is infinity.
        """
        builder, kind = c.builder, c.value.type
        whole = terms.ints() + _truncated(c * scale)
        nearest = Vector(builder, builder.sitofp(whole.value, kind))
        beyond = _magnitude(_truncated(nearest)).compare(">", _magnitude(whole))
        one = Vector(builder, builder.sext(beyond.value, whole.value.type))
        return ((nearest.ints() + one) & self.kept).floats() * (power * self.fraction.halved())

    def _toward_zero(self, exact: Vector) -> Vector:
        """The nearest float32, less one unit where that is beyond; then only the bits kept."""
        nearest, size = exact.halved(), exact.absolute()
        beyond = _double(nearest).absolute().compare(">", size)
        finite = size.compare("<", _OVERFLOW)
        builder = exact.builder
        one = builder.sext(builder.and_(beyond.value, finite.value), ir.VectorType(ir.IntType(32), exact.lanes))
        return ((nearest.ints() + Vector(builder, one)) & self.kept).floats()


def _magnitude(x: Vector) -> Vector:
    """The absolute value of an int32."""
    sign = x.all_sign()
    return (x ^ sign) - sign


@intrinsic(prefer_literal=True)
def _finish(
    typing_context: Any, total: Any, top: Any, scale: Any, terms: Any, settings: Any, fraction: Any, kept: Any, row: Any,
    rounding: Any,
) -> Any:  # fmt: skip
    """The rounded sums of a block."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        chosen, scalar, mask, constants = arguments[4:8]
        finish = _Finish(builder, total.lanes, chosen, scalar, mask, constants, rounding.literal_value)
        tiles = (vectors_of(builder, argument, total.count) for argument in arguments[:4])
        return tile_of(builder, arguments[0].type, [finish(*parts) for parts in zip(*tiles, strict=True)])

    return total(total, top, scale, terms, settings, fraction, kept, row, rounding), generate


@lru_cache(maxsize=16)
def make_block_product(element: str, rows: int, vectors: int, rounding: int) -> Any:
    """The kernel for one carrier ("f4" or "f8"), tile and rounding; integers are for "f4".

    Its arguments: a, b and their powers (flat, packed), out (flat; it holds the addends), the leaves that are packed and
    the range of them to take, whole blocks, the block, panels, the range of row groups, out's row stride, the settings,
    2^-fraction in float64, the float32 bits that rounding toward zero keeps, and the constants of rounding to nearest.
    """
    kind, width = (np.float32, vectors * 16) if element == "f4" else (np.float64, vectors * 8)

    @kernel
    def block_product(
        a: Any, a_powers: Any, b: Any, b_powers: Any, out: Any, leaves: int, begin: int, end: int, block: int, panels: int,
        first: int, last: int, out_stride: int, settings: Any, fraction: float, kept: Any, row: Any,
    ) -> None:  # fmt: skip
        chosen = (settings[0], settings[1], settings[2], settings[3])
        constants = constants_of(row)
        for panel in range(panels):
            for group in range(first, last):
                a_start, b_start = group * leaves * rows, panel * leaves * width
                place = group * rows * out_stride + panel * width
                total = load_tile(zero_tile(kind, rows, vectors), out, place, out_stride)
                for start in range(begin, end, block):
                    top = _addend_powers(total, chosen)
                    for k in range(start, start + block):
                        top = _align(top, a_powers, a_start + k * rows, b_powers, b_start + k * width)
                    scale = _scales(top, chosen)
                    terms = zero_tile(kind, rows, vectors)
                    for k in range(start, start + block):
                        terms = _add_terms(terms, scale, a, a_start + k * rows, b, b_start + k * width)
                    total = _finish(total, top, scale, terms, chosen, fraction, kept, constants, rounding)
                store_tile(total, out, place, out_stride)

    return block_product
