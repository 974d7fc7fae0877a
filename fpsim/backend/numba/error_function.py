"""erf and erfc in float64, from IEEE 754's own operations alone: the same bits on every machine.

Below 1/2 the series of erf; above, erfc(x) = exp(-x^2) h(x) / (x + 3) with h a Chebyshev series in (x - 3) / (x + 3), after
Schonfelder (Mathematics of Computation 32, 1978).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.core import cgutils
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import as_bits, as_float, inlined
from fpsim.backend.numba.transcendental import exp64

_FIRST, _LAST = 0.5, 27.0  # where h is fitted; beyond, erfc is below 2^-1022
_MIDDLE = ((_FIRST - 3.0) / (_FIRST + 3.0) + (_LAST - 3.0) / (_LAST + 3.0)) / 2.0
_HALF_WIDTH = (_LAST - 3.0) / (_LAST + 3.0) - _MIDDLE

#: Coefficients of h, which a test computes anew; the next one is below 1e-18.
COEFFICIENTS = (
    1.2092976252475784, -0.7303669520322004, 0.17674323192038366, -0.03349405400526397, 0.004647505038070268,
    -0.00037861082101944783, -5.730842515925894e-06, 5.697211478614571e-06, -4.199681249436753e-07, -6.357827879751953e-08,
    1.103886656979716e-08, 7.56033763056096e-10, -2.4580509027980123e-10, -1.237523869608797e-11, 5.611397988006333e-12,
    3.308801990313811e-13, -1.3302439761156716e-13, -1.2056601312973503e-14, 3.1105521637818714e-15, 4.712520022540463e-16,
    -6.346326892953539e-17, -1.7676211374968694e-17, 6.98492844176307e-19,
)  # fmt: skip
_TERMS = 16
#: 2 / sqrt(pi) (-1)^n / (n! (2n + 1)), the highest first.
SERIES = tuple(
    float(2 / np.sqrt(np.pi) * (-1.0) ** n / (float(np.prod(np.arange(1.0, n + 1))) * (2 * n + 1)))
    for n in reversed(range(_TERMS))
)


@intrinsic
def _power_series(typing_context: Any, z: Any, coefficients: Any) -> Any:
    """The polynomial in z, highest coefficient first, by Horner's rule; unrolled, so that loops around it become vectors."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        z = arguments[0]
        result, *others = cgutils.unpack_tuple(builder, arguments[1])
        for coefficient in others:
            result = builder.fadd(builder.fmul(result, z), coefficient)
        return result

    return z(z, coefficients), generate


@intrinsic
def _chebyshev_series(typing_context: Any, u: Any, coefficients: Any) -> Any:
    """The Chebyshev series in u / 2, lowest coefficient first, by Clenshaw's recurrence (1955); unrolled likewise."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        u = arguments[0]
        first, *others, later = cgutils.unpack_tuple(builder, arguments[1])
        last = u.type(0.0)
        for coefficient in reversed(others):
            later, last = builder.fadd(builder.fsub(builder.fmul(u, later), last), coefficient), later
        half = builder.fmul(u.type(0.5), u)
        return builder.fadd(builder.fsub(builder.fmul(half, later), last), first)

    return u(u, coefficients), generate


@inlined
def _small(x: Any) -> Any:
    """erf x for |x| < 1/2."""
    return x * _power_series(x * x, SERIES)


@inlined
def _tail(a: Any) -> Any:
    """erfc a for a >= 1/2; 0 above 26.5."""
    height = _chebyshev_series(2.0 * (((a - 3.0) / (a + 3.0) - _MIDDLE) / _HALF_WIDTH), COEFFICIENTS)
    front = as_float(as_bits(a) & ~np.int64(0x7FFFFFF))  # its square is exact
    value = exp64(-front * front) * exp64(-(a - front) * (a + front)) * height / (a + 3.0)
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
