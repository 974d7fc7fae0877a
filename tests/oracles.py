"""Obvious, slow oracles in exact rationals. They share nothing with fpsim but the description of a format."""

import functools
import math
from fractions import Fraction

from fpsim.numbers.rounding import Rounding

DETERMINISTIC = [mode for mode in Rounding if mode is not Rounding.STOCHASTIC]
NAN, INFINITY = float("nan"), float("inf")


@functools.cache
def power(exponent):
    return Fraction(2) ** exponent


def exponent_of(magnitude):
    """floor(log2(magnitude)) of a positive rational."""
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if power(guess) <= magnitude else guess - 1


@functools.cache
def max_finite(fmt):
    top = (2**fmt.precision - 1) * power(fmt.emax - fmt.precision + 1)
    return top - power(fmt.emax - fmt.precision + 1) if fmt.specials == "fn" and fmt.signed else top


def infinite(fmt, negative):
    """What the format has for an infinity."""
    value = float(max_finite(fmt)) if fmt.saturate else INFINITY if fmt.specials == "ieee" else NAN
    return -value if negative else value


def zero(fmt, negative):
    return -0.0 if negative and fmt.specials != "fnuz" else 0.0


def quantum(magnitude, fmt):
    """The distance of the format's values around a magnitude. Flushing is judged on significands of p bits throughout."""
    exponent = exponent_of(magnitude)
    if fmt.flush is None:
        exponent = max(exponent, fmt.emin)
    return power(exponent - fmt.precision + 1)


def goes_up(count, rest, negative, mode):
    """Whether count + rest, rest in [0, 1), becomes count + 1 in magnitude."""
    half = Fraction(1, 2)
    match mode:
        case Rounding.NEAREST_EVEN:
            return rest > half or (rest == half and count % 2 == 1)
        case Rounding.NEAREST_AWAY:
            return rest >= half
        case Rounding.TOWARD_ZERO:
            return False
        case Rounding.UP:
            return rest > 0 and not negative
        case Rounding.DOWN:
            return rest > 0 and negative
        case Rounding.ODD:
            return rest > 0 and count % 2 == 0
    raise ValueError(mode)


def delivers_max_finite(negative, mode):
    """Whether overflow stays finite (IEEE 754-2019, section 7.4; odd: always)."""
    return mode in (Rounding.TOWARD_ZERO, Rounding.ODD) or (mode is Rounding.UP and negative) or (
        mode is Rounding.DOWN and not negative
    )


def round_exact(x, fmt, mode, negative_zero=False):
    """The float that an exact rational rounds to; a zero is negative if so told."""
    if not fmt.signed:
        return round_scale(x, fmt, mode)
    if x == 0:
        return zero(fmt, negative_zero)
    negative, magnitude = x < 0, abs(x)
    step = quantum(magnitude, fmt)
    count = magnitude // step
    result = (count + goes_up(count, magnitude / step - count, negative, mode)) * step
    if result > max_finite(fmt):
        if not delivers_max_finite(negative, mode):
            return infinite(fmt, negative)
        result = max_finite(fmt)
    judged = magnitude if fmt.flush == "before" else result
    if result == 0 or (fmt.flush and judged < power(fmt.emin)):
        return zero(fmt, negative)
    return -float(result) if negative else float(result)


def round_scale(x, fmt, mode):
    """float8_e8m0fnu: powers of two, no zero, no sign."""
    if x <= 0:
        return NAN
    x = max(x, power(fmt.emin))
    step = power(exponent_of(x))
    result = (1 + goes_up(1, x / step - 1, False, mode)) * step
    if result > max_finite(fmt):
        return float(max_finite(fmt)) if delivers_max_finite(False, mode) else NAN
    return float(result)


def round_float(x, fmt, mode):
    """`round_exact` of a float, which may be special."""
    if math.isnan(x):
        return NAN
    if math.isinf(x):
        return infinite(fmt, x < 0) if fmt.signed else NAN
    return round_exact(Fraction(x), fmt, mode, math.copysign(1, x) < 0)


