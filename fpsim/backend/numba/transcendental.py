"""Exponentials, logarithms and what is made of them, in float64 from IEEE 754's own operations alone.

So their bits are the same on every machine, which no C library promises. Errors are those measured by the tests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.intrinsics import as_bits, as_float, power_series

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # ln 2 to 33 bits: its products with exponents are exact
_LN2_LOW = 1.90821492927058770002e-10


_LN2 = 0.6931471805599453
_LOG10_E = 0.4342944819032518
_LOG10_2_HIGH = 0.30102999560767785  # log10 2 to 33 bits
_LOG10_2_LOW = 5.630334806675098e-11
_ARTANH = tuple(1.0 / n for n in range(25, 1, -2))  # artanh x = x + x^3 (1/3 + x^2/5 + ...), the highest first
_NEAREST_INTEGER = 6755399441055744.0  # 1.5 * 2^52: a sum with it has the rounded integer in its last bits


@inlined
def _series(r: Any) -> Any:
    """e^r - 1 for |r| <= ln(2) / 2: the series to r^13 / 13!, which leaves 2^-57."""
    r2 = r * r
    r4 = r2 * r2
    low = (0.5 + 1.6666666666666666e-01 * r) + (4.1666666666666664e-02 + 8.333333333333333e-03 * r) * r2
    middle = (1.3888888888888889e-03 + 1.984126984126984e-04 * r) + (2.48015873015873e-05 + 2.7557319223985893e-06 * r) * r2
    high = (2.755731922398589e-07 + 2.505210838544172e-08 * r) + (2.08767569878681e-09 + 1.6059043836821613e-10 * r) * r2
    return ((low + middle * r4) + high * (r4 * r4)) * r2 + r


@inlined
def _half_power(shifted: Any) -> Any:
    """2^(k - 1) for the integer k that `shifted` = k + _NEAREST_INTEGER holds."""
    return as_float((as_bits(shifted) + np.int64(1022)) << np.int64(52))


@inlined
def exp64(x: Any) -> Any:
    """e^x within an ulp; NaN stays, overflow gives infinity, underflow zero (there are no subnormal results).

    Reduction by multiples of ln 2 in two parts, then a series. No branches and short chains: loops over it become vectors
    whose operations overlap.
    """
    shifted = x * _LOG2_E + _NEAREST_INTEGER
    k = shifted - _NEAREST_INTEGER
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    result = (_series(r) + 1.0) * _half_power(shifted) * 2.0
    result = 0.0 if x < -708.0 else result
    result = np.inf if x > 709.782712893384 else result
    return x if x != x else result


@inlined
def expm1_64(x: Any) -> Any:
    """e^x - 1 within two ulps, those of small results too."""
    shifted = x * _LOG2_E + _NEAREST_INTEGER
    k = shifted - _NEAREST_INTEGER
    half = _half_power(shifted)
    result = (half * _series((x - k * _LN2_HIGH) - k * _LN2_LOW) + (half - 0.5)) * 2.0
    result = -1.0 if x < -40.0 else result
    result = np.inf if x > 709.782712893384 else result
    return x if x != x or abs(x) < 2.0**-60 else result


@inlined
def exp2_64(x: Any) -> Any:
    """2^x within an ulp, exact for integers; zero where it would be subnormal."""
    shifted = x + _NEAREST_INTEGER
    result = (_series((x - (shifted - _NEAREST_INTEGER)) * _LN2) + 1.0) * _half_power(shifted) * 2.0
    result = 0.0 if x < -1021.0 else result
    result = np.inf if x >= 1024.0 else result
    return x if x != x else result


@inlined
def _logarithm(x: Any) -> Any:
    """(k, s, z, p) with x = 2^k m, m around 1 and ln m = 2 s + 2 s z p, for normal x > 0.

    2 artanh((m - 1) / (m + 1)) to the 25th power, which leaves 2^-59.
    """
    bits = as_bits(x)
    k = (bits >> np.int64(52)) - np.int64(1023)
    m = as_float((bits & np.int64(0x000FFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000))
    if m > 1.4142135623730951:
        m *= 0.5
        k += np.int64(1)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    return np.float64(k), s, z, power_series(z, _ARTANH)


@inlined
def _limit_of_log(x: Any) -> Any:
    """The logarithm of what is not a positive number: -inf of 0, NaN below, inf of inf."""
    return x if x > 0.0 else -np.inf if x == 0.0 else np.nan


@inlined
def log64(x: Any) -> Any:
    """ln x within two ulps for normal x > 0; what is not is ln's limit: log 0 = -inf, log inf = inf, NaN below 0."""
    if not 0.0 < x < np.inf:
        return _limit_of_log(x)
    k, s, z, p = _logarithm(x)
    return k * _LN2_HIGH + (2.0 * s + (2.0 * s * z * p + k * _LN2_LOW))


@inlined
def log2_64(x: Any) -> Any:
    """log2 x within three ulps, exact for powers of two; limits as those of ln."""
    if not 0.0 < x < np.inf:
        return _limit_of_log(x)
    k, s, z, p = _logarithm(x)
    return k + (2.0 * s + 2.0 * s * z * p) * _LOG2_E


