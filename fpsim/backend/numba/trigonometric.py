"""Trigonometric functions and their inverses in float64, from IEEE 754's own operations alone: the same bits everywhere.

Arguments are reduced by multiples of pi/2: to 2^20 of them by subtracting pi/2 in three parts (Cody and Waite 1980), above by a
table of 2^e * 2/pi modulo 4 to 192 bits (Payne and Hanek 1983).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.intrinsics import as_bits, power_series, zeroed
from fpsim.backend.numba.sums64 import two_sum

_TWO_OVER_PI = 0.6366197723675814
_HALF_PI = 1.5707963267948966
_HALF_PI_REST = 6.123233995736766e-17
_PARTS = (1.5707963267341256, 6.077100506303966e-11, 2.0222662487959506e-21)  # of pi/2, the first two of 33 bits
_NEAREST_INTEGER = 6755399441055744.0  # 1.5 * 2^52
_LARGE = 2.0**20
_LEAST_EXPONENT = -32  # of the integer significand of a number from _LARGE on
_LIMBS = 6
_LIMB = np.uint64(32)
_MASK = np.uint64(0xFFFFFFFF)

# What follows the first term, or two, of the series in the argument's square, the highest coefficient first.
_SINE = (
    -8.22063524662433e-18, 2.8114572543455206e-15, -7.647163731819816e-13, 1.6059043836821613e-10, -2.505210838544172e-08,
    2.7557319223985893e-06, -1.984126984126984e-04, 8.333333333333333e-03, -1.6666666666666666e-01,
)  # fmt: skip
_COSINE = (
    4.110317623312165e-19, -1.5619206968586225e-16, 4.779477332387385e-14, -1.1470745597729725e-11, 2.08767569878681e-09,
    -2.755731922398589e-07, 2.48015873015873e-05, -1.3888888888888889e-03, 4.1666666666666664e-02,
)  # fmt: skip
_ARCTANGENT = (-1 / 15, 1 / 13, -1 / 11, 1 / 9, -1 / 7, 1 / 5, -1 / 3)
#: atan(i / 8)
ARCTANGENTS = (
    0.0, 0.12435499454676144, 0.24497866312686414, 0.35877067027057225, 0.4636476090008061, 0.5585993153435624,
    0.6435011087932844, 0.7188299996216245, 0.7853981633974483,
)  # fmt: skip


@cache
def turns() -> np.ndarray:
    """Row e + 32: 2^e * 2/pi modulo 4, over 4, to 192 bits, as 32-bit limbs from the lowest; for float64's exponents."""
    bits = 1300
    one = 1 << (bits + 64)

    def arctangent_of_inverse(n: int) -> int:
        term, total, k = one // n, 0, 1
        while term:
            total += term // k if k % 4 == 1 else -(term // k)
            term //= n * n
            k += 2
        return total

    pi = 4 * (4 * arctangent_of_inverse(5) - arctangent_of_inverse(239))  # Machin 1706
    fraction = (one * one // (2 * pi)) >> 64  # 1 / (2 pi), to `bits` bits
    rows = []
    for exponent in range(_LEAST_EXPONENT, 972):
        turn = (fraction << exponent if exponent >= 0 else fraction >> -exponent) & ((1 << bits) - 1)
        rows.append([(turn >> (bits - 32 * (_LIMBS - i))) & 0xFFFFFFFF for i in range(_LIMBS)])
    table = np.array(rows, np.uint64)
    table.setflags(write=False)
    return table


@inlined
def _reduced_by_table(x: Any, table: Any) -> Any:
    """(n modulo 4, r) with |x| = n pi/2 + r, |r| <= pi/4, for |x| >= 2^20: integers modulo 2^192."""
    bits = as_bits(x)
    exponent = ((bits >> np.int64(52)) & np.int64(0x7FF)) - np.int64(1075)
    significand = np.uint64((bits & np.int64(0x000FFFFFFFFFFFFF)) | np.int64(0x0010000000000000))
    low, high = significand & _MASK, significand >> _LIMB
    row = table[exponent - _LEAST_EXPONENT]
    limbs = zeroed(_LIMBS, np.uint64)
    carry = before = np.uint64(0)
    for i in range(_LIMBS):
        by_low, by_high = low * row[i], high * before
        total = (by_low & _MASK) + (by_high & _MASK) + carry
        carry = (by_low >> _LIMB) + (by_high >> _LIMB) + (total >> _LIMB)
        limbs[i] = total & _MASK
        before = row[i]
    top = limbs[_LIMBS - 1]
    quadrant = ((top + np.uint64(1 << 29)) >> np.uint64(30)) & np.uint64(3)
    negative = (top >> np.uint64(29)) & np.uint64(1)  # the nearest multiple lies above
    limbs[_LIMBS - 1] = top & np.uint64(0x3FFFFFFF)
    if negative:
        carry = np.uint64(1)
        for i in range(_LIMBS):
            total = (limbs[i] ^ _MASK) + carry
            limbs[i], carry = total & _MASK, total >> _LIMB
        limbs[_LIMBS - 1] &= np.uint64(0x3FFFFFFF)
    high_part = low_part = 0.0
    scale = 2.0**-30
    for i in range(_LIMBS - 1, -1, -1):
        high_part, rest = two_sum(high_part, np.float64(limbs[i]) * scale)
        low_part += rest
        scale *= 2.0**-32
    remainder = (high_part + low_part) * _HALF_PI
    return np.int64(quadrant), -remainder if negative else remainder


@inlined
def is_far(x: Any) -> Any:
    """Whether x is reduced by the table of `turns`."""
    return _LARGE <= abs(x) < np.inf


@inlined
def reduced_near(x: Any) -> Any:
    """(n, r) with |x| = n pi/2 + r, n modulo 4, |r| about pi/4 at most, for |x| < 2^20; r is NaN for infinities and NaN."""
    a = abs(x)
    shifted = a * _TWO_OVER_PI + _NEAREST_INTEGER
    n = shifted - _NEAREST_INTEGER
    first = a - n * _PARTS[0]  # exact, as the next product is: n has 20 bits
    high, low = two_sum(first, -(n * _PARTS[1]))
    return as_bits(shifted) & np.int64(3), high + (low - n * _PARTS[2])


@inlined
def reduced(x: Any, table: Any) -> Any:
    """The same for every x."""
    return _reduced_by_table(abs(x), table) if is_far(x) else reduced_near(x)


@inlined
def _sine(r: Any) -> Any:
    """sin r for |r| <= pi/4, by its series to r^19."""
    z = r * r
    return r + r * z * power_series(z, _SINE)


@inlined
def _cosine(r: Any) -> Any:
    """cos r for |r| <= pi/4, by its series to r^20."""
    z = r * r
    return 1.0 - (0.5 * z - z * z * power_series(z, _COSINE))


@inlined
def sin64(x: Any, n: Any, r: Any) -> Any:
    """sin x within two ulps, from what x reduces to; NaN of infinities."""
    sine, cosine = _sine(r), _cosine(r)
    value = cosine if n & 1 else sine
    value = -value if (n & 2 != 0) != (x < 0.0) else value
    value = x if abs(x) < 2.0**-27 else value
    return value if abs(x) < np.inf else np.nan


@inlined
def cos64(x: Any, n: Any, r: Any) -> Any:
    """cos x within two ulps, from what x reduces to; NaN of infinities."""
    sine, cosine = _sine(r), _cosine(r)
    value = sine if n & 1 else cosine
    value = -value if (n + 1) & 2 else value
    return value if abs(x) < np.inf else np.nan


@inlined
def tan64(x: Any, n: Any, r: Any) -> Any:
    """tan x within four ulps, from what x reduces to; NaN of infinities."""
    sine, cosine = _sine(r), _cosine(r)
    value = (-cosine if n & 1 else sine) / (sine if n & 1 else cosine)
    value = -value if x < 0.0 else value
    value = x if abs(x) < 2.0**-27 else value
    return value if abs(x) < np.inf else np.nan


@inlined
def _near_arctangent(place: Any) -> Any:
    """ARCTANGENTS[place]: by selection, which loops over it make vectors of, where they would not of a load."""
    lower = ARCTANGENTS[1] if place == 1.0 else ARCTANGENTS[0]
    lower = ARCTANGENTS[2] if place == 2.0 else lower
    lower = ARCTANGENTS[3] if place == 3.0 else lower
    lower = ARCTANGENTS[4] if place == 4.0 else lower
    upper = ARCTANGENTS[6] if place == 6.0 else ARCTANGENTS[5]
    upper = ARCTANGENTS[7] if place == 7.0 else upper
    upper = ARCTANGENTS[8] if place == 8.0 else upper
    return upper if place > 4.0 else lower


@inlined
def atan64(x: Any) -> Any:
    """atan x within two ulps: from the nearest of those of eighths, by the series to the 15th power."""
    a = abs(x)
    t = 1.0 / a if a > 1.0 else a
    place = np.rint(8.0 * t)
    near = 0.125 * place
    u = (t - near) / (1.0 + t * near)
    z = u * u
    value = _near_arctangent(place) + (u + u * z * power_series(z, _ARCTANGENT))
    value = np.copysign(_HALF_PI - (value - _HALF_PI_REST) if a > 1.0 else value, x)
    return x if x != x else value


@inlined
def asin64(x: Any) -> Any:
    """asin x within four ulps; NaN beyond 1."""
    return atan64(x / np.sqrt((1.0 - x) * (1.0 + x)))


@inlined
def acos64(x: Any) -> Any:
    """acos x within four ulps; NaN beyond 1."""
    return 2.0 * atan64(np.sqrt((1.0 - x) / (1.0 + x)))
