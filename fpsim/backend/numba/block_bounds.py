"""What bounds a product's leaves and sums over a few terms at a time, from float32 operands as products pack them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_and, int_min, prefer_wide_vectors, uninitialized
from fpsim.backend.numba.rounding import NEAREST_EVEN
from fpsim.backend.numba.tiles import Vector, data_of, in_pairs, index, larger, load_vector, smaller, splat, vector_pointer

LANES = 16  # terms of a block
SLACK = 2.0**-12  # more than what the roundings of a block's sums, and of the bounds themselves, amount to

LEAST = np.float32(2.0**-149)

_SIGN, _MAGNITUDE, _INFINITY = np.int32(-(2**31)), np.int32(0x7FFFFFFF), np.int32(0x7F800000)
_MORE = np.float32(1 + SLACK)
_TINY = np.float32(2.0**-137)  # more than what a block's products and sums lose below the smallest number
_TINY_SQUARES = np.float32(2.0**-144)  # the same of squares


def swamped_share(mode: int) -> np.float32:
    """No sum swamps more than this share of the power of two below it, or LEAST.

    It is half an ulp, or one where rounding is directed.
    """
    return np.float32(2.0 ** (-24 if mode == NEAREST_EVEN else -23))


@inlined
def _magnitude(x: Any) -> Any:
    """A magnitude's bits; of zero, infinity's."""
    magnitude = int_and(as_bits(x), _MAGNITUDE)
    return magnitude if magnitude != 0 else _INFINITY


def _every_other(left: Vector, right: Vector) -> list[Vector]:
    """The lanes with even numbers of two vectors, and those with odd ones."""
    builder, word = left.builder, ir.IntType(32)
    places = [ir.Constant(ir.VectorType(word, LANES), [word(lane) for lane in range(first, 2 * LANES, 2)]) for first in (0, 1)]
    return [Vector(builder, builder.shuffle_vector(left.value, right.value, place)) for place in places]


def _folded(combine: Callable[[Vector, Vector], Vector], vector: Vector, lanes: int) -> Vector:
    """Both halves of a vector's lanes combined, until there are so many."""
    while vector.lanes > lanes:
        half = vector.lanes // 2
        vector = combine(vector.part(0, half), vector.part(half, half))
    return vector


@intrinsic(prefer_literal=True)
def _extents_of_block(
    typing_context: Any, packed: Any, start: Any, step: Any, width: Any, least: Any, place: Any
) -> Any:
    """(The largest sum of squares that a column of LANES terms has, that of all), their smallest nonzero magnitudes being
    stored. Terms of four columns lie side by side, of which a vector has several.
    """
    columns: int = width.literal_value
    vectors = min(columns, LANES)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, target = (data_of(context, builder, array, arguments[i]) for i, array in ((0, packed), (4, least)))
        stride = index(LANES) if columns < LANES else arguments[2]
        sums: dict[int, Vector] = {}

        def ranks(first: Any, column: int) -> Vector:
            """Integers in the order of magnitudes, those of zeros the last."""
            numbers = load_vector(builder, source, builder.add(first, index(column)), LANES)
            square = numbers * numbers
            sums[column] = sums[column] + square if column in sums else square
            return (numbers.ints() & int(_MAGNITUDE)) - 1

        def smallest(first: int, count: int) -> Vector:
            """The smallest of each term's, in the terms' order."""
            if count == 1:
                place = builder.add(arguments[1], builder.mul(stride, index(first)))
                return in_pairs(smaller, [ranks(place, column) for column in range(0, max(columns, LANES), LANES)])
            half = count // 2
            return smaller(*_every_other(smallest(first, half), smallest(first + half, half)))

        found = smallest(0, vectors)
        most = Vector(builder, ir.Constant(found.type, [int(_INFINITY) - 1] * LANES))
        magnitudes = (smaller(found, most) + 1).floats()
        builder.store(magnitudes.value, vector_pointer(builder, target, arguments[5], LANES)).align = 4
        lanes = min(columns, LANES)
        of_columns = [_folded(operator.add, column, lanes) for column in sums.values()]
        largest = _folded(larger, in_pairs(larger, of_columns), 1)
        total = _folded(operator.add, in_pairs(operator.add, of_columns), 1)
        numbers = [builder.extract_element(x.value, ir.Constant(ir.IntType(32), 0)) for x in (largest, total)]
        return context.make_tuple(builder, signature.return_type, numbers)

    return types.UniTuple(packed.dtype, 2)(packed, start, step, width, least, place), generate


