"""erf and erfc in float64, from IEEE 754's own operations alone: the same bits on every machine.

Below 1/2 the series of erf; above, erfc(x) = exp(-x^2) h(x) / (x + 3) with h a Chebyshev series in (x - 3) / (x + 3), after
Schonfelder (Mathematics of Computation 32, 1978).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import as_bits, as_float, inlined
from fpsim.backend.numba.transcendental import exp64

_FIRST, _LAST = 0.5, 27.0  # where h is fitted; beyond, erfc is below 2^-1022
_MIDDLE = ((_FIRST - 3.0) / (_FIRST + 3.0) + (_LAST - 3.0) / (_LAST + 3.0)) / 2.0
_HALF_WIDTH = (_LAST - 3.0) / (_LAST + 3.0) - _MIDDLE

#: Coefficients of h, which a test computes anew; the next one is below 1e-18.
COEFFICIENTS = np.array([
    1.2092976252475784, -0.7303669520322004, 0.17674323192038366, -0.03349405400526397, 0.004647505038070268,
    -0.00037861082101944783, -5.730842515925894e-06, 5.697211478614571e-06, -4.199681249436753e-07, -6.357827879751953e-08,
    1.103886656979716e-08, 7.56033763056096e-10, -2.4580509027980123e-10, -1.237523869608797e-11, 5.611397988006333e-12,
    3.308801990313811e-13, -1.3302439761156716e-13, -1.2056601312973503e-14, 3.1105521637818714e-15, 4.712520022540463e-16,
    -6.346326892953539e-17, -1.7676211374968694e-17, 6.98492844176307e-19,
])  # fmt: skip
_TERMS = 16
#: 2 / sqrt(pi) (-1)^n / (n! (2n + 1)), the highest first.
SERIES = np.array([
    2 / np.sqrt(np.pi) * (-1.0) ** n / (float(np.prod(np.arange(1.0, n + 1))) * (2 * n + 1)) for n in reversed(range(_TERMS))
])  # fmt: skip


@inlined
def _small(x: Any, series: Any) -> Any:
    """erf x for |x| < 1/2."""
    z = x * x
    p = series[0]
    for n in range(1, series.size):
        p = p * z + series[n]
    return x * p


@inlined
def _tail(a: Any, coefficients: Any) -> Any:
    """erfc a for a >= 1/2; 0 above 26.5."""
    if a > 26.5:
        return 0.0
    u = 2.0 * (((a - 3.0) / (a + 3.0) - _MIDDLE) / _HALF_WIDTH)
    later = last = 0.0
    for n in range(coefficients.size - 1, 0, -1):  # Clenshaw 1955
        later, last = u * later - last + coefficients[n], later
    height = 0.5 * u * later - last + coefficients[0]
    front = as_float(as_bits(a) & ~np.int64(0x7FFFFFF))  # its square is exact
    return exp64(-front * front) * exp64(-(a - front) * (a + front)) * height / (a + 3.0)


@inlined
def erf64(x: Any, series: Any, coefficients: Any) -> Any:
    """erf x within four ulps."""
    a = abs(x)
    if a != a or a < 2.0**-500:
        return x * 1.1283791670955126  # 2 / sqrt(pi)
    return _small(x, series) if a < 0.5 else np.copysign(1.0 - _tail(a, coefficients), x)


@inlined
def erfc64(x: Any, series: Any, coefficients: Any) -> Any:
    """erfc x within 16 ulps of its value; 0 above 26.5."""
    if x != x:
        return x
    if abs(x) < 0.5:
        return 1.0 - _small(x, series)
    return _tail(x, coefficients) if x > 0.0 else 2.0 - _tail(-x, coefficients)
