"""Products of matrices that observe their roundings: the interpreter of `products`, with tallies beside the sums.

Each tile has vectors of tallies: additions that left a sum as it was, underflows, overflows, and the largest magnitude of a
sum; or, for error bounds, one for each vector of its own (`watched.py`).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim._kernels.compiler import as_bits, as_float, inlined, int_add, int_sub, kernel, prefer_wide_vectors
from fpsim._kernels.products import ADD, CHAIN, LEAF_STEPS, PUSH_LEAF, Step
from fpsim._kernels.sums_rounding import (
    LENGTH,
    MAX_FINITE,
    TRACK,
    TRACK_SUMS,
    Arithmetic,
    constants_of,
    turn,
    turn_back,
)
from fpsim._kernels.tiles import (
    TileType,
    Vector,
    data_of,
    in_pairs,
    larger,
    load_tile,
    smaller,
    store_tile,
    tile_of,
    unless_all,
    vectors_of,
    zero_tile,
)
from fpsim._kernels.watched import MAGNITUDES, WatchingStep

UNCHANGED, UNDERFLOWS, OVERFLOWS, LARGEST = range(4)  # vectors of tallies
TALLIES = 4
MOST_LEAVES = 2**24  # counts are as wide as the carrier: a tile's vectors count 2^31 in float32's

# What is counted. With SUMS, every chain step that leaves its sum as it was, those of zero leaves too: the caller knows how
# many leaves are zero, and that nothing overflows. With EVERYTHING, what the tallies' names say. From MAGNITUDES on,
# what `watched.py` says.
SUMS, EVERYTHING = range(2)

_INFINITY = float("inf")


class _Counting(Arithmetic):
    """Arithmetic that keeps the last leaf, and the overflows that the careful roundings met."""

    shows_leaves = True

    def __init__(self, builder: Any, lanes: int, constants: list[Any], mode: int, flags: int):
        super().__init__(builder, lanes, constants, mode, flags)
        self.overflowed: list[Vector] = []
        self.last_leaf: Vector | None = None

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        self.last_leaf = super().leaf(left, right, draw)
        return self.last_leaf

    def _edges(self, x: Vector, result: Vector) -> Vector:
        finite = x.absolute().compare("<", _INFINITY)
        self.overflowed.append(finite & result.absolute().compare(">", self[MAX_FINITE]))
        return super()._edges(x, result)


def _is_not_zero(left: Vector, right: Vector, term: Vector) -> Vector:
    """A mask of the lanes where left * right + term is not zero: float64 holds the product, and no sum underflows there."""
    if left.width == 64:
        return (left * right + term).compare("!=", 0.0)
    halves = [[x.part(first, 8).doubled() for x in (left, right, term)] for first in (0, 8)]
    masks = [(a * b + c).compare("!=", 0.0) for a, b, c in halves]
    return masks[0].beside(masks[1])


class _CountingStep(Step):
    """The operations of a tile, and their tallies."""

    def __init__(
        self, context: Any, builder: Any, tile: TileType, mode: int, flags: int, constants: Any, tallies: Any, what: int
    ):
        super().__init__(context, builder, tile, mode, flags, constants)
        scalars = [builder.extract_value(constants, i) for i in range(LENGTH)]
        self.arithmetic: _Counting = _Counting(builder, tile.lanes, scalars, mode, flags)
        self.tallies = vectors_of(builder, tallies, TALLIES)
        self.everything = what == EVERYTHING
        self.sums: list[Vector] = []

    def tally(self, place: int, masks: Vector) -> None:
        self.tallies[place] = self._with(place, masks)

    def _with(self, place: int, *masks: Vector) -> Vector:
        """A tally, one more in the lanes of each mask."""
        count = self.tallies[place].ints()
        for mask in (mask for given in masks for mask in given.split()):
            count = mask.counted_in(count)
        return count.floats()

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        product = self.arithmetic.leaf(left, right, draw)
        if self.everything and not self.arithmetic.exact_products:
            self._edges_of_leaf(left, right, product)
        return product

    def chain(self, old: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        arithmetic = self.arithmetic
        new = arithmetic.chain(old, left, right, (draws[0], draws[1]))
        same = new.compare("==", old)
        self.sums.append(new)
        if arithmetic.exact_products:
            self._underflows(old, left, right, new)
        if not self.everything:
            self.tally(UNCHANGED, same)
            return new
        given = left.compare("!=", 0.0) & right.compare("!=", 0.0)
        if arithmetic.exact_products:
            self.tally(UNCHANGED, same & given)
            finite = left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY)
            self._overflows(new, finite & old.absolute().compare("<", _INFINITY))
            return new
        leaf = arithmetic.last_leaf
        assert leaf is not None
        self.tally(UNCHANGED, same & leaf.compare("!=", 0.0))
        if arithmetic.careful:  # only flushing makes a zero of a sum of two values
            self.tally(UNDERFLOWS, new.compare("==", 0.0) & (old + leaf).compare("!=", 0.0))
            self.tally(UNDERFLOWS, given & leaf.compare("==", 0.0))
            self._overflows(new, given)
        else:
            self._edges_of_leaf(left, right, leaf)
            self._overflows(new, old.absolute().compare("<", _INFINITY) & leaf.absolute().compare("<", _INFINITY))
        return new

    def _underflows(self, old: Vector, left: Vector, right: Vector, new: Vector) -> None:
        """Tally the zeros that are rounded: only where some sum is zero is there anything to do."""

        def tallied() -> Vector:
            return self._with(UNDERFLOWS, new.compare("==", 0.0) & _is_not_zero(left.again(), right.again(), old))

        self.tallies[UNDERFLOWS] = unless_all(new.compare("!=", 0.0), self.tallies[UNDERFLOWS], tallied)

    def add(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        new = self.arithmetic.add(left, right, draw)
        self.tallies[UNCHANGED] = self._swamped(left, right, new)
        self.sums.append(new)
        if self.everything:
            self.tally(UNDERFLOWS, new.compare("==", 0.0) & (left + right).compare("!=", 0.0))
            self._overflows(new, left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY))
        return new

    def _swamped(self, left: Vector, right: Vector, new: Vector) -> Vector:
        """The tally of sums of two numbers other than zero that are one of the two.

        Among numbers that are neither zero nor NaN, whose bits are equal where they are; else with care.
        """

        def with_care() -> Vector:
            given = left.compare("!=", 0.0) & right.compare("!=", 0.0)
            return self._with(UNCHANGED, given & (new.compare("==", left) | new.compare("==", right)))

        if self.everything:
            return with_care()
        bits, left_bits, right_bits = (x.ints() for x in (new, left, right))
        least = in_pairs(smaller, (left_bits + left_bits).split() + (right_bits + right_bits).split())  # 0 for either zero
        usual = self._with(UNCHANGED, bits.compare("==", left_bits), bits.compare("==", right_bits))
        return unless_all(least.compare("!=", 0), usual, with_care)

    def _edges_of_leaf(self, left: Vector, right: Vector, leaf: Vector) -> None:
        given = left.compare("!=", 0.0) & right.compare("!=", 0.0)
        self.tally(UNDERFLOWS, given & leaf.compare("==", 0.0))
        finite = left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY)
        self._overflows(leaf, finite)

    def _overflows(self, result: Vector, finite: Vector) -> None:
        """What the careful roundings met since the last call; a native one overflows to infinity."""
        if self.arithmetic.native:
            self.tally(OVERFLOWS, finite & result.absolute().compare("==", _INFINITY))
        for mask in self.arithmetic.overflowed:
            self.tally(OVERFLOWS, mask)
        self.arithmetic.overflowed.clear()

    def _merge(self) -> None:
        super()._merge()
        for total in (total for sums in self.sums for total in sums.split()):
            self.tallies[LARGEST] = larger(total.absolute(), self.tallies[LARGEST])  # which a NaN leaves as it is
        self.sums.clear()

    def results(self, signature: Any, tile: Any, vectors: list[Vector], seen: Any, tallies: Any) -> Any:
        kept = tile_of(self.builder, tallies.type, self.tallies)
        values = [tile_of(self.builder, tile.type, vectors), self.tracked(seen), kept]
        return self.context.make_tuple(self.builder, signature.return_type, values)


def _observing(what: int) -> Any:
    """The class of steps that observes that."""
    return WatchingStep if what >= MAGNITUDES else _CountingStep


@intrinsic(prefer_literal=True)
def _leaf_tile(
    typing_context: Any, total: Any, seen: Any, tallies: Any, a: Any, a_offset: Any, b: Any, b_offset: Any,
    constants: Any, hashes: Any, place: Any, stride: Any, step: Any, mode: Any, flags: Any, what: Any,
) -> Any:  # fmt: skip
    """(leaf, seen, tallies)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes = mode.literal_value, flags.literal_value
        observing = _observing(what.literal_value)
        work = observing(context, builder, total, *codes, arguments[7], arguments[2], what.literal_value)
        a_data, b_data = data_of(context, builder, a, arguments[3]), data_of(context, builder, b, arguments[5])
        pairs = work.operands(a_data, arguments[4], b_data, arguments[6])
        draws = work.draws((hashes, arguments[8], arguments[9], arguments[10]), arguments[11])
        vectors = work.each(work.leaf, *zip(*pairs, strict=True), draws)
        return work.results(signature, arguments[0], vectors, arguments[1], arguments[2])

    given = (total, seen, tallies, a, a_offset, b, b_offset, constants, hashes, place, stride, step, mode, flags, what)
    return types.Tuple([total, seen, tallies])(*given), generate