@kernel(fastmath={"reassoc", "contract"})
def extents(packed: Any, panel_stride: int, leaf_stride: int, width: int, blocks: Any, least: Any, norms: Any) -> Any:
    """Of an operand packed in panels or groups of `width` columns or rows: the smallest nonzero magnitude in each term
    (infinity if there is none), (panel, block, term) flat, and the largest Euclidean norm that one column or row has in each
    block, (panel, block). A block is (first term, number of terms, stride); infinity fills it up.

    Returns a sum of all squares, which is finite only if all numbers are.
    """
    prefer_wide_vectors()
    squares = uninitialized(width, np.float32)
    total = np.float32(0)
    place = 0
    for panel in range(norms.shape[0]):
        for block in range(blocks.shape[0]):
            terms, step = blocks[block, 1], blocks[block, 2] * leaf_stride
            start = panel * panel_stride + blocks[block, 0] * leaf_stride
            if terms == LANES and width == 32:
                largest, both = _extents_of_block(packed, start, step, 32, least, place)
            elif terms == LANES and width == 4 and step == 4:
                largest, both = _extents_of_block(packed, start, step, 4, least, place)
            else:
                squares[:] = 0
                least[place : place + LANES] = np.inf
                for k in range(terms):
                    numbers = packed[start + k * step : start + k * step + width]
                    smallest = _INFINITY
                    for i in range(width):
                        squares[i] += numbers[i] * numbers[i]
                        smallest = int_min(smallest, _magnitude(numbers[i]))
                    least[place + k] = as_float(smallest)
                largest, both = squares.max(), squares.sum()
            norms[panel, block] = np.sqrt(largest + _TINY_SQUARES)
            total += both
            place += LANES
    return total


@intrinsic
def _at_most(typing_context: Any, left: Any, left_offset: Any, right: Any, right_offset: Any, limit: Any) -> Any:
    """A bit for each lane: whether the product of two arrays' elements there is at most the limit."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        x, y = (
            load_vector(builder, data_of(context, builder, array, arguments[i]), arguments[i + 1], LANES)
            for i, array in ((0, left), (2, right))
        )
        small = (x * y).compare("<=", splat(builder, arguments[4], LANES))
        return builder.zext(builder.bitcast(small.value, ir.IntType(LANES)), ir.IntType(64))

    return types.int64(left, left_offset, right, right_offset, limit), generate


@inlined
def growth_of(norm: float, other: float) -> Any:
    """By how much a sum's magnitude may grow in a block of a tile, by the norms of its factors (Cauchy and Schwarz)."""
    return norm * other * _MORE + _TINY


@inlined
def terms_swamped(bound: float, share: float, least_a: Any, place_a: int, least_b: Any, place_b: int) -> Any:
    """A bit for each term of a block of a tile that a sum of at most this magnitude may swamp.

    Flat arrays hold the smallest magnitudes of the terms' factors, which begin at these places.
    """
    power = as_float(int_and(as_bits(bound * _MORE), _INFINITY))
    return _at_most(least_a, place_a, least_b, place_b, power * share * _MORE + LEAST)


@kernel
def bounds_of_product(
    left: Any, groups: int, rows: int, right: Any, panels: int, panel_stride: int, leaf_stride: int, width: int, leaves: int,
    blocks: Any, share: float,
) -> Any:  # fmt: skip
    """Of operands packed in groups of `rows` and panels of `width`: what `extents` finds, and the share of
    blocks of tiles in which a sum twice as large as what they add may swamp a term.
    """
    count, doubtful = blocks.shape[0], 0
    least_a, norms_a = np.empty(groups * count * LANES, np.float32), np.empty((groups, count), np.float32)
    least_b, norms_b = np.empty(panels * count * LANES, np.float32), np.empty((panels, count), np.float32)
    extents(left, rows * leaves, rows, rows, blocks, least_a, norms_a)
    extents(right, panel_stride, leaf_stride, width, blocks, least_b, norms_b)
    for panel in range(panels):
        for group in range(groups):
            for block in range(count):
                growth = growth_of(norms_a[group, block], norms_b[panel, block])
                place_a, place_b = (group * count + block) * LANES, (panel * count + block) * LANES
                doubtful += terms_swamped(growth + growth, share, least_a, place_a, least_b, place_b) != 0
    return least_a, least_b, norms_a, norms_b, doubtful / (panels * groups * count)
