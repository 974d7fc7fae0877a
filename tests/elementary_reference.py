"""Elementary functions as balls of Arb or to 64 bits by the C library, as pairs of float64, and their correct rounding."""

import math

import numpy as np
from flint import arb, ctx

_CERTAIN = 120  # bits of a result

#: name -> (function, open domain where it is finite, value at -infinity, value at +infinity)
REFERENCE = {
    "exp": (arb.exp, None, 0.0, math.inf),
    "exp2": (lambda x: arb(2) ** x, None, 0.0, math.inf),
    "expm1": (arb.expm1, None, -1.0, math.inf),
    "log": (arb.log, (0, math.inf), math.nan, math.inf),
    "log2": (lambda x: x.log_base(2), (0, math.inf), math.nan, math.inf),
    "log10": (lambda x: x.log_base(10), (0, math.inf), math.nan, math.inf),
    "log1p": (arb.log1p, (-1, math.inf), math.nan, math.inf),
    "sin": (arb.sin, None, math.nan, math.nan),
    "cos": (arb.cos, None, math.nan, math.nan),
    "tan": (arb.tan, None, math.nan, math.nan),
    "asin": (arb.asin, (-1, 1), math.nan, math.nan),
    "acos": (arb.acos, (-1, 1), math.nan, math.nan),
    "atan": (arb.atan, None, -math.pi / 2, math.pi / 2),
    "sinh": (arb.sinh, None, -math.inf, math.inf),
    "cosh": (arb.cosh, None, math.inf, math.inf),
    "tanh": (arb.tanh, None, -1.0, 1.0),
    "asinh": (arb.asinh, None, -math.inf, math.inf),
    "acosh": (arb.acosh, (1, math.inf), math.nan, math.inf),
    "atanh": (arb.atanh, (-1, 1), math.nan, math.nan),
    "sigmoid": (lambda x: 1 / (1 + (-x).exp()), None, 0.0, 1.0),
    "erf": (arb.erf, None, -1.0, 1.0),
    "erfc": (arb.erfc, None, 2.0, 0.0),
    "rsqrt": (arb.rsqrt, (0, math.inf), math.nan, 0.0),
}
#: Values at the ends of a domain.
_POLES = {
    ("log", 0): -math.inf,
    ("log2", 0): -math.inf,
    ("log10", 0): -math.inf,
    ("log1p", -1): -math.inf,
    ("atanh", -1): -math.inf,
    ("atanh", 1): math.inf,
    ("acosh", 1): 0.0,
    ("acos", 1): 0.0,
}
#: f(-0) = -0 and f(+0) = +0 (IEEE 754-2019, section 9.2.1).
ODD_AT_ZERO = ("expm1", "log1p", "sin", "tan", "asin", "atan", "sinh", "tanh", "asinh", "atanh", "erf")


def pair(name, x):
    """f(x) as the unevaluated sum of two float64 numbers, to about 100 bits; infinite beyond float64's range."""
    function, domain, at_minus, at_plus = REFERENCE[name]
    if math.isnan(x):
        return math.nan, 0.0
    if math.isinf(x):
        return (at_plus if x > 0 else at_minus), 0.0
    if name == "rsqrt" and x == 0:
        return math.copysign(math.inf, x), 0.0
    if x == 0 and name in ODD_AT_ZERO:
        return x, 0.0
    if (name, x) in _POLES:
        return _POLES[name, x], 0.0
    if domain and not (domain[0] < x < domain[1] or (name in ("asin", "acos") and abs(x) == 1)):
        return math.nan, 0.0
    value = ball(function, x)
    if abs(value) > _HUGE:
        return math.copysign(math.inf, float(value.sgn())), 0.0
    high = float(value)
    return high, float(value - high)


_HUGE = arb(2) ** 1000


def ball(function, x, certain=_CERTAIN):
    """An enclosure of f(x) that leaves so many of its bits certain."""
    ctx.prec = certain + 40
    while (value := function(arb(x))).rel_accuracy_bits() < certain:
        ctx.prec *= 2
    return value


def pairs(name, x):
    found = np.array([pair(name, float(value)) for value in x]).reshape(-1, 2)
    return found[:, 0], found[:, 1]


_LONG = {
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


def quick_pairs(name, x):
    """`pairs` from the C library's long double where that is wider than float64; for erf and erfc from Arb."""
    if name in ("erf", "erfc") or np.finfo(np.longdouble).nmant < 63:
        return pairs(name, x)
    function = _LONG.get(name) or getattr(np, name)
    with np.errstate(all="ignore"):
        value = function(x.astype(np.longdouble))
        high = value.astype(np.float64)
        low = (value - high).astype(np.float64)
    return high, np.where(np.isfinite(high), low, 0.0)


def round_pairs(high, low, fmt, away=False):
    """(the sum rounded to nearest, its distance in quanta from the nearest midpoint; infinite for special values)."""
    with np.errstate(all="ignore"):
        magnitude, rest = np.abs(high), np.where(np.signbit(high), -low, low)
        finite = np.isfinite(high) & (magnitude > 0)
        safe = np.where(finite, magnitude, 1.0)
        # At a power of two the quantum below it is smaller: a rest below zero belongs there.
        inner = (np.frexp(safe)[0] == 0.5) & (rest < 0)
        exponent = np.maximum(np.frexp(safe)[1] - 1 - inner, fmt.emin)
        place = exponent - fmt.precision + 1
        scaled, scaled_rest = np.ldexp(safe, -place), np.ldexp(rest, -place)
        count = np.floor(scaled)
        count = np.where((scaled == count) & (scaled_rest < 0), count - 1, count)
        distance = (scaled - count - 0.5) + scaled_rest  # the first part is exact
        up = (distance > 0) | ((distance == 0) & (away | (count % 2 == 1)))
        value = np.ldexp(count + up, place)
        limit = fmt.max_finite if fmt.saturate else np.inf if fmt.has_infinity else np.nan
        value = np.where(value > fmt.max_finite, limit, value)
        value = np.where(np.isinf(high), limit, np.where(finite, value, magnitude))
        value = np.where(np.signbit(high), -value, value)
        if not fmt.has_negative_zero:
            value = value + 0.0
        return value, np.where(finite, np.abs(distance), np.inf)
