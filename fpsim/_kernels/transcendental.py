"""exp and log in float64 from additions and multiplications alone, so that their bits are the same on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim._kernels.compiler import as_bits, as_float, inlined

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 6.93147180369123816490e-01  # ln 2 to 33 bits: its products with exponents are exact
_LN2_LOW = 1.90821492927058770002e-10


_NEAREST_INTEGER = 6755399441055744.0  # 1.5 * 2^52: a sum with it has the rounded integer in its last bits


@inlined
def exp64(x: Any) -> Any:
    """e^x within an ulp; NaN stays, overflow gives infinity, underflow zero (there are no subnormal results).

    Reduction by multiples of ln 2 in two parts, then the series to x^13 / 13!, which leaves 2^-57. No branches and short
    chains: loops over it become vectors whose operations overlap.
    """
    shifted = x * _LOG2_E + _NEAREST_INTEGER
    k = shifted - _NEAREST_INTEGER
    r = (x - k * _LN2_HIGH) - k * _LN2_LOW
    r2 = r * r
    r4 = r2 * r2
    low = (0.5 + 1.6666666666666666e-01 * r) + (4.1666666666666664e-02 + 8.333333333333333e-03 * r) * r2
    middle = (1.3888888888888889e-03 + 1.984126984126984e-04 * r) + (2.48015873015873e-05 + 2.7557319223985893e-06 * r) * r2
    high = (2.755731922398589e-07 + 2.505210838544172e-08 * r) + (2.08767569878681e-09 + 1.6059043836821613e-10 * r) * r2
    p = ((low + middle * r4) + high * (r4 * r4)) * r2 + r + 1.0
    result = p * as_float((as_bits(shifted) + np.int64(1022)) << np.int64(52)) * 2.0
    result = 0.0 if x < -708.0 else result
    result = np.inf if x > 709.782712893384 else result
    return x if x != x else result


@inlined
def log64(x: Any) -> Any:
    """ln x within two ulps for normal x > 0; what is not is ln's limit: log 0 = -inf, log inf = inf, NaN below 0.

    x = 2^k m with m around 1, then 2 artanh((m - 1) / (m + 1)) to the 25th power, which leaves 2^-59.
    """
    if not x > 0.0:
        return -np.inf if x == 0.0 else np.nan
    if x == np.inf:
        return x
    bits = as_bits(x)
    k = (bits >> np.int64(52)) - np.int64(1023)
    m = as_float((bits & np.int64(0x000FFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000))
    if m > 1.4142135623730951:
        m *= 0.5
        k += np.int64(1)
    s = (m - 1.0) / (m + 1.0)
    z = s * s
    p = 1.0 / 25.0
    p = p * z + 1.0 / 23.0
    p = p * z + 1.0 / 21.0
    p = p * z + 1.0 / 19.0
    p = p * z + 1.0 / 17.0
    p = p * z + 1.0 / 15.0
    p = p * z + 1.0 / 13.0
    p = p * z + 1.0 / 11.0
    p = p * z + 1.0 / 9.0
    p = p * z + 1.0 / 7.0
    p = p * z + 1.0 / 5.0
    p = p * z + 1.0 / 3.0
    return np.float64(k) * _LN2_HIGH + (2.0 * s + (2.0 * s * z * p + np.float64(k) * _LN2_LOW))
