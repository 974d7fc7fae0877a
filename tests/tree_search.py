"""The worst trees of rounded additions, found by dynamic programming over heights: an independent oracle for h u.

computed - exact - factor * sum |x_i| of a tree is what its two subtrees have of it and one rounding error more, so the worst
tree of each computed value consists of worst trees. Scaling by 2 scales everything: significands of p bits stand for all
numbers. The smaller operand is tried down to 2^-(p + 3) of the larger; what is smaller still is lost, as that is. Values are
float64, with a few roundings of 2^-53: whoever needs certainty evaluates the tree.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

_SIGNS = (1, -1)


class Search:
    """All trees of p-bit numbers, one height after the other; additions to nearest, ties to even or (`any_ties`) either way."""

    def __init__(self, precision: int, factor: float, any_ties: bool = False):
        self.p, self.ties = precision, (np.floor, np.ceil) if any_ties else (None,)
        self.least = 2 ** (precision - 1)  # significands are whole numbers
        self.numbers = np.arange(self.least, 2 * self.least, dtype=np.float64)
        self.best = [dict.fromkeys(_SIGNS, -factor * self.numbers)]  # by height, sign and significand
        self.origins: list[dict[int, np.ndarray]] = [{}]

    def grow(self) -> float:
        """Trees of one more level; the largest computed - exact - factor * sum |x_i| of any so far."""
        old, new = self.best[-1], {sign: self.best[-1][sign].copy() for sign in _SIGNS}
        origins = {sign: np.full((self.least, 5), -1) for sign in _SIGNS}
        for shift in range(self.p + 4):
            for left in _SIGNS:
                for right in _SIGNS:
                    total = left * self.numbers[:, None] + right * 2.0**-shift * self.numbers
                    value = old[left][:, None] + 2.0**-shift * old[right]
                    for tie in self.ties:
                        self._round(total, value, tie, (shift, left, right), new, origins)
        self.best.append(new)
        self.origins.append(origins)
        return max(float(new[sign].max()) for sign in _SIGNS)

    def _round(self, total: Any, value: Any, tie: Any, how: tuple[int, ...], new: Any, origins: Any) -> None:
        mantissa, exponent = np.frexp(np.abs(total))
        exact = mantissa * 2.0**self.p
        whole = np.rint(exact)
        if tie is not None:
            whole = np.where(exact % 1 == 0.5, tie(exact), whole)
        unit = 2.0 ** (exponent - self.p)
        excess = value + (whole - exact) * unit * np.sign(total)
        carried = whole == 2 * self.least
        whole, unit = np.where(carried, self.least, whole), np.where(carried, 2 * unit, unit)
        excess = excess / unit
        for sign in _SIGNS:
            rows = (whole - self.least).astype(np.int64)
            places = np.nonzero((np.sign(total) == sign) & (excess > new[sign][np.where(total == 0, 0, rows)]))
            order = np.argsort(excess[places])  # the last of several assignments stays
            places = tuple(part[order] for part in places)
            new[sign][rows[places]] = excess[places]
            origins[sign][rows[places]] = np.stack([*places, *(np.full(len(order), item) for item in how)], axis=-1)

    def worst(self) -> Any:
        """The tree of the largest excess: nested pairs of exact leaves."""
        _, sign, row = max((float(value), sign, row) for sign in _SIGNS for row, value in enumerate(self.best[-1][sign]))
        return self._tree(len(self.best) - 1, sign, row)

    def _tree(self, height: int, sign: int, row: int) -> Any:
        """That of a computed value sign * (least + row)."""
        if height == 0:
            return Fraction(sign * (self.least + row))
        first, second, shift, left, right = (int(item) for item in self.origins[height][sign][row])
        if first < 0:
            return self._tree(height - 1, sign, row)
        pair = self._tree(height - 1, left, first), scaled(self._tree(height - 1, right, second), Fraction(1, 2**shift))
        size = abs(left * (self.least + first) + right * Fraction(self.least + second, 2**shift))
        steps = Fraction(1)
        while rounded(size * steps, self.p) >= 2 * self.least:
            steps /= 2
        while rounded(size * steps, self.p) < self.least:
            steps *= 2
        return scaled(pair, steps)


def scaled(tree: Any, factor: Fraction) -> Any:
    return tuple(scaled(part, factor) for part in tree) if isinstance(tree, tuple) else tree * factor


def rounded(x: Fraction, precision: int) -> Fraction:
    """To nearest even with p bits and any exponent."""
    if x == 0:
        return x
    unit = Fraction(1)
    while abs(x) >= unit * 2**precision:
        unit *= 2
    while abs(x) < unit * 2 ** (precision - 1):
        unit /= 2
    return round(x / unit) * unit


def evaluate(tree: Any, precision: int) -> tuple[Fraction, Fraction, Fraction, int]:
    """(computed, exact, sum of magnitudes, height) with additions to nearest even."""
    if not isinstance(tree, tuple):
        return tree, tree, abs(tree), 0
    parts = [evaluate(part, precision) for part in tree]
    computed, exact, size = (sum(part[place] for part in parts) for place in range(3))
    return rounded(computed, precision), exact, size, 1 + max(part[3] for part in parts)
