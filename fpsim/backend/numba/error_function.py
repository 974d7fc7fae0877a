"""erf and erfc in float64, from IEEE 754's own operations alone: the same bits on every machine.

Below 1/2 the series of erf; above, erfc(x) = exp(-x^2) h(x) / (x + 3) with h a polynomial in (x - 3) / (x + 3), after
Schonfelder (Mathematics of Computation 32, 1978). Its Chebyshev series falls so fast that the powers' coefficients fall too:
their magnitudes sum to 2.2, where h lies between 0.6 and 2.2, so that powers cancel nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined
from fpsim.backend.numba.intrinsics import as_bits, as_float, power_series
from fpsim.backend.numba.transcendental import exp64

_FIRST, _LAST = 0.5, 27.0  # where h is fitted; beyond, erfc is below 2^-1022
_MIDDLE = ((_FIRST - 3.0) / (_FIRST + 3.0) + (_LAST - 3.0) / (_LAST + 3.0)) / 2.0
_HALF_WIDTH = (_LAST - 3.0) / (_LAST + 3.0) - _MIDDLE
_HIGHEST, _SLOPE = (1.0 - _MIDDLE) / _HALF_WIDTH, 6.0 / _HALF_WIDTH  # u = _HIGHEST - _SLOPE / (x + 3) runs from -1 to 1

#: Coefficients of h, lowest first, which a test computes anew; the next one of its Chebyshev series is below 1e-18.
COEFFICIENTS = (
    1.0372071979492368, -0.6318183052887921, 0.31621727755967244, -0.1260771553366985, 0.037383294652333775,
    -0.006724296257588933, -6.257482861280816e-05, 0.0004035056452541888, -6.974749061862921e-05, -1.863749374265518e-05,
    7.409503884162108e-06, 9.758067038516308e-07, -6.964058928777882e-07, -7.839141019952694e-08, 6.726028088971747e-08,
    1.0228539046682885e-08, -6.547147727754424e-09, -1.5958798044803541e-09, 5.740714449138586e-10, 2.208438527271604e-10,
    -3.327303034052825e-11, -1.8534851018719173e-11,
)  # fmt: skip
_EVEN, _ODD = COEFFICIENTS[-2::-2], COEFFICIENTS[:0:-2]  # the highest first
_TERMS = 14
#: 2 / sqrt(pi) (-1)^n / (n! (2n + 1)), the highest first.
SERIES = tuple(
    float(2 / np.sqrt(np.pi) * (-1.0) ** n / (float(np.prod(np.arange(1.0, n + 1))) * (2 * n + 1)))
    for n in reversed(range(_TERMS))
)


@inlined
def _small(x: Any) -> Any:
    """erf x for |x| < 1/2."""
    return x * power_series(x * x, SERIES)


@inlined
def _tail(a: Any) -> Any:
    """erfc a for a >= 1/2; 0 above 26.5."""
    inverse = 1.0 / (a + 3.0)
    u = _HIGHEST - _SLOPE * inverse
    height = power_series(u * u, _EVEN) + u * power_series(u * u, _ODD)
    front = as_float(as_bits(a) & ~np.int64(0x7FFFFFF))  # its square is exact
    rest = (front - a) * (a + front)  # above -5e-5: the series of its exponential leaves 3e-19
    correction = 1.0 + rest * (1.0 + rest * (0.5 + rest * 0.16666666666666666))
    value = exp64(-front * front) * correction * (height * inverse)
    return 0.0 if a > 26.5 else value


@inlined
def erf64(x: Any) -> Any:
    """erf x within four ulps."""
    a = abs(x)
    small, large = _small(x), np.copysign(1.0 - _tail(a), x)
    value = small if a < 0.5 else large
    return x * 1.1283791670955126 if a != a or a < 2.0**-500 else value  # 2 / sqrt(pi)


@inlined
def erfc64(x: Any) -> Any:
    """erfc x within 16 ulps of its value; 0 above 26.5."""
    a = abs(x)
    small, tail = 1.0 - _small(x), _tail(a)
    value = small if a < 0.5 else tail if x > 0.0 else 2.0 - tail
    return x if x != x else value
