"""Products in parts as one product: the parts of the factors side by side, pair after pair."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fpsim.sums.task import Sum

_Pair = tuple[np.ndarray, np.ndarray]


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
    assert task.split is not None
    pairs, terms = task.split.pairs, a.shape[1]
    left, right = (task.split.parts(x) for x in (a, b))
    room = -(-terms // _block(task)) * _block(task)
    both = np.zeros((len(a), len(pairs), room), a.dtype), np.zeros((len(pairs), room, b.shape[1]), b.dtype)
    for place, (i, j) in enumerate(pairs):
        both[0][:, place, :terms], both[1][place, :terms] = left[i], right[j]
    leaves = len(pairs) * room
    return SplitFactors((both[0].reshape(len(a), leaves), both[1].reshape(leaves, b.shape[1])), leaves - room)


def _block(task: Sum) -> int:
    """How many terms the accumulator takes at a time: those of an instruction, of a block, one for each lane."""
    accumulator, split = task.accumulator, task.split
    assert split is not None
    if accumulator.unit is not None:
        row = accumulator.unit.instruction(split.enclosing, accumulator.format.name)
        return max(row.block, 1 + row.swapped)
    order = accumulator.order
    return int(order.parameters[0]) if order.name in ("blocked", "lanes") else 1
