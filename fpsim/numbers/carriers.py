"""What rounding kernels get: for each carrier, format and mode a row of integers.

A carrier is the dtype, float32 or float64, that a narrower format's values are held in.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache

import numpy as np

from fpsim.backend import numba as kernels
from fpsim.numbers.binary import BinaryFloat
from fpsim.numbers.modes import Rounding


class _Carrier:
    """float32 or float64 as the dtype that a narrower format's values are held in."""

    def __init__(self, floating: type, integer: type, precision: int, emin: int, emax: int):
        self.floating, self.integer = floating, integer
        self.precision, self.emin, self.emax = precision, emin, emax
        self.sign = np.iinfo(integer).min

    def bits(self, value: float) -> int:
        """The bits of a value that the carrier holds exactly."""
        return int(np.array(value, dtype=self.floating).view(self.integer))

    def first_reaching(self, bound: Fraction, inclusive: bool) -> int:
        """The bits of the carrier's least positive magnitude >= bound (> bound if not inclusive), or infinity's."""
        infinity = self.bits(float("inf"))
        if bound >= Fraction(2) ** (self.emax + 1):
            return infinity
        try:
            with np.errstate(over="ignore"):
                place = min(self.bits(float(bound)), infinity - 1)
        except OverflowError:  # a bound between float64's largest value and 2^1024
            place = infinity - 1

        def reaches(bits: int) -> bool:
            value = Fraction(float(np.array(bits, dtype=self.integer).view(self.floating)))
            return value >= bound if inclusive else value > bound

        while place > 0 and reaches(place - 1):
            place -= 1
        while place < infinity and not reaches(place):
            place += 1
        return place

    def rounds(self, fmt: BinaryFloat, rounding: Rounding) -> bool:
        """Whether the kernel for this carrier rounds to the format: no number it uses leaves the carrier's range."""
        stochastic = rounding is Rounding.STOCHASTIC
        emin = fmt.emin - 1 if fmt.flush and stochastic else fmt.emin
        # A draw of 32 bits cannot be shifted out of 32: float32 needs a bit to drop.
        return (
            fmt.precision <= self.precision - int(stochastic and self.precision < 32)
            and emin >= self.emin
            and max(fmt.emax, fmt.emin + self.precision - fmt.precision) <= self.emax
        )


_CARRIERS = {
    np.dtype(np.float32): _Carrier(np.float32, np.int32, 24, -126, 127),
    np.dtype(np.float64): _Carrier(np.float64, np.int64, 53, -1022, 1023),
}


@lru_cache(maxsize=1024)
def rounding_constants(fmt: BinaryFloat, rounding: Rounding, dtype: np.dtype) -> np.ndarray | None:
    """The row of integers that a rounding kernel gets (named in `backend/numba/rounding.py`), read-only.

    None where the carrier's own range is too small for the kernel's intermediates.
    """
    carrier = _CARRIERS[dtype]
    if not carrier.rounds(fmt, rounding):
        return None
    p = fmt.precision
    dropped = carrier.precision - p
    normal_top = Fraction(fmt.max_finite)
    ulp = Fraction(2) ** (fmt.emax - p + 1)
    infinity, nan = carrier.bits(float("inf")), carrier.bits(float("nan"))
    overflow = carrier.bits(fmt.max_finite) if fmt.saturate else infinity if fmt.has_infinity else nan
    max_finite = carrier.bits(fmt.max_finite)
    outward = (carrier.first_reaching(normal_top, inclusive=False), overflow)
    inward = (outward[0], max_finite)
    flush_at = Fraction(2) ** fmt.emin
    half_below, all_below = Fraction(2) ** (fmt.emin - p - 1), Fraction(2) ** (fmt.emin - p)
    last_is_odd = p == 1 or (normal_top / ulp) % 2 == 1
    nearest_flush = carrier.first_reaching(flush_at - half_below, inclusive=True)
    inward_flush = carrier.first_reaching(flush_at, inclusive=True)
    outward_flush = carrier.first_reaching(flush_at - all_below, inclusive=False)
    match rounding:
        case Rounding.NEAREST_EVEN | Rounding.NEAREST_AWAY:
            inclusive = last_is_odd or rounding is Rounding.NEAREST_AWAY
            positive = negative = (carrier.first_reaching(normal_top + ulp / 2, inclusive), overflow)
            flush = (nearest_flush, nearest_flush)
        case Rounding.TOWARD_ZERO | Rounding.ODD:
            positive = negative = inward
            flush = (inward_flush, inward_flush)
        case Rounding.UP:
            positive, negative = outward, inward
            flush = (outward_flush, inward_flush)
        case Rounding.DOWN:
            positive, negative = inward, outward
            flush = (inward_flush, outward_flush)
        case Rounding.STOCHASTIC:
            positive = negative = (infinity, overflow)
            # The first is compared with the magnitude before rounding, the second with the result.
            flush = (inward_flush if fmt.flush == "before" else 0, inward_flush)
    if fmt.flush is None:
        flush = (0, 0)
    elif fmt.flush == "before" and rounding is not Rounding.STOCHASTIC:
        flush = (inward_flush, inward_flush)
    takes_fixed_quantum = fmt.emin > carrier.emin and not (fmt.flush and rounding is Rounding.STOCHASTIC)
    names = kernels.rounding
    row: np.ndarray = np.zeros(names.LENGTH, dtype=carrier.integer)
    row[names.DROPPED] = dropped
    row[names.TIE] = dropped > 0 and p > 1
    # With one digit no neighbor is even among normal numbers: the larger is delivered (IEEE 754-2019, section 4.3.1).
    row[names.NEAREST] = (1 << dropped >> 1) - (dropped > 0 and p > 1)
    row[names.SMALL_BELOW] = carrier.bits(fmt.min_normal) if takes_fixed_quantum else 0
    row[names.ANCHOR] = carrier.bits(2.0 ** (fmt.emin + dropped))
    row[names.OVERFLOW_POSITIVE], row[names.OVERFLOWED_POSITIVE] = positive
    row[names.OVERFLOW_NEGATIVE], row[names.OVERFLOWED_NEGATIVE] = negative
    row[names.INFINITY] = infinity
    row[names.INFINITE] = overflow
    row[names.QUIET] = 1 << (carrier.precision - 2)
    row[names.FLUSH_POSITIVE], row[names.FLUSH_NEGATIVE] = flush
    row[names.SIGN] = carrier.sign
    row[names.ZERO_SIGN] = carrier.sign if fmt.has_negative_zero else 0
    row[names.ONE] = 1
    row[names.MAX_FINITE] = max_finite
    top_dropped = dropped + int(top_gap_is_wide(fmt))
    for left, right, count in (
        (names.DRAW_LEFT, names.DRAW_RIGHT, dropped),
        (names.TOP_LEFT, names.TOP_RIGHT, top_dropped),
    ):
        row[left] = max(count - 32, 0)
        row[right] = max(32 - count, 0)
    row[names.TWO_64] = carrier.bits(2.0**64)
    row[names.DRAW_SCALE] = carrier.bits(2.0 ** (-32 - (fmt.emin - p + 1))) if takes_fixed_quantum else 0
    row.setflags(write=False)
    return row


def top_gap_is_wide(fmt: BinaryFloat) -> bool:
    """Whether 2^(emax+1) lies two ulps above max_finite, the code between being a NaN."""
    return fmt.stochastic_top - fmt.max_finite > 2.0 ** (fmt.emax - fmt.precision + 1)