def stochastic(x, fmt):
    """(lower in magnitude, upper, floor(2^32 times the probability of the upper)) of a nonzero rational.

    Overflow and flushing are applied to both.
    """
    negative, magnitude = x < 0, abs(x)
    step = quantum(magnitude, fmt)
    lower = (magnitude // step) * step
    upper = lower + step
    top, virtual = max_finite(fmt), power(fmt.emax + 1)
    if lower >= top and magnitude < virtual:
        lower, upper = top, virtual

    def deliver(value):
        if value > top:
            return infinite(fmt, negative)
        if value == 0 or (fmt.flush and (magnitude if fmt.flush == "before" else value) < power(fmt.emin)):
            return zero(fmt, negative)
        return -float(value) if negative else float(value)

    return deliver(lower), deliver(upper), math.floor((magnitude - lower) / (upper - lower) * 2**32)


# Operations


def signed_zero_of_sum(x, y, mode):
    """Whether an exact zero sum of these floats is negative (IEEE 754-2019, section 6.3)."""
    if x == 0 and y == 0 and math.copysign(1, x) == math.copysign(1, y):
        return math.copysign(1, x) < 0
    return mode is Rounding.DOWN


def exact_add(x, y, mode):
    """(exact sum, whether a zero is negative), or a special float."""
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and math.isinf(y) and x != y):
        return NAN
    if math.isinf(x) or math.isinf(y):
        return x if math.isinf(x) else y
    return Fraction(x) + Fraction(y), signed_zero_of_sum(x, y, mode)


def signs_differ(x, y):
    return math.copysign(1, x) != math.copysign(1, y)


def exact_mul(x, y, mode):
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and y == 0) or (x == 0 and math.isinf(y)):
        return NAN
    if math.isinf(x) or math.isinf(y):
        return -INFINITY if signs_differ(x, y) else INFINITY
    return Fraction(x) * Fraction(y), signs_differ(x, y)


def exact_div(x, y, mode):
    if math.isnan(x) or math.isnan(y) or (x == 0 and y == 0) or (math.isinf(x) and math.isinf(y)):
        return NAN
    if math.isinf(x) or y == 0:
        return -INFINITY if signs_differ(x, y) else INFINITY
    return (Fraction(0) if math.isinf(y) else Fraction(x) / Fraction(y)), signs_differ(x, y)


def exact_sqrt(x, mode, bits=300):
    """The root, or a rational with `bits` more bits between it and its neighbors, which no rounding can tell from it."""
    if math.isnan(x) or x < 0:
        return NAN
    if math.isinf(x) or x == 0:
        return x if math.isinf(x) else (Fraction(0), math.copysign(1, x) < 0)
    scaled = Fraction(x) * power(2 * bits + 1200)
    root = math.isqrt(scaled.numerator)
    exact = root * root == scaled.numerator and scaled.denominator == 1
    return (Fraction(root) if exact else root + Fraction(1, 2)) / power(bits + 600), False


def exact_fma(x, y, z, mode):
    product = exact_mul(x, y, mode)
    if not isinstance(product, tuple):
        return exact_add(product, z, mode)
    if not math.isfinite(z):
        return z
    value, negative = product
    sign = (-1.0 if negative else 1.0) if value else (-0.0 if negative else 0.0)
    return value + Fraction(z), signed_zero_of_sum(sign, z, mode)


EXACT = {
    "add": exact_add,
    "sub": lambda x, y, mode: exact_add(x, -y, mode),
    "mul": exact_mul,
    "div": exact_div,
    "sqrt": exact_sqrt,
    "fma": exact_fma,
}


def operand(x, fmt):
    """An operand as the format takes it: subnormals may count as zeros, and there may be one zero only."""
    if fmt.flush_inputs and 0 < abs(x) < 2.0**fmt.emin:
        x = math.copysign(0.0, x)
    return zero(fmt, math.copysign(1, x) < 0) if x == 0 else x


def operate(name, operands, fmt, mode):
    """The float that an operation on values of the format delivers."""
    result = EXACT[name](*(operand(x, fmt) for x in operands), mode)
    if isinstance(result, tuple):
        return round_exact(result[0], fmt, mode, result[1])
    return round_float(result, fmt, mode)
