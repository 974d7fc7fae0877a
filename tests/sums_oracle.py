"""Sums by their definitions: rationals, Python floats for what is not finite, one obvious step at a time."""

import math
from fractions import Fraction

from fpsim.accumulation.trees import ZERO
from fpsim.numbers.rounding import Rounding

NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, ODD = DETERMINISTIC = [
    mode for mode in Rounding if mode is not Rounding.STOCHASTIC
]


def rounded(value, fmt, mode, zero=0.0):
    """A Fraction or a float rounded to a format; an exact zero is `zero`."""
    return rounded_ratio(*value.as_integer_ratio(), fmt, mode, zero) if is_finite(value) else special(value, fmt)


def rounded_ratio(top, bottom, fmt, mode, zero=0.0):
    """The number top / bottom rounded to a format, in lowest terms or not."""
    if top == 0:
        return zero if fmt.has_negative_zero else 0.0
    negative, top = top < 0, abs(top)
    exponent = top.bit_length() - bottom.bit_length()
    exponent -= top << max(-exponent, 0) < bottom << max(exponent, 0)
    zero = -0.0 if negative and fmt.has_negative_zero else 0.0
    if fmt.flush == "before" and exponent < fmt.emin:
        return zero
    last = (exponent if fmt.flush else max(exponent, fmt.emin)) - fmt.precision + 1  # the last place is of 2^last
    unit = bottom << max(last, 0)
    low, rest = divmod(top << max(-last, 0), unit)
    low += goes_outward(low, 2 * rest, unit, negative, mode)
    exponent = low.bit_length() - 1 + last
    if low == 0 or (fmt.flush and exponent < fmt.emin):
        return zero
    result = math.ldexp(low, last) if exponent < 1024 else math.inf
    if result > fmt.max_finite:
        inward = mode in (TOWARD_ZERO, ODD) or mode is (UP if negative else DOWN)
        result = fmt.max_finite if inward else special(math.inf, fmt)
    return -result if negative else result


def goes_outward(low, twice_rest, unit, negative, mode):
    """Whether low + rest / unit becomes low + 1 in magnitude."""
    if mode is NEAREST_EVEN:
        return twice_rest > unit or (twice_rest == unit and low % 2 == 1)
    if mode is NEAREST_AWAY:
        return twice_rest >= unit
    if mode is ODD:
        return twice_rest > 0 and low % 2 == 0
    return twice_rest > 0 and mode is (DOWN if negative else UP)


def special(value, fmt):
    """What an infinity or a NaN becomes."""
    if math.isinf(value) and fmt.saturate:
        return math.copysign(fmt.max_finite, value)
    return math.nan if math.isinf(value) and not fmt.has_infinity else value


def as_operand(x, fmt):
    """A float as an operation of the format reads it."""
    small = fmt.flush_inputs and abs(x) < fmt.min_normal
    return (math.copysign(0.0, x) if fmt.has_negative_zero else 0.0) if small else x


def is_finite(value):
    return not isinstance(value, float) or math.isfinite(value)


def is_negative(value):
    return math.copysign(1.0, value) < 0


def add(left, right, fmt, mode):
    """The rounded sum of two floats or Fractions."""
    if not (is_finite(left) and is_finite(right)):
        return rounded(float(left) + float(right), fmt, mode)
    if left == 0 and right == 0 and is_negative(left) == is_negative(right):
        zero = -0.0 if is_negative(left) else 0.0
    else:
        zero = -0.0 if mode is DOWN else 0.0
    (top, bottom), (other_top, other_bottom) = left.as_integer_ratio(), right.as_integer_ratio()
    return rounded_ratio(top * other_bottom + other_top * bottom, bottom * other_bottom, fmt, mode, zero)


def total_of(pairs, accumulator, fmt, mode):
    """The accumulator's value after the sum of products, and the format that holds it. All operands are floats."""
    if accumulator.kind == "exact":
        return exact_sum(pairs, fmt, mode), fmt
    held = accumulator.format
    leaves = [leaf(*pair, accumulator, mode) for pair in pairs]
    if accumulator.kind == "kahan":
        return kahan(leaves, held, mode), held
    if accumulator.kind == "neumaier":
        return neumaier(leaves, held, mode), held
    if accumulator.promoted is not None:
        return promoted(leaves, accumulator, mode), accumulator.promoted
    tree = accumulator.order(len(leaves))
    value = tree.evaluate(leaves, lambda left, right: add(left, right, held, mode), zero=0.0)
    return (value if tree.steps[0] == ZERO else add(0.0, value, held, mode)), held


def leaf(left, right, accumulator, mode):
    """What the product of two floats is where it enters a sum: a Fraction if it is exact."""
    is_rounded = accumulator.products == "rounded"
    if not (math.isfinite(left) and math.isfinite(right)) or left == 0 or right == 0:
        product = left * right
        return rounded(product, accumulator.format, mode, product) if is_rounded else product
    (top, bottom), (other_top, other_bottom) = left.as_integer_ratio(), right.as_integer_ratio()
    ratio = top * other_top, bottom * other_bottom
    return rounded_ratio(*ratio, accumulator.format, mode) if is_rounded else Fraction(*ratio)


def promoted(leaves, accumulator, mode):
    total, second = 0.0, accumulator.promoted
    for part in parts_of(accumulator.order, leaves):
        block = 0.0
        for term in part:
            block = add(block, term, accumulator.format, mode)
        if math.isfinite(block):
            block = rounded(block, second, mode, math.copysign(0.0, block))
        total = add(total, block, second, mode)
    return total


def parts_of(order, leaves):
    """The lists of terms that an order of parts chains apart."""
    (number,) = order.parameters
    if order.name == "blocked":
        return [leaves[first : first + number] for first in range(0, len(leaves), number)]
    if order.name == "lanes":
        return [leaves[lane::number] for lane in range(min(number, len(leaves)))]
    quotient, longer = divmod(len(leaves), number)
    sizes = [quotient + 1] * longer + [quotient] * (number - longer)
    starts = [sum(sizes[:index]) for index in range(number)]
    return [leaves[start : start + size] for start, size in zip(starts, sizes, strict=True) if size]


def kahan(leaves, fmt, mode):
    total = correction = 0.0
    for term in leaves:
        y = add(term, -correction, fmt, mode)
        t = add(total, y, fmt, mode)
        correction = add(add(t, -total, fmt, mode), -y, fmt, mode)
        total = t
    return total


def neumaier(leaves, fmt, mode):
    total = correction = 0.0
    for term in leaves:
        t = add(total, term, fmt, mode)
        larger, smaller = (total, term) if abs(total) >= abs(term) else (term, total)
        correction = add(correction, add(add(larger, -t, fmt, mode), smaller, fmt, mode), fmt, mode)
        total = t
    return add(total, correction, fmt, mode)


def exact_sum(pairs, fmt, mode):
    products = [left * right for left, right in pairs]
    if not all(math.isfinite(left) and math.isfinite(right) for left, right in pairs):
        return rounded(sum(products), fmt, mode)
    exact = sum((Fraction(left) * Fraction(right) for left, right in pairs), Fraction(0))
    return rounded(exact, fmt, mode, -0.0 if mode is Rounding.DOWN and pairs else 0.0)


def finished(total, held, fmt, mode):
    """The last rounding, to the result's format."""
    return rounded(total, fmt, mode, total if total == 0 else 0.0)
