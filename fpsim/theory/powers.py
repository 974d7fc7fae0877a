"""ufp, the power of two at or below a magnitude, and sums of nonnegative numbers in float64, rounded upward.

Rump, Ogita and Oishi, SIAM J. Sci. Comput. 31, 2008, section 2, for ufp; a sum of n nonnegative float64 numbers errs by less
than (n - 1) 2^-53 of itself (Jeannerod and Rump 2013), so that 1 + (n + 8) 2^-52 makes up for it, its own rounding included.
"""

from __future__ import annotations

from math import inf

import numpy as np

_EXPONENT = np.int64(0x7FF0000000000000)


def ufp(x: np.ndarray, least: float = 0.0) -> np.ndarray:
    """The largest power of two that |x| reaches, or `least` where that is larger; inf for infinities and NaN."""
    powers = (np.ascontiguousarray(x, np.float64).view(np.int64) & _EXPONENT).view(np.float64)
    return np.maximum(powers, least, out=powers).reshape(np.shape(x))


def inflated(total: np.ndarray, count: int, factor: float = 1.0) -> np.ndarray:
    """A bound of `factor` times the exact sum of `count` nonnegative numbers, given their float64 sum in any order.

    inf for NaN. Four more units of 2^-52 and two of 2^-1074 make up for the products and the sum that are rounded here.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total_above = np.multiply(total, factor * (1 + (count + 12) * 2.0**-52), dtype=np.float64)
        total_above += (count + 2) * 2.0**-1074
        if np.isnan(total_above.max(initial=0.0)):
            total_above = np.where(np.isnan(total_above), inf, total_above)
    return total_above


def magnitudes(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a| @ |b|, bounded from above; inf where an operand is not finite. Matrices, or stacks of them.

    Products and sums err by 2^-53 of themselves each, or by 2^-1074 where they underflow.
    """
    left, right = (np.abs(x.astype(np.float64)) for x in (a, b))
    with np.errstate(over="ignore", invalid="ignore"):
        return inflated(left @ right, 2 * a.shape[-1])
