"""Products of matrices whose roundings are counted: `products`, with four vectors of tallies for each tile.

They are: additions that left a sum as it was, underflows, overflows, and the largest magnitude of a sum.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_add, int_max, int_min, prefer_wide_vectors, zeroed
from fpsim.backend.numba.observed import EVERYTHING as EVERYTHING, SUMS as SUMS, observes
from fpsim.backend.numba.sums_rounding import MAX_FINITE, Arithmetic
from fpsim.backend.numba.tile_operations import TileOperation
from fpsim.backend.numba.tiles import (
    HAS_MASK_REGISTERS,
    Stored,
    Vector,
    if_some_unset,
    in_pairs,
    larger,
    larger_by_magnitude,
    larger_magnitude,
    smaller_magnitude,
)

UNCHANGED, UNDERFLOWS, OVERFLOWS, LARGEST = range(4)  # vectors of tallies
TALLIES = 4
MOST_LEAVES = 2**24  # counts are as wide as the carrier: a tile's vectors count 2^31 in float32's

_INFINITY = float("inf")
_COUNTED_AT_ONCE = 2**16  # numbers, by counts of 32 bits


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
    parts = [[x.part(first, 8).doubled() for x in (left, right, term)] for first in (0, 8)]
    masks = [(a * b + c).compare("!=", 0.0) for a, b, c in parts]
    return masks[0].beside(masks[1])


@observes(SUMS, EVERYTHING)
class CountingTileOperation(TileOperation):
    """The operations of a tile, and their tallies."""

    arithmetic_type = _Counting
    arithmetic: _Counting
    tallies = TALLIES

    def keep(self, tallied: Stored, observer: int) -> None:
        self.tallied = tallied
        self.everything = observer == EVERYTHING
        self.stages = not self.everything
        self.running: dict[int, Any] = {}  # what is to be tallied: numbers, or vectors less than nothing by as much
        self.sums: list[Vector] = []

    def tally(self, place: int, masks: Vector) -> None:
        """One more for each lane that is set: in that lane, or in the first number where masks are numbers."""
        for mask in masks.split():
            self._add(place, mask.population() if HAS_MASK_REGISTERS else mask.numbers())

    def _add(self, place: int, counts: Any) -> None:
        if place in self.running:
            before = self.running[place]
            counts = self.builder.add(before, counts) if HAS_MASK_REGISTERS else before + counts
        self.running[place] = counts

    def _flush(self) -> None:
        """Tallies go back to where they lie."""
        for place, counts in self.running.items():
            if HAS_MASK_REGISTERS:
                self.tallied.increase(place, counts)
            else:
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

    def grow(self, total: Vector, leaf: Vector, draw: Vector | None) -> Vector:
        new = super().grow(total, leaf, draw)
        self._largest(new)
        self.tally(UNCHANGED, new.compare("==", total))
        return new

    def chain(self, old: Vector, left: Vector, right: Vector, *draws: Vector | None) -> Vector:
        arithmetic = self.arithmetic
        new = arithmetic.chain(old, left, right, (draws[0], draws[1]))
        self._largest(new)
        if arithmetic.exact_products:
            self._underflows(old, left, right, new)
        if not self.everything:
            self.tally(UNCHANGED, new.compare("==", old))
            return new
        same, nonzero = new.compare("==", old), left.compare("!=", 0.0) & right.compare("!=", 0.0)
        if arithmetic.exact_products:
            self.tally(UNCHANGED, same & nonzero)
            finite = left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY)
            self._overflows(new, finite & old.absolute().compare("<", _INFINITY))
            return new
        leaf = arithmetic.last_leaf
        assert leaf is not None
        self.tally(UNCHANGED, same & leaf.compare("!=", 0.0))
        if arithmetic.careful:  # only flushing makes a zero of a sum of two values
            self.tally(UNDERFLOWS, new.compare("==", 0.0) & (old + leaf).compare("!=", 0.0))
            self.tally(UNDERFLOWS, nonzero & leaf.compare("==", 0.0))
            self._overflows(new, nonzero)
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
            nonzero = left.compare("!=", 0.0) & right.compare("!=", 0.0)
            self.tally(UNCHANGED, nonzero & (new.compare("==", left) | new.compare("==", right)))
            self.tally(UNDERFLOWS, new.compare("==", 0.0) & (left + right).compare("!=", 0.0))
            self._overflows(new, left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY))
        elif HAS_MASK_REGISTERS:  # of two terms that are not zero, a finite sum is never the smaller one
            nonzero = smaller_magnitude(left, right).compare("!=", 0.0)
            self.tally(UNCHANGED, nonzero & new.compare("==", larger_by_magnitude(left, right)))
        else:  # a sum is one of its terms where the other is zero too: two of both zero, one of one
            less = [
                same.numbers() - zero.numbers()
                for term in (left, right)
                for same, zero in zip(new.compare("==", term).split(), term.compare("==", 0.0).split(), strict=True)
            ]
            self._add(UNCHANGED, in_pairs(operator.add, less))
        return new

    def _edges_of_leaf(self, left: Vector, right: Vector, leaf: Vector) -> None:
        nonzero = left.compare("!=", 0.0) & right.compare("!=", 0.0)
        self.tally(UNDERFLOWS, nonzero & leaf.compare("==", 0.0))
        finite = left.absolute().compare("<", _INFINITY) & right.absolute().compare("<", _INFINITY)
        self._overflows(leaf, finite)

    def _overflows(self, result: Vector, finite: Vector) -> None:
        """What the careful roundings met since the last call; the carrier's own overflow to infinity."""
        if self.arithmetic.format_is_carrier:
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


