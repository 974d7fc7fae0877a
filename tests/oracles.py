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
    top, bottom = magnitude.as_integer_ratio()
    guess = top.bit_length() - bottom.bit_length()
    return guess - (top << max(-guess, 0) < bottom << max(guess, 0))


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


def last_place(magnitude, fmt):
    """The exponent of the values' distance around a magnitude. Flushing is judged on significands of p bits throughout."""
    exponent = exponent_of(magnitude)
    if fmt.flush is None:
        exponent = max(exponent, fmt.emin)
    return exponent - fmt.precision + 1


def counted(magnitude, place):
    """(count, rest, whole): the magnitude is (count + rest / whole) * 2^place, in integers, rest in [0, whole)."""
    top, bottom = magnitude.as_integer_ratio()
    whole = bottom << max(place, 0)
    return (*divmod(top << max(-place, 0), whole), whole)


def goes_up(count, rest, whole, negative, mode):
    """Whether count + rest / whole, rest in [0, whole), becomes count + 1 in magnitude."""
    match mode:
        case Rounding.NEAREST_EVEN:
            return 2 * rest > whole or (2 * rest == whole and count % 2 == 1)
        case Rounding.NEAREST_AWAY:
            return 2 * rest >= whole
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
    return round_in([mode], x, fmt, negative_zero)[0]


def round_in(modes, x, fmt, negative_zero=False):
    """`round_exact` in each mode. A zero of which it is None whether it is negative is so where sums round down."""
    if not fmt.signed:
        return [round_scale(x, fmt, mode) for mode in modes]
    if x == 0:
        return [zero(fmt, mode is Rounding.DOWN if negative_zero is None else negative_zero) for mode in modes]
    negative, magnitude = x < 0, abs(x)
    place = last_place(magnitude, fmt)
    count, rest, whole = counted(magnitude, place)

    def deliver(count, mode):
        if count.bit_length() + place > fmt.emax and count * power(place) > max_finite(fmt):  # asked in the last binade only
            return float(max_finite(fmt)) if delivers_max_finite(negative, mode) else abs(infinite(fmt, negative))
        if fmt.flush and (magnitude if fmt.flush == "before" else count * power(place)) < power(fmt.emin):
            return 0.0
        return math.ldexp(count, place)

    found = [deliver(count + goes_up(count, rest, whole, negative, mode), mode) for mode in modes]
    return [zero(fmt, negative) if result == 0 else -result if negative else result for result in found]


def round_scale(x, fmt, mode):
    """float8_e8m0fnu: powers of two, no zero, no sign."""
    if x <= 0:
        return NAN
    x = max(x, power(fmt.emin))
    place = exponent_of(x)
    count, rest, whole = counted(x, place)
    result = (count + goes_up(count, rest, whole, False, mode)) * power(place)
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
    place = last_place(magnitude, fmt)
    count, rest, whole = counted(magnitude, place)
    top, virtual = max_finite(fmt), power(fmt.emax + 1)

    def deliver(value):
        if value > top:
            return infinite(fmt, negative)
        if value == 0 or (fmt.flush and (magnitude if fmt.flush == "before" else value) < power(fmt.emin)):
            return zero(fmt, negative)
        return -float(value) if negative else float(value)

    lower, upper = count * power(place), (count + 1) * power(place)
    if lower >= top and magnitude < virtual:
        return deliver(top), deliver(virtual), math.floor((magnitude - top) / (virtual - top) * 2**32)
    return deliver(lower), deliver(upper), (rest << 32) // whole


# Operations: (exact result, whether a zero is negative, None where that is for the mode to say), or a special float


def negative_zero_of_sum(x, y):
    """Whether an exact zero sum of these floats is negative (IEEE 754-2019, section 6.3)."""
    if x == 0 and y == 0 and not signs_differ(x, y):
        return math.copysign(1, x) < 0
    return None


def signs_differ(x, y):
    return math.copysign(1, x) != math.copysign(1, y)


def exact_add(x, y):
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and math.isinf(y) and x != y):
        return NAN
    if math.isinf(x) or math.isinf(y):
        return x if math.isinf(x) else y
    return Fraction(x) + Fraction(y), negative_zero_of_sum(x, y)


def exact_mul(x, y):
    if math.isnan(x) or math.isnan(y) or (math.isinf(x) and y == 0) or (x == 0 and math.isinf(y)):
        return NAN
    if math.isinf(x) or math.isinf(y):
        return -INFINITY if signs_differ(x, y) else INFINITY
    return Fraction(x) * Fraction(y), signs_differ(x, y)


def exact_div(x, y):
    if math.isnan(x) or math.isnan(y) or (x == 0 and y == 0) or (math.isinf(x) and math.isinf(y)):
        return NAN
    if math.isinf(x) or y == 0:
        return -INFINITY if signs_differ(x, y) else INFINITY
    return (Fraction(0) if math.isinf(y) else Fraction(x) / Fraction(y)), signs_differ(x, y)


def exact_sqrt(x, bits=300):
    """The root, or a rational with `bits` more bits between it and its neighbors, which no rounding can tell from it."""
    if math.isnan(x) or x < 0:
        return NAN
    if math.isinf(x) or x == 0:
        return x if math.isinf(x) else (Fraction(0), math.copysign(1, x) < 0)
    scaled = Fraction(x) * power(2 * bits + 1200)
    root = math.isqrt(scaled.numerator)
    exact = root * root == scaled.numerator and scaled.denominator == 1
    return (Fraction(root) if exact else root + Fraction(1, 2)) / power(bits + 600), False


def exact_fma(x, y, z):
    product = exact_mul(x, y)
    if not isinstance(product, tuple):
        return exact_add(product, z)
    if not math.isfinite(z):
        return z
    value, negative = product
    sign = (-1.0 if negative else 1.0) if value else (-0.0 if negative else 0.0)
    return value + Fraction(z), negative_zero_of_sum(sign, z)


EXACT = {
    "add": exact_add,
    "sub": lambda x, y: exact_add(x, -y),
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
    return operate_in([mode], name, operands, fmt)[0]


def operate_in(modes, name, operands, fmt):
    """`operate` in each mode."""
    result = EXACT[name](*(operand(x, fmt) for x in operands))
    if isinstance(result, tuple):
        return round_in(modes, result[0], fmt, result[1])
    return [round_float(result, fmt, mode) for mode in modes]
