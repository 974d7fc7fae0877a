"""Counts of what rounding did while a product was accumulated."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """What happened in the sums of products: pass one as ``counters=``, and every call adds to it.

    additions   rounded additions, those to the +0 that a chain starts from included
    swamped     additions that lost an addend: a nonzero leaf left its chain as it was, or one of two nonzero partial sums
                was the result. A product that underflowed to zero is no nonzero leaf.
    overflows   roundings (of products, of additions, and the last one to the result's format) that overflowed: of numbers
                whose rounding with an unbounded exponent exceeds the largest finite one, whether infinity, NaN or the
                largest number came of it. Infinities that were there before are not counted.
    underflows  such roundings that made a zero of what is not zero. Subnormal results are not counted.
    largest     the largest magnitude of a sum (infinity where one was reached); a NaN is passed over

    Counts do not depend on the number of threads. An object must not be used by two calls at the same time.
    """

    additions: int = 0
    swamped: int = 0
    overflows: int = 0
    underflows: int = 0
    largest: float = 0.0

    def add(self, other: Counters) -> None:
        """Add what another object has counted."""
        self.additions += other.additions
        self.swamped += other.swamped
        self.overflows += other.overflows
        self.underflows += other.underflows
        self.largest = max(self.largest, other.largest)

    def clear(self) -> None:
        """Start again from nothing."""
        self.additions = self.swamped = self.overflows = self.underflows = 0
        self.largest = 0.0
