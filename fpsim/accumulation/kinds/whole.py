"""Sums that are what they are, without a format: exact ones, and the library's own."""

from __future__ import annotations

from fpsim.accumulation.kinds.kind import Asked, Kind
from fpsim.numbers.formats import FP64, Format
from fpsim.numbers.modes import Rounding


class Exact(Kind):
    """The exact sum of exact products and the addend, rounded once to the result's format."""

    name = "exact"
    stands_alone = True
    own_addends = 2**31
    computes = False
    uncounted = "it rounds once, and loses nothing before"

    def held(self, accumulator: Asked) -> Format | None:
        return None


class Native(Kind):
    """The library's own product, in whatever order and format it computes."""

    name = "native"
    stands_alone = True
    is_symmetric = False
    uncounted = "the library's own product shows none of its additions"

    def held(self, accumulator: Asked) -> Format | None:
        return FP64  # holds whatever the library gives

    def computing_formats(self, accumulator: Asked, rounding: Rounding) -> tuple[Format, ...]:
        if rounding is not Rounding.NEAREST_EVEN:
            raise ValueError(f'accumulate="native" computes in nearest-even only, not {rounding}')
        return ()


EXACT, NATIVE = Exact(), Native()
