"""Counts of results, histograms of exponents and measured errors: values that add up over steps and operations."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import TypeVar

_Key = TypeVar("_Key")


@dataclass(frozen=True)
class Counts:
    """Counts of results: how many there were and what rounding did to them.

    elements     results that were rounded
    overflows    finite before rounding, beyond the format's range
    underflows   nonzero before, zero after
    nonfinite    infinite or NaN
    updates      elements of parameters that a step, or an operation outside of one, was meant to change
    lost         those of them that it left as they were, or whose decay left no trace
    subnormals   results that are subnormal numbers of the format
    made         infinite or NaN although every operand of the operation was finite
    additions    rounded additions inside products and sums
    swamped      those of them that lost a nonzero addend
    """

    elements: int = 0
    overflows: int = 0
    underflows: int = 0
    nonfinite: int = 0
    updates: int = 0
    lost: int = 0
    subnormals: int = 0
    made: int = 0
    additions: int = 0
    swamped: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


def summed(pairs: Iterable[tuple[_Key, Counts]]) -> dict[_Key, Counts]:
    """The sums of the counts that have a key in common."""
    sums: dict[_Key, Counts] = {}
    for key, counts in pairs:
        sums[key] = sums.get(key, Counts()) + counts
    return sums


@dataclass(frozen=True)
class Range:
    """The largest and the smallest magnitude of finite, nonzero results; without any, 0 and infinity, which `|` leaves out."""

    largest: float = 0.0
    smallest: float = math.inf

    def __bool__(self) -> bool:
        return self.largest > 0

    def __or__(self, other: Range) -> Range:
        return Range(max(self.largest, other.largest), min(self.smallest, other.smallest))


@dataclass(frozen=True)
class Histogram:
    """How many numbers have which binary exponent floor(log2 |x|): `counts[i]` of them `first + i`.

    zeros, infinite, nan : the numbers that have none
    """

    first: int = 0
    counts: tuple[int, ...] = ()
    zeros: int = 0
    infinite: int = 0
    nan: int = 0

    @property
    def total(self) -> int:
        """How many numbers were seen."""
        return sum(self.counts) + self.zeros + self.infinite + self.nan

    def share(self, exponent: int) -> float:
        """The share of the numbers seen that have the exponent; 0 where nothing was seen."""
        index = exponent - self.first
        inside = 0 <= index < len(self.counts)
        return self.counts[index] / self.total if inside and self.total else 0.0

    def __add__(self, other: Histogram) -> Histogram:
        seen = [part for part in (self, other) if part.counts]
        first = min((part.first for part in seen), default=0)
        counts = [0] * max((part.first + len(part.counts) - first for part in seen), default=0)
        for part in seen:
            for index, count in enumerate(part.counts, part.first - first):
                counts[index] += count
        specials = self.zeros + other.zeros, self.infinite + other.infinite, self.nan + other.nan
        return Histogram(first, tuple(counts), *specials)


@dataclass(frozen=True)
class Error:
    """How far results are from those of the float64 shadow, over `elements` of them that are finite in both.

    squares      the sum of the squared differences
    reference    the sum of the shadow's squares
    ulps         the largest difference in units in the last place of the shadow's result, in the format of the results
    """

    elements: int = 0
    squares: float = 0.0
    reference: float = 0.0
    ulps: float = 0.0

    @property
    def relative(self) -> float:
        """The 2-norm of the differences over that of the shadow; 0 where both are zero, NaN where nothing was compared."""
        if not self.elements:
            return math.nan
        if not self.squares:
            return 0.0
        return math.sqrt(self.squares / self.reference) if self.reference else math.inf

    def __add__(self, other: Error) -> Error:
        sums = self.elements + other.elements, self.squares + other.squares, self.reference + other.reference
        return Error(*sums, max(self.ulps, other.ulps))
