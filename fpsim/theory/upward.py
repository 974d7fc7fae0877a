"""Bounds as rationals, exact or rounded upward, and their way to floats. A bound that is rounded downward is none."""

from __future__ import annotations

from fractions import Fraction
from math import inf, nextafter
from typing import Any

import numpy as np

ZERO, ONE = Fraction(0), Fraction(1)
_BITS = 192
#: Stands for every larger number: still beyond float64 after the smallest factor that there is.
_HUGE = Fraction(2**5000)


def shortened(x: Fraction) -> Fraction:
    """x >= 0 with about 192 significant bits, rounded upward."""
    excess = x.numerator.bit_length() - x.denominator.bit_length() - _BITS
    if x == 0 or max(x.numerator.bit_length(), x.denominator.bit_length()) <= 2 * _BITS:
        return x
    scale = Fraction(2) ** excess
    return min(-(-x // scale) * scale, _HUGE)


def grown(relative: Fraction, count: int) -> Fraction:
    """(1 + relative)^count - 1, rounded upward."""
    power, base = ONE, shortened(ONE + relative)
    while count > 0:
        if count & 1:
            power = shortened(power * base)
        base = shortened(base * base)
        count >>= 1
    return power - 1


def both(first: Fraction, second: Fraction) -> Fraction:
    """(1 + first)(1 + second) - 1."""
    return first + second + first * second


def to_float(x: Fraction) -> float:
    """The least float64 that is at least x; inf beyond them."""
    try:
        nearest = float(x)
    except OverflowError:
        return inf
    return nearest if Fraction(nearest) >= x else nextafter(nearest, inf)


def to_float_below(x: Fraction) -> float:
    """The largest float64 that is at most x >= 0."""
    nearest = float(x)
    return nearest if Fraction(nearest) <= x else nextafter(nearest, 0.0)


def largest_total(top: float, relative: Fraction, absolute: Fraction) -> float:
    """The largest T with (1 + relative) T + absolute <= top, rounded downward; 0 where there is none."""
    return to_float_below(max(ZERO, (Fraction(top) - absolute) / (1 + relative)))


def affine(relative: float, absolute: float, magnitude: Any, largest: float = inf) -> Any:
    """relative * |magnitude| + absolute in float64, rounded upward elementwise; inf for NaN and above `largest`."""
    size = np.abs(np.asarray(magnitude, np.float64))
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        # A product and a sum: each off by at most half an ulp, or half the smallest subnormal.
        scaled = np.nextafter(size * relative, inf) if relative else np.zeros_like(size)
        total = np.nextafter(scaled + absolute, inf) if absolute or relative else scaled
    bound = np.where((size <= largest) & ~np.isnan(total), total, inf)
    return bound if bound.ndim else float(bound)
