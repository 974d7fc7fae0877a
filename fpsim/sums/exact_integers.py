"""Exact sums of products in integers: for operands whose products, or whose sums of them, float64 does not hold."""

from __future__ import annotations

from fractions import Fraction
from math import inf

import numpy as np

_HALF = 27  # bits of the lower half of a significand of 53
_AT_ONCE = 1 << 23  # terms: as many pieces of at most 29 bits add up exactly in float64
_LARGEST = float(np.finfo(np.float64).max)


def exact_pairs(a: np.ndarray, b: np.ndarray, terms: list[np.ndarray], endless: bool) -> tuple[np.ndarray, np.ndarray]:
    """a @ b and `terms`, matrices of finite float64 numbers, as high + low.

    high is the nearest float64, low what it lacks, rounded to odd. Beyond float64's range high is an infinity if `endless`
    is true, else the largest number.
    """
    left, right = _split(a), _split(b)
    high, low = np.empty((a.shape[0], b.shape[1])), np.zeros((a.shape[0], b.shape[1]))
    for i, j in np.ndindex(*high.shape):
        total = _product([part[i] for part in left], [part[:, j] for part in right])
        total += sum((Fraction(float(term[i, j])) for term in terms), Fraction(0))
        high[i, j], low[i, j] = _pair(total, endless)
    return high, low


def _split(x: np.ndarray) -> list[np.ndarray]:
    """x as (high * 2^27 + low) * 2^exponent, integers below 2^27 in magnitude."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    significand = np.ldexp(fraction, 53).astype(np.int64)
    return [significand >> _HALF, significand & ((1 << _HALF) - 1), exponent.astype(np.int64) - 53]


def _product(left: list[np.ndarray], right: list[np.ndarray]) -> Fraction:
    """The exact inner product."""
    total, unit = 0, 0
    for first in range(0, left[0].size, _AT_ONCE):
        (a, b, e), (c, d, f) = ([part[first : first + _AT_ONCE] for part in parts] for parts in (left, right))
        exponent = e + f
        least = int(exponent.min())
        places = exponent - least
        piece_total = 0
        for shift, piece in ((2 * _HALF, a * c), (_HALF, a * d + b * c), (0, b * d)):
            piece_total += (_by_place(places, piece >> _HALF) << _HALF) + _by_place(places, piece & ((1 << _HALF) - 1)) << shift
        low = min(unit, least)
        total, unit = (total << (unit - low)) + (piece_total << (least - low)), low
    return total * Fraction(2) ** unit


def _by_place(places: np.ndarray, pieces: np.ndarray) -> int:
    """The sum of pieces * 2^place, each piece below 2^29 in magnitude."""
    sums = np.bincount(places, weights=pieces)
    return sum(int(sums[place]) << int(place) for place in np.flatnonzero(sums))


def _pair(exact: Fraction, endless: bool) -> tuple[float, float]:
    try:
        high = float(exact)  # correctly rounded, as every quotient of integers is
    except OverflowError:
        largest = inf if endless else _LARGEST
        return (largest if exact > 0 else -largest), 0.0
    rest = exact - Fraction(high)
    size = abs(rest)
    low = float(size)
    if Fraction(low) != size:
        inward = low if Fraction(low) < size else np.nextafter(low, 0.0)
        low = float((np.float64(inward).view(np.int64) | 1).view(np.float64))
    return high, (low if rest >= 0 else -low)
