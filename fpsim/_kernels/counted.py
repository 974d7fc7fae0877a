"""Products of matrices whose roundings are counted: `products`, with four vectors of tallies for each tile.

They are: additions that left a sum as it was, underflows, overflows, and the largest magnitude of a sum.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fpsim._kernels.compiler import as_bits, as_float, inlined, int_add, int_sub, kernel, prefer_wide_vectors
from fpsim._kernels.products import OBSERVERS, Step
from fpsim._kernels.sums_rounding import MAX_FINITE, Arithmetic
from fpsim._kernels.tiles import (
    HAS_MASK_REGISTERS,
    Stored,
    Vector,
    if_some_unset,
    in_pairs,
    larger,
    larger_by_magnitude,
    larger_magnitude,
)

UNCHANGED, UNDERFLOWS, OVERFLOWS, LARGEST = range(4)  # vectors of tallies
TALLIES = 4
MOST_LEAVES = 2**24  # counts are as wide as the carrier: a tile's vectors count 2^31 in float32's

# What is counted. With SUMS, every chain step that leaves its sum as it was, those of zero leaves too: the caller knows how
# many leaves are zero, and that nothing overflows. With EVERYTHING, what the tallies' names say.
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

    arithmetic_type = _Counting
    arithmetic: _Counting
    tallies = TALLIES

    def keep(self, tallied: Stored, what: int) -> None:
        self.tallied = tallied
        self.everything = what == EVERYTHING
        self.running: dict[int, Vector] = {}  # less than nothing by what is to be tallied
        self.sums: list[Vector] = []

    def tally(self, place: int, masks: Vector) -> None:
        """One more in the lanes of each mask."""
        for mask in masks.split():
            self._add(place, mask.numbers())

    def _add(self, place: int, numbers: Vector) -> None:
        self.running[place] = self.running[place] + numbers if place in self.running else numbers

    def _flush(self) -> None:
        """Tallies go back to where they lie."""
        for place, counts in self.running.items():
            self.tallied[place] = (self.tallied[place].ints() - counts).floats()
        self.running = {}

    def tracked(self, seen: Any) -> Any:
        self._flush()
        if self.sums:
            self.tallied[LARGEST] = larger_magnitude(in_pairs(larger_magnitude, self.sums), self.tallied[LARGEST])
        return super().tracked(seen)

    def leaf(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        product = self.arithmetic.leaf(left, right, draw)
        if self.everything and not self.arithmetic.exact_products:
            self._edges_of_leaf(left, right, product)
        return product

    def chain(self, old: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        arithmetic = self.arithmetic
        new = arithmetic.chain(old, left, right, (draws[0], draws[1]))
        self._largest(new)
        if arithmetic.exact_products:
            self._underflows(old, left, right, new)
        if not self.everything:
            self.tally(UNCHANGED, new.compare("==", old))
            return new
        same, given = new.compare("==", old), left.compare("!=", 0.0) & right.compare("!=", 0.0)
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

        def tally() -> None:
            outside, self.running = self.running, {}  # of this branch alone
            self.tally(UNDERFLOWS, new.compare("==", 0.0) & _is_not_zero(left.again(), right.again(), old))
            self._flush()
            self.running = outside

        if_some_unset(new.compare("!=", 0.0), tally)

    def add(self, left: Vector, right: Vector, draw: Vector | None) -> Vector:
        new = self.arithmetic.add(left, right, draw)
        self._largest(new)
        if self.everything:
            given = left.compare("!=", 0.0) & right.compare("!=", 0.0)
            self.tally(UNCHANGED, given & (new.compare("==", left) | new.compare("==", right)))
            self.tally(UNDERFLOWS, new.compare("==", 0.0) & (left + right).compare("!=", 0.0))
            self._overflows(new, left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY))
        elif HAS_MASK_REGISTERS:  # of two terms that are not zero, a finite sum is never the smaller one
            given = left.compare("!=", 0.0) & right.compare("!=", 0.0)
            self.tally(UNCHANGED, given & new.compare("==", larger_by_magnitude(left, right)))
        else:  # a sum is one of its terms where the other is zero too: two of both zero, one of one
            less = [
                same.numbers() - zero.numbers()
                for term in (left, right)
                for same, zero in zip(new.compare("==", term).split(), term.compare("==", 0.0).split(), strict=True)
            ]
            self._add(UNCHANGED, in_pairs(operator.add, less))
        return new

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

    def _largest(self, sums: Vector) -> None:
        if HAS_MASK_REGISTERS:
            self.sums += sums.split()
            return
        for total in sums.split():
            self.tallied[LARGEST] = larger(total.absolute(), self.tallied[LARGEST])  # which a NaN leaves as it is


OBSERVERS.update({SUMS: _CountingStep, EVERYTHING: _CountingStep})


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
