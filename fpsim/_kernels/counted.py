"""Products of matrices whose roundings are counted: `products`, with four vectors of tallies for each tile.

They are: additions that left a sum as it was, underflows, overflows, and the largest magnitude of a sum.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from fpsim._kernels.compiler import (
    VECTOR_BYTES,
    as_bits,
    as_float,
    inlined,
    int_add,
    int_and,
    int_or,
    int_sub,
    kernel,
    prefer_wide_vectors,
    shift_right,
)
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
    smaller_magnitude,
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
            given = smaller_magnitude(left, right).compare("!=", 0.0)
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
def sum_tallies(tallied: Any, counts: Any, passed: Any, sums: Any) -> float:
    """Add the tallies of the tiles that did not pass the limit to `sums`, by kind; the largest of their magnitudes.

    `tallied` are the tiles' vectors (tile, kind, lane), `counts` the same as unsigned integers, `passed` a number a tile.
    """
    prefer_wide_vectors()
    lanes = tallied.shape[2]
    largest = np.zeros(lanes, tallied.dtype)
    totals = np.zeros((LARGEST, lanes), np.uint64)
    for tile in range(tallied.shape[0]):
        if passed[tile]:
            continue
        for kind in range(LARGEST):
            for lane in range(lanes):
                totals[kind, lane] += counts[tile, kind, lane]
        for lane in range(lanes):
            largest[lane] = max(largest[lane], tallied[tile, LARGEST, lane])
    for kind in range(LARGEST):
        sums[kind] += np.int64(totals[kind].sum())
    return np.float64(largest.max())


@kernel
def count_sums(x: Any, y: Any, result: Any, addend_only: bool, most: float, counts: Any) -> float:
    """Add to `counts`, of rounded sums x + y: how many are one of two nonzero terms (with `addend_only`: are x, y being
    nonzero), how many are zero and exactly are not, and how many of finite terms reach `most` in magnitude; the largest
    magnitude of a sum, NaN aside. Flat arrays.
    """
    prefer_wide_vectors()
    lost = underflows = reaching = np.int64(0)
    none = largest = as_bits(0.0)
    for i in range(result.size):
        left, right, total = np.float64(x[i]), np.float64(y[i]), np.float64(result[i])
        exact = left + right
        both = (right != 0) & ((left != 0) | addend_only)
        lost += np.int64(both & ((total == left) | ((total == right) & (not addend_only))))
        underflows += np.int64((total == 0) & (exact != 0))
        reaching += np.int64((abs(left) < np.inf) & (abs(right) < np.inf) & (abs(exact) >= most))
        largest = max(largest, as_bits(abs(total)) if total == total else none)
    counts[0] += lost
    counts[1] += underflows
    counts[2] += reaching
    return as_float(largest)


@kernel
def count_zero_leaves(values: Any, a: Any, b: Any, positive: float, negative: float, zeros: Any, underflows: Any) -> None:
    """For each k, how many products of a[:, k] and b[k, :] are zero when those up to a magnitude become zero.

    The magnitude is that for positive or for negative products. a and b are the bits of finite numbers, as unsigned integers;
    `values` is any array of their float type. `underflows` are those of nonzero factors. Every product of two factors is exact
    in float64, where it is compared.
    """
    prefer_wide_vectors()
    rows, leaves = a.shape
    columns = b.shape[1]
    one = a.dtype.type(1)
    none = int_sub(one, one)
    most = int_sub(none, one)
    magnitude, sign = shift_right(most, one), a.dtype.type(8 * a.itemsize - 1)
    most_lost, parts = max(positive, negative), 1 if positive == negative else 2
    nonzero, least_a, limits = np.zeros(leaves, a.dtype), np.full(leaves, most), np.zeros(leaves, a.dtype)
    for i in range(rows):
        row = a[i]
        for k in range(leaves):
            less = int_sub(int_and(row[k], magnitude), one)  # zero becomes the largest number
            nonzero[k] = int_add(nonzero[k], a.dtype.type(less != most))
            least_a[k] = min(least_a[k], less)
    for k in range(leaves):
        row = b[k]
        found, least_b = none, most
        for j in range(columns):
            less = int_sub(int_and(row[j], magnitude), one)
            found = int_add(found, a.dtype.type(less != most))
            least_b = min(least_b, less)
        zeros[k] = rows * columns - np.int64(nonzero[k]) * np.int64(found)
        if nonzero[k] and found:
            factor = np.float64(as_float(int_add(least_b, one)))
            if np.float64(as_float(int_add(least_a[k], one))) * factor <= most_lost:
                limits[k] = a.dtype.type(_largest_factor(values, factor, most_lost))
    per_line = VECTOR_BYTES // a.itemsize
    stride = (columns + per_line - 1) // per_line * per_line
    # Lines of what is compared with a limit, for every k that is looked at: of all of b's row, or of each sign by itself.
    room, has_lines = np.empty(leaves * parts * stride + per_line, b.dtype), np.zeros(leaves, np.bool_)
    first = -room.ctypes.data % VECTOR_BYTES // a.itemsize  # whole lines of the cache are read in half the time
    small = np.empty(leaves + 1, np.int64)  # terms whose factor may be too small
    for i in range(rows):
        row = a[i]
        some = none
        for k in range(leaves):
            some = int_or(some, a.dtype.type(int_sub(int_and(row[k], magnitude), one) < limits[k]))
        if some == none:
            continue
        count = np.int64(0)
        for k in range(leaves):  # without a branch, which nobody could predict
            small[count] = k
            count += np.int64(int_sub(int_and(row[k], magnitude), one) < limits[k])
        for place in range(count):
            k = small[place]
            bits = int_and(row[k], magnitude)
            if not has_lines[k]:
                has_lines[k] = True
                for part in range(parts):
                    line = room[first + (k * parts + part) * stride : first + (k * parts + part) * stride + columns]
                    for j in range(columns):  # zero, and the other sign, become the largest number without a sign
                        less = int_and(int_sub(int_and(b[k, j], magnitude), one), magnitude)
                        line[j] = less if parts == 1 or shift_right(b[k, j], sign) == part else magnitude
            for part in range(parts):
                least = positive if parts == 1 or shift_right(row[k], sign) == part else negative
                if least == 0:
                    continue
                line = room[first + (k * parts + part) * stride : first + (k * parts + part) * stride + columns]
                limit = a.dtype.type(_largest_factor(values, np.float64(as_float(bits)), least))
                tiny = none
                for j in range(columns):  # the sign of a difference: masks take longer to count
                    tiny = int_add(tiny, shift_right(int_sub(line[j], limit), sign))
                underflows[k] += np.int64(tiny)
                zeros[k] += np.int64(tiny)


@inlined
def _largest_factor(values: Any, factor: float, least: float) -> Any:
    """The bits of the largest magnitude whose product with the factor, which is not zero, is at most `least`."""
    limit = as_bits(values.dtype.type(least / factor))
    return limit - np.int64(np.float64(as_float(limit)) * factor > least)  # the quotient may round upward, to infinity even
