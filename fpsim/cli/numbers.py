"""Numbers as people write them, kept exact: decimals, fractions and hexadecimal floats."""

from __future__ import annotations

import math
import struct
import sys
from decimal import ROUND_DOWN, Decimal, InvalidOperation, localcontext
from fractions import Fraction

_LARGEST_EXPONENT = 400  # beyond float64's range either way, and small enough to write out


def parse_number(text: str) -> Fraction | float:
    """The exact value of "0.1", "1e-8", "1/3" or "0x1.8p-3"; a float for infinities, NaN and the negative zero.

    Raises ValueError for anything else and for magnitudes beyond 1e400 or below 1e-400.
    """
    cleaned = text.strip().lower()
    try:
        if "0x" in cleaned:
            return _exact(float.fromhex(cleaned))
        if "/" in cleaned:
            numerator, denominator = cleaned.split("/")
            return Fraction(int(numerator), int(denominator))
        decimal = Decimal(cleaned)
    except (ValueError, InvalidOperation, ZeroDivisionError, OverflowError):
        raise ValueError(
            f"{text!r} is not a number: write it like 0.1, 1e-8, 1/3, 0x1.8p-3, inf or nan"
        ) from None
    if not decimal.is_finite() or (decimal.is_zero() and decimal.is_signed()):
        return float(decimal) if not decimal.is_nan() else math.nan
    if decimal and abs(decimal.adjusted()) > _LARGEST_EXPONENT:
        raise ValueError(f"{text!r} is out of range: magnitudes from 1e-400 to 1e400 can be explained")
    return Fraction(decimal)


def _exact(value: float) -> Fraction | float:
    special = not math.isfinite(value) or (value == 0 and math.copysign(1, value) < 0)
    return value if special else Fraction(value)


def round_to_odd(value: Fraction) -> float:
    """`value` rounded to odd in float64: rounding that again to at most 51 bits equals rounding `value` once.

    (Boldo and Melquiond 2008: an odd intermediate with two spare bits never double-rounds, in any mode.) Beyond the
    range of float64 the largest finite value, whose significand is odd, and the smallest subnormal stand in.
    """
    try:
        nearest = float(value)
    except OverflowError:
        nearest = math.inf
    if math.isinf(nearest):
        return sys.float_info.max if value > 0 else -sys.float_info.max
    error = value - Fraction(nearest)
    if error == 0 or struct.unpack("<q", struct.pack("<d", nearest))[0] & 1:
        return nearest
    return math.nextafter(nearest, math.copysign(math.inf, error))


def decimal_text(value: Fraction, digits: int = 60) -> str:
    """A dyadic rational as the exact decimal, or its leading ones and "..." where it has more than `digits`."""
    with localcontext(prec=2500, rounding=ROUND_DOWN):  # float64's values have at most 1075 digits
        exact = (Decimal(value.numerator) / Decimal(value.denominator)).normalize()
        count = len(exact.as_tuple().digits)
        if count > digits:
            return f"{exact:.40e}... ({count} digits)"
        return f"{exact:f}" if -5 <= exact.adjusted() <= 20 else f"{exact:e}"