@kernel
def sum_tallies(tallied: Any, counts: Any, overflowed: Any, sums: Any) -> float:
    """Add the tallies of the tiles that did not reach the limit to `sums`, by kind; the largest of their magnitudes.

    `tallied` are the tiles' vectors (tile, kind, lane), `counts` the same as unsigned integers, `overflowed` a number a tile.
    """
    prefer_wide_vectors()
    lanes = tallied.shape[2]
    largest = zeroed(lanes, tallied.dtype)
    totals = zeroed((LARGEST, lanes), np.uint64)
    for tile in range(tallied.shape[0]):
        if overflowed[tile]:
            continue
        for kind in range(LARGEST):
            for lane in range(lanes):
                totals[kind, lane] += counts[tile, kind, lane]
        for lane in range(lanes):
            largest[lane] = max(largest[lane], tallied[tile, LARGEST, lane])
    most = np.float64(0)
    for lane in range(lanes):
        most = max(most, np.float64(largest[lane]))
        for kind in range(LARGEST):
            sums[kind] += np.int64(totals[kind, lane])
    return most


@kernel
def count_sums(x: Any, y: Any, result: Any, addend_only: bool, most: float, counts: Any) -> float:
    """Add to `counts`, of rounded sums x + y: how many are one of two nonzero terms (with `addend_only`: are x, y being
    nonzero), how many are zero and exactly are not, and how many of finite terms may exceed `most` in magnitude; the largest
    magnitude of a sum, NaN aside. Matrices in C order; y may be one row, of all.
    """
    prefer_wide_vectors()
    none = as_bits(result.dtype.type(0))
    highest, limit = none, result.dtype.type(most)
    for row in range(result.shape[0]):
        other = row if y.shape[0] > 1 else 0
        for start in range(0, result.shape[1], _COUNTED_AT_ONCE):
            stop = int_min(start + _COUNTED_AT_ONCE, result.shape[1])
            left, right, total = x[row, start:stop], y[other, start:stop], result[row, start:stop]
            lost = underflows = reaching = np.uint32(0)
            for i in range(total.size):
                both = (right[i] != 0) & ((left[i] != 0) | addend_only)
                lost = int_add(lost, np.uint32(both & ((total[i] == left[i]) | ((total[i] == right[i]) & (not addend_only)))))
                underflows = int_add(underflows, np.uint32((total[i] == 0) & (left[i] != -right[i])))
                finite = (abs(left[i]) < np.inf) & (abs(right[i]) < np.inf)
                reaching = int_add(reaching, np.uint32(finite & (not abs(total[i]) < limit)))
                highest = int_max(highest, as_bits(abs(total[i])) if total[i] == total[i] else none)
            counts[0] += np.int64(lost)
            counts[1] += np.int64(underflows)
            counts[2] += np.int64(reaching)
    return np.float64(as_float(highest))


@kernel
def count_roundings(x: Any, result: Any, most: float, counts: Any) -> None:
    """Add to `counts`, of numbers x and their roundings: how many nonzero ones became zero, and how many finite ones are at
    least `most` in magnitude. Flat arrays.
    """
    prefer_wide_vectors()
    underflows = reaching = np.int64(0)
    for i in range(x.size):
        underflows += np.int64((result[i] == 0) & (x[i] != 0))
        reaching += np.int64((abs(x[i]) < np.inf) & (abs(x[i]) >= most))
    counts[0] += underflows
    counts[1] += reaching