@intrinsic(prefer_literal=True)
def _add_tiles(
    typing_context: Any, left: Any, right: Any, seen: Any, tallies: Any, constants: Any, hashes: Any, place: Any,
    stride: Any, step: Any, mode: Any, flags: Any, what: Any,
) -> Any:  # fmt: skip
    """(rounded(left + right), seen, tallies)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes = mode.literal_value, flags.literal_value
        observing = _observing(what.literal_value)
        work = observing(context, builder, left, *codes, arguments[4], arguments[3], what.literal_value)
        draws = work.draws((hashes, arguments[5], arguments[6], arguments[7]), arguments[8])
        lefts, rights = (vectors_of(builder, arguments[i], left.count) for i in (0, 1))
        vectors = work.each(work.add, lefts, rights, draws)
        return work.results(signature, arguments[0], vectors, arguments[2], arguments[3])

    given = (left, right, seen, tallies, constants, hashes, place, stride, step, mode, flags, what)
    return types.Tuple([left, seen, tallies])(*given), generate


@intrinsic(prefer_literal=True)
def _chain_tile(
    typing_context: Any, total: Any, seen: Any, tallies: Any, a: Any, a_offset: Any, b: Any, b_offset: Any,
    constants: Any, hashes: Any, place: Any, stride: Any, leaf_step: Any, step: Any, mode: Any, flags: Any, what: Any,
) -> Any:  # fmt: skip
    """(rounded(total + leaf), seen, tallies)."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        codes = mode.literal_value, flags.literal_value
        observing = _observing(what.literal_value)
        work = observing(context, builder, total, *codes, arguments[7], arguments[2], what.literal_value)
        a_data, b_data = data_of(context, builder, a, arguments[3]), data_of(context, builder, b, arguments[5])
        pairs = work.operands(a_data, arguments[4], b_data, arguments[6])
        where = (hashes, arguments[8], arguments[9], arguments[10])
        leaf_draws, draws = work.draws(where, arguments[11]), work.draws(where, arguments[12])
        totals = vectors_of(builder, arguments[0], total.count)
        vectors = work.each(work.chain, totals, *zip(*pairs, strict=True), leaf_draws, draws)
        return work.results(signature, arguments[0], vectors, arguments[1], arguments[2])

    given = (total, seen, tallies, a, a_offset, b, b_offset, constants, hashes, place, stride, leaf_step, step)
    return types.Tuple([total, seen, tallies])(*given, mode, flags, what), generate


