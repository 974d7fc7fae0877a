"""Products in parts as one product: the parts of the factors side by side, pair after pair.

All pairs but the last count as +0 where they add up to NaN. What can be no NaN is laid out once for all the products of a
convolution or a batch; anything else product by product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.numbers.rounding import Rounding
from fpsim.sums.task import Sum

_Pair = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Along:
    """A factor, and the axis along which its parts are laid out; the axis may be that of several groups."""

    values: np.ndarray
    axis: int
    groups: int = 1

    def parts(self, task: Sum, side: int, room: int) -> np.ndarray:
        """In each group the parts that the pairs have on a side, one pair after the other, each in so much room."""
        assert task.split is not None
        shape, axis, pairs = self.values.shape, self.axis, task.split.pairs
        before, terms, after = shape[:axis], shape[axis] // self.groups, shape[axis + 1 :]
        parts = [part.reshape(*before, self.groups, terms, *after) for part in task.split.parts(self.values)]
        out = np.zeros((*before, self.groups, len(pairs), room, *after), self.values.dtype)
        for place, pair in zip(np.moveaxis(out, axis + 1, 0), pairs, strict=True):
            np.moveaxis(place, axis + 1, 0)[:terms] = np.moveaxis(parts[pair[side]], axis + 1, 0)
        return out.reshape(*before, self.groups * len(pairs) * room, *after)


@dataclass(frozen=True)
class SplitFactors:
    """Both factors of the products of all pairs of parts, of which the last pair's begin at the term `last`."""

    all: _Pair
    last: int

    @property
    def small(self) -> _Pair:
        """The same where the last pair's products are zeros."""
        return self._without(slice(self.last, None))

    @property
    def large(self) -> _Pair:
        """The same where all others are."""
        return self._without(slice(self.last))

    def _without(self, terms: slice) -> _Pair:
        left, right = (factor.copy() for factor in self.all)
        left[:, terms] = right[terms] = 0
        return left, right


def split_factors(task: Sum, a: np.ndarray, b: np.ndarray) -> SplitFactors:
    """The factors of a @ b in parts. Every pair begins a new block of the accumulator, and zeros fill up the one before."""
    room = _room(task, a.shape[1])
    left, right = Along(a, 1).parts(task, 0, room), Along(b, 0).parts(task, 1, room)
    return SplitFactors((left, right), left.shape[1] - room)


def in_parts(task: Sum, left: Along, right: Along, taps: int = 1) -> tuple[Sum, np.ndarray, np.ndarray]:
    """The sum and the factors of parts that many products in parts come to, where no sum can be NaN; else all as it is.

    A place along an axis stands for as many terms of a product as there are `taps`.
    """
    split, accumulator = task.split, task.accumulator
    if split is None or accumulator.kind not in (TREE, PARTS) or task.rounding is not Rounding.NEAREST_EVEN:
        return task, left.values, right.values
    count = left.values.shape[left.axis] // left.groups
    room = _room(task, count) if taps == 1 else count
    if room * taps != _room(task, room * taps) or not _stays_finite(task, left.values, right.values, room * taps):
        return task, left.values, right.values
    return task.of_parts, left.parts(task, 0, room), right.parts(task, 1, room)


def pairs_in_parts(task: Sum, a: np.ndarray, b: np.ndarray) -> tuple[Sum, np.ndarray, np.ndarray]:
    """`in_parts` of two batches of matrices, (n, i, k) and (n, k, j)."""
    return (task, a, b) if task.split is None else in_parts(task, Along(a, 2), Along(b, 1))


def _stays_finite(task: Sum, left: np.ndarray, right: np.ndarray, terms: int) -> bool:
    """Whether every part is finite, and so is every sum of so many terms a pair, whatever is rounded on the way.

    An addition to nearest errs by no more than either of its operands: a chain adds up to at most twice its terms'
    magnitudes, a chain of chains to four times; other trees are low, and 11 bits err by little.
    """
    split, formats = task.split, (task.target, task.accumulator.promoted or task.target)
    assert split is not None
    first, second = (float(np.max(np.abs(x), initial=0)) for x in (left, right))
    if not max(first, second) <= split.enclosing.max_finite or min(fmt.precision for fmt in formats) < 11:
        return False
    return first * second * terms * len(split.pairs) <= min(fmt.max_finite for fmt in formats) / 64


def _room(task: Sum, terms: int) -> int:
    """So many terms in whole blocks of what the accumulator takes at a time: an instruction's, a block, one for each lane."""
    accumulator, split, block = task.accumulator, task.split, 1
    assert split is not None
    if accumulator.unit is not None:
        row = accumulator.unit.instruction(split.enclosing, accumulator.format.name)
        block = max(row.block, 1 + row.swapped)
    elif accumulator.order.name in ("blocked", "lanes"):
        block = accumulator.order.parameters[0]
    return -(-terms // block) * block