@inlined
def _power_of_ten(shifted: Any) -> Any:
    """10^k, exactly, for the integer 0 <= k <= 22 that `shifted` = k + _NEAREST_INTEGER holds."""
    bits = as_bits(shifted)
    result = 10.0 if bits & np.int64(1) else 1.0
    result *= 1e2 if bits & np.int64(2) else 1.0
    result *= 1e4 if bits & np.int64(4) else 1.0
    result *= 1e8 if bits & np.int64(8) else 1.0
    return result * (1e16 if bits & np.int64(16) else 1.0)


@inlined
def log10_64(x: Any) -> Any:
    """log10 x within three ulps, exact for the powers of ten up to 10^22; limits as those of ln."""
    if not 0.0 < x < np.inf:
        return _limit_of_log(x)
    k, s, z, p = _logarithm(x)
    result = k * _LOG10_2_HIGH + ((2.0 * s + 2.0 * s * z * p) * _LOG10_E + k * _LOG10_2_LOW)
    shifted = result + _NEAREST_INTEGER
    whole = shifted - _NEAREST_INTEGER
    is_power = (0.0 <= whole) & (whole <= 22.0) & (_power_of_ten(shifted) == x)
    return whole if is_power else result


@inlined
def log1p_64(x: Any) -> Any:
    """ln(1 + x) within four ulps: what 1 + x loses is added as its first order. Small results are those of the series."""
    one_more = 1.0 + x
    if not 0.0 < one_more < np.inf:
        return _limit_of_log(one_more)
    if abs(x) < 2.0**-12:  # the next term is below 2^-62 x
        return x - x * x * (0.5 - x * (1.0 / 3.0 - x * (0.25 - x * 0.2)))
    lost = x - (one_more - 1.0) if x < 1.0 else 1.0 - (one_more - x)
    return log64(one_more) + lost / one_more


@inlined
def sinh64(x: Any) -> Any:
    """sinh x within four ulps; small results are those of the series, whose next term is below 2^-65 x."""
    if abs(x) < 2.0**-4:
        z = x * x
        return x + x * z * (1.0 / 6.0 + z * (1.0 / 120.0 + z * (1.0 / 5040.0 + z * (1.0 / 362880.0)))) if x != 0.0 else x
    e = expm1_64(abs(x))
    return np.copysign(0.5 * (e + e / (e + 1.0)) if e < np.inf else e, x)


@inlined
def cosh64(x: Any) -> Any:
    """cosh x within two ulps."""
    e = exp64(abs(x))
    return 0.5 * e + 0.5 / e


@inlined
def tanh64(x: Any) -> Any:
    """tanh x within four ulps."""
    e = expm1_64(2.0 * abs(x))
    return np.copysign(1.0 if abs(x) > 22.0 else e / (e + 2.0), x)


@inlined
def asinh64(x: Any) -> Any:
    """asinh x within four ulps."""
    a = abs(x)
    if a > 2.0**28:
        return np.copysign(log64(a) + _LN2, x)
    return np.copysign(log1p_64(a + a * a / (1.0 + np.sqrt(1.0 + a * a))), x)


@inlined
def acosh64(x: Any) -> Any:
    """acosh x within four ulps; NaN below 1."""
    if x < 1.0:
        return np.nan
    if x > 2.0**28:
        return log64(x) + _LN2
    t = x - 1.0
    return log1p_64(t + np.sqrt(t * (2.0 + t)))


@inlined
def atanh64(x: Any) -> Any:
    """atanh x within four ulps; NaN beyond 1."""
    a = abs(x)
    if a > 1.0:
        return np.nan
    return np.copysign(0.5 * log1p_64(2.0 * a + 2.0 * a * a / (1.0 - a)), x)


@inlined
def sigmoid64(x: Any) -> Any:
    """1 / (1 + e^-x) within two ulps."""
    return 1.0 / (1.0 + exp64(-x))


@inlined
def _whole_power(base: Any, count: Any) -> Any:
    """base^count for a count >= 0, by squaring: exact where float64 holds the result."""
    result = 1.0
    while count > 0:
        if count & 1:
            result *= base
        base *= base
        count >>= 1
    return result


@inlined
def power64(x: Any, y: Any) -> Any:
    """x^y, with the special values of C's pow; within 2^-44 for results between 2^-149 and 2^128.

    Exponents that are quarters take roots and multiplications, which are exact where float64 holds the result; other
    powers are exact for powers of two.
    """
    if y == 0.0 or x == 1.0:
        return 1.0
    a, size = abs(x), abs(y)
    whole = np.rint(y) == y
    if (-np.inf < x < 0.0 and not whole) or x != x or y != y:
        return np.nan
    if a == 1.0:
        result = 1.0
    elif size <= 64.0 and np.rint(4.0 * y) == 4.0 * y:
        quarters = np.int64(4.0 * size)
        if quarters & 3 == 0:
            result = _whole_power(a, quarters >> 2)
        elif quarters & 1 == 0:
            result = _whole_power(np.sqrt(a), quarters >> 1)
        else:
            result = _whole_power(np.sqrt(np.sqrt(a)), quarters)
        result = 1.0 / result if y < 0.0 else result
    else:
        result = exp2_64(y * log2_64(a))
    is_odd = whole and size < 2.0**53 and 2.0 * np.floor(0.5 * size) != size
    return np.copysign(result, x) if is_odd else result
