"""The error of one rounding, by format and mode.

    |round(z) - z| <= relative |z| + absolute      while |z| <= largest

`relative` alone holds where |z| is normal or zero, `absolute` alone below that, so that their sum always does.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

from fpsim.numbers.computing import quantum_exponent
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.modes import Rounding, get_rounding
from fpsim.theory.upward import ZERO, affine, to_float

NEAREST = (Rounding.NEAREST_EVEN, Rounding.NEAREST_AWAY)


@dataclass(frozen=True)
class RoundingBound:
    """|round(z) - z| <= relative |z| + absolute for every real |z| <= largest, which cannot overflow."""

    relative: float
    absolute: float
    largest: float

    def error(self, z: Any) -> Any:
        """The bound for values z, rounded upward, elementwise; inf where |z| > largest and for NaN."""
        return affine(self.relative, self.absolute, z, self.largest)


def unit(fmt: Format, rounding: Rounding) -> Fraction:
    """The largest |round(z) - z| / ufp(z) of normal numbers: u = 2^-p to nearest, 2u in every other mode. Exact."""
    return Fraction(fmt.unit_roundoff) * (1 if rounding in NEAREST else 2)


def relative_error(fmt: Format, rounding: Rounding) -> Fraction:
    """The largest |round(z) - z| / |z| of normal numbers, rounded upward.

    u / (1 + u) to nearest (Jeannerod and Rump, Math. Comp. 87, 2018, theorem 1); 2u / (1 + 2u) toward zero, where z lies
    beyond its rounded value; 2u in every mode that may round either way.
    """
    roundoff = unit(fmt, rounding)
    return roundoff / (1 + roundoff) if rounding in NEAREST or rounding is Rounding.TOWARD_ZERO else roundoff


def underflow_error(fmt: Format, rounding: Rounding) -> Fraction:
    """The largest |round(z) - z| of |z| < 2^emin. Exact.

    Half the smallest subnormal number to nearest, all of it in every other mode, and 2^emin where subnormals are flushed.
    """
    if fmt.flush:
        return Fraction(fmt.min_normal)
    return Fraction(fmt.min_subnormal) / (2 if rounding in NEAREST else 1)


@lru_cache(maxsize=512)
def _rounding_bound(fmt: Format, rounding: Rounding) -> RoundingBound:
    if not fmt.has_zero:
        raise ValueError(f"{fmt.name} has no zero: its rounding has no bound of this form")
    relative, absolute = relative_error(fmt, rounding), underflow_error(fmt, rounding)
    return RoundingBound(to_float(relative), to_float(absolute), fmt.max_finite)


def rounding_bound(fmt: Any, rounding: Any = "nearest-even", *, held: Any = None) -> RoundingBound:
    """What one rounding to `fmt` may do: v = u / (1 + u) to nearest, 2u / (1 + 2u) toward zero, 2u else, and underflow.

    Parameters
    ----------
    fmt, rounding : a format and a mode, as `fpsim.round` takes them.
    held : the format whose values are rounded, if known: where `fmt` holds all of them the bound is 0.

    Valid for every real |z| <= max_finite (`largest`); what rounds to more overflows or saturates, which no bound covers.
    Raises ValueError for unknown names and float8_e8m0fnu, whose values are scales.
    """
    target, mode = get_format(fmt), get_rounding(rounding)
    if held is not None and holds(target, get_format(held)):
        return RoundingBound(0.0, 0.0, target.max_finite)
    return _rounding_bound(target, mode)


def holds(wide: Format, narrow: Format) -> bool:
    """Whether rounding to `wide` leaves every value of `narrow` up to its largest as it is."""
    gradual = wide.flush is None or narrow.min_subnormal >= wide.min_normal
    return wide.precision >= narrow.precision and quantum_exponent(wide) <= quantum_exponent(narrow) and gradual


def holds_products(wide: Format, operand: Format) -> bool:
    """Whether rounding to `wide` leaves products of two values of `operand` as they are, up to its largest."""
    gradual = wide.flush is None or Fraction(operand.min_subnormal) ** 2 >= wide.min_normal
    return wide.precision >= 2 * operand.precision and multiples(wide, operand) and gradual


def multiples(wide: Format, operand: Format, products: bool = True) -> bool:
    """Whether products of two values of `operand` (or such values) are multiples of `wide`'s smallest subnormal number."""
    return (1 + products) * quantum_exponent(operand) >= quantum_exponent(wide)


def addition_underflow(fmt: Format, rounding: Rounding, on_grid: bool) -> Fraction:
    """The underflow error of an addition in the format; `on_grid`: its terms are multiples of the smallest subnormal.

    Such sums are exact below 2^emin, unless flushed.
    """
    return ZERO if on_grid and not fmt.flush else underflow_error(fmt, rounding)