@intrinsic
def _largest_lane(typing_context: Any, seen: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vector = builder.extract_value(arguments[0], 0)
        best = builder.extract_element(vector, ir.Constant(ir.IntType(32), 0))
        for lane in range(1, seen.lanes):
            value = builder.extract_element(vector, ir.Constant(ir.IntType(32), lane))
            best = builder.select(builder.fcmp_ordered(">", value, best), value, best)
        return best

    return seen.element(seen), generate


@lru_cache(maxsize=256)
def make_counted(element: str, rows: int, vectors: int, mode: int, flags: int, what: int) -> Any:
    """The kernel for one carrier, tile, mode and set of flags that observes `what`.

    Its arguments are those of `make_product`'s, and a flat array that receives TALLIES vectors for each tile, in the order
    of `passed`, or a number for each element, laid out as `out`.
    """
    kind, lanes = (np.float32, 16) if element == "f4" else (np.float64, 8)
    width = vectors * lanes
    size = rows * width
    track = flags & (TRACK | TRACK_SUMS)
    by_element = what >= MAGNITUDES
    tally_rows, tally_vectors = (rows, vectors) if by_element else (1, TALLIES)

    @kernel
    def counted(
        a: Any, b: Any, out: Any, leaves: int, panels: int, panel_stride: int, leaf_stride: int, first: int, last: int,
        out_stride: int, program: Any, stack: Any, row: Any, hashes: Any, limit: float, passed: Any, tallied: Any,
    ) -> None:  # fmt: skip
        previous = turn(mode, flags)
        constants = constants_of(row)
        for panel in range(panels):
            for group in range(first, last):
                a_start = group * leaves * rows
                b_start = panel * panel_stride
                place = group * rows * out_stride + panel * width
                top = zero_tile(kind, rows, vectors)
                seen = zero_tile(kind, 1, 1)
                tallies = zero_tile(kind, tally_rows, tally_vectors)
                height = 0
                for line in range(program.shape[0]):
                    operation = program[line, 0]
                    leaf = program[line, 1]
                    count = program[line, 2]
                    stride = program[line, 3]
                    node = program[line, 4]
                    if operation == CHAIN:
                        a_offset = a_start + leaf * rows
                        b_offset = b_start + leaf * leaf_stride
                        leaf_step = leaf + LEAF_STEPS
                        for _ in range(count):
                            top, seen, tallies = _chain_tile(
                                top, seen, tallies, a, a_offset, b, b_offset, constants, hashes, place, out_stride,
                                leaf_step, node, mode, flags, what,
                            )  # fmt: skip
                            a_offset += stride * rows
                            b_offset += stride * leaf_stride
                            leaf_step += stride
                            node += 1
                    elif operation == ADD:
                        height -= 1
                        left = load_tile(top, stack, (height - 1) * size, width)
                        top, seen, tallies = _add_tiles(
                            left, top, seen, tallies, constants, hashes, place, out_stride, node, mode, flags, what
                        )
                    else:
                        if height > 0:
                            store_tile(top, stack, (height - 1) * size, width)
                        height += 1
                        if operation == PUSH_LEAF:
                            top, seen, tallies = _leaf_tile(
                                top, seen, tallies, a, a_start + leaf * rows, b, b_start + leaf * leaf_stride,
                                constants, hashes, place, out_stride, leaf + LEAF_STEPS, mode, flags, what,
                            )  # fmt: skip
                        else:
                            top = zero_tile(kind, rows, vectors)
                store_tile(top, out, place, out_stride)
                if by_element:
                    store_tile(tallies, tallied, place, out_stride)
                else:
                    store_tile(tallies, tallied, (panel * passed.shape[1] + group) * TALLIES * lanes, 0)
                if track:
                    if not _largest_lane(seen) < limit:
                        passed[panel, group] = 1
        turn_back(previous, mode, flags)

    return counted


@kernel
def count_zero_leaves(values: Any, a: Any, b: Any, least: float, zeros: Any, underflows: Any) -> None:
    """For each k, how many products of a[k, :] and b[k, :] are zero when those of at most `least` become zero.

    a and b are the bits of finite magnitudes, as unsigned integers; `values` is any array of their type. `underflows` are
    those of nonzero factors. Every product of two factors is exact in float64, where it compares with `least`.
    """
    prefer_wide_vectors()
    rows, columns = a.shape[1], b.shape[1]
    some = np.empty(columns, b.dtype)
    for k in range(a.shape[0]):
        given_a, given_b = a[k], b[k]
        nonzero_a, least_a = _nonzero_and_least(given_a)
        nonzero_b, least_b = _nonzero_and_least(given_b)
        tiny = 0
        if nonzero_a and nonzero_b and np.float64(as_float(least_a)) * np.float64(as_float(least_b)) <= least:
            count = 0
            for j in range(given_b.size):
                if given_b[j] != 0 and np.float64(as_float(given_b[j])) * np.float64(as_float(least_a)) <= least:
                    some[count] = given_b[j]
                    count += 1
            few = some[:count]
            for i in range(given_a.size):
                factor = np.float64(as_float(given_a[i]))
                if factor != 0 and factor * np.float64(as_float(least_b)) <= least:
                    tiny += _at_most(values, few, factor, least)
        underflows[k] = tiny
        zeros[k] = rows * columns - np.int64(nonzero_a) * np.int64(nonzero_b) + tiny


@inlined
def _nonzero_and_least(bits: Any) -> Any:
    """How many are not zero, and the least of those."""
    one = bits.dtype.type(1)
    zeros, least = int_sub(one, one), int_sub(int_sub(one, one), one)
    for i in range(bits.size):
        less = int_sub(bits[i], one)  # zero becomes the largest number
        zeros = int_add(zeros, bits.dtype.type(bits[i] == 0))
        least = min(least, less)
    return bits.size - zeros, int_add(least, one)


@inlined
def _at_most(values: Any, bits: Any, factor: float, least: float) -> Any:
    """How many of the magnitudes have a product with the factor of at most `least`."""
    one = bits.dtype.type(1)
    limit = bits.dtype.type(as_bits(values.dtype.type(min(least / factor, 1e30))))
    if np.float64(as_float(limit)) * factor > least:
        limit = int_sub(limit, one)  # the quotient had been rounded upward
    found = int_sub(one, one)
    for j in range(bits.size):
        found = int_add(found, bits.dtype.type(bits[j] <= limit))
    return np.int64(found)
