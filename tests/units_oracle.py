"""Hardware units by their definitions: one element, one obvious step at a time.

Numbers are rationals, infinities and NaN floats. An infinite term decides the sum of what is added at once, whatever the
finite ones come to; what a step leaves infinite is a term of the next.
"""

import math
from fractions import Fraction

from fpsim.numbers.formats import FP32
from fpsim.numbers.rounding import Rounding
from tests.sums_oracle import rounded

NEAREST, ODD, INWARD = Rounding.NEAREST_EVEN, Rounding.ODD, Rounding.TOWARD_ZERO
FLUSHED = FP32.replace(name="flushed", flush="after")


def power(value, emin):
    """2^exponent of a rational that is not zero, never below 2^emin."""
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= Fraction(2) ** exponent > size
    return Fraction(2) ** max(exponent, emin)


def emins(fmt):
    """Those of a and of b: `fmt` is one format or a pair."""
    return [one.emin for one in (fmt if isinstance(fmt, tuple) else (fmt, fmt))]


def truncated(value, quantum):
    count = abs(value) // quantum
    return count * quantum if value > 0 else -count * quantum


def block(pairs, c, fmt, fraction, out, mode):
    """The addend and one block: align to the largest exponent, truncate, add, round once.

    Toward zero what lies beyond the range is infinite, as the published models say.
    """
    special = total(c, *(times(a, b) for a, b in pairs))
    if isinstance(special, float):
        return special
    first, second = emins(fmt)
    terms = [(a * b, power(a, first) * power(b, second)) for a, b in pairs if a and b]
    terms += [(c, power(c, out.emin))] if c else []
    if not terms:
        return Fraction(0)
    quantum = max(top for _, top in terms) / 2**fraction
    found = sum(truncated(value, quantum) for value, _ in terms)
    if mode is INWARD and abs(found) >= Fraction(2) ** (out.emax + 1):
        return math.copysign(math.inf, found)
    return number(rounded(found, out, mode))


def number(value):
    """A float as a rational, or as it is if it is not finite."""
    return Fraction(value) if math.isfinite(value) else value


def times(a, b):
    """The exact product; zero times infinity is NaN."""
    return a * b if isinstance(a, Fraction) and isinstance(b, Fraction) else float(sign(a) * sign(b))


def sign(value):
    """Of a rational -1, 0 or 1, which is all that a product with an infinity needs."""
    return (value > 0) - (value < 0) if isinstance(value, Fraction) else value


def total(*terms):
    """The exact sum of all terms at once; infinities of both signs give NaN."""
    special = {term for term in terms if isinstance(term, float)}
    if not special:
        return sum(terms, Fraction(0))
    return special.pop() if len(special) == 1 else math.nan


def blocks(a, b, c, fmt, size, fraction, out, mode):
    """Chained blocks in ascending k."""
    for first in range(0, len(a), size):
        c = block(list(zip(a, b, strict=True))[first : first + size], c, fmt, fraction, out, mode)
    return c


def emulated(a, b, c, fmt, fraction, out):
    """For every 32 terms two blocks of 16 from +0, k mod 4 < 2 first; then the addend."""
    for first in range(0, len(a), 32):
        pairs = list(zip(a, b, strict=True))[first : first + 32]
        halves = [[pair for k, pair in enumerate(pairs) if (k % 4 < 2) == early] for early in (True, False)]
        found = Fraction(0)
        for half in halves:
            found = block(half, found, fmt, fraction, out, INWARD if out == FP32 else NEAREST)
        c = number(rounded(total(found, c), out, NEAREST))
    return c


def unbounded(value):
    """24 bits to nearest even with any exponent; below 2^-126 zero, from 2^128 on infinity."""
    if isinstance(value, float) or value == 0:
        return value
    quantum = power(value, -2000) / 2**23
    count, rest = divmod(abs(value), quantum)
    count += rest > quantum / 2 or (rest == quantum / 2 and count % 2 == 1)
    result = count * quantum
    if result >= 2**128:
        return math.copysign(math.inf, value)
    return Fraction(0) if result < Fraction(2) ** -126 else result if value > 0 else -result


def without_subnormals(value):
    return Fraction(0) if abs(value) < Fraction(2) ** -126 else value


def vdpbf16ps(a, b, c):
    """Pairs, the later term first, each a multiply-add with one rounding; subnormals count as zeros."""
    a, b, c = [without_subnormals(x) for x in a], [without_subnormals(x) for x in b], without_subnormals(c)
    for first in range(0, len(a), 2):
        for k in (first + 1, first):
            if k < len(a):
                c = unbounded(total(times(a[k], b[k]), c))
    return c


def chain(a, b, c, out):
    for x, y in zip(a, b, strict=True):
        c = number(rounded(total(times(x, y), c), out, NEAREST))
    return c


def amx(a, b, c, flush):
    """For every 32 terms a chain over even and one over odd k, from zero."""
    step = unbounded if flush else lambda value: number(rounded(value, FP32, NEAREST))
    if flush:
        a, b, c = [without_subnormals(x) for x in a], [without_subnormals(x) for x in b], without_subnormals(c)
    for first in range(0, len(a), 32):
        sums = [Fraction(0), Fraction(0)]
        for k in range(first, min(first + 32, len(a))):
            sums[k % 2] = step(total(times(a[k], b[k]), sums[k % 2]))
        c = step(total(c, step(total(*sums))))
    return c


def to_odd(value):
    """24 bits, an inexact result made odd; below 2^-126 zero, from 2^128 on infinity."""
    if abs(value) < Fraction(2) ** -126:
        return Fraction(0)
    if abs(value) >= 2**128:
        return math.copysign(math.inf, value)
    return number(rounded(value, FP32, ODD))


def bfdot(a, b, c):
    a, b, c = [without_subnormals(x) for x in a], [without_subnormals(x) for x in b], without_subnormals(c)
    for first in range(0, len(a), 2):
        pair = total(*(to_odd(times(a[k], b[k])) for k in range(first, min(first + 2, len(a)))))
        c = to_odd(total(c, to_odd(pair)))
    return c


def bfdot_extended(a, b, c):
    for first in range(0, len(a), 2):
        pair = total(*(times(a[k], b[k]) for k in range(first, min(first + 2, len(a)))))
        c = number(rounded(total(c, number(rounded(pair, FP32, NEAREST))), FP32, NEAREST))
    return c


def cdna1(a, b, c, size):
    for first in range(0, len(a), size):
        exact = total(c, *(times(a[k], b[k]) for k in range(first, min(first + size, len(a)))))
        c = number(rounded(exact, FP32, NEAREST))
    return c


def cdna2(a, b, c, fmt):
    a, b = ([Fraction(0) if abs(v) < Fraction(fmt.min_normal) else v for v in x] for x in (a, b))
    c = without_subnormals(c)
    for first in range(0, len(a), 4):
        p = [unbounded(times(a[k], b[k])) if k < len(a) else Fraction(0) for k in range(first, first + 4)]
        c = unbounded(total(c, unbounded(total(unbounded(total(p[0], p[1])), unbounded(total(p[2], p[3]))))))
    return c


def floored(value, quantum):
    return value // quantum * quantum


def cdna3(a, b, c, fmt, size, halves=False):
    """Truncated at 24 bits below the largest product, then floored: 32 below with the addend, which has 24."""
    for first in range(0, len(a), size):
        pairs = list(zip(a, b, strict=True))[first : first + size]
        special = total(c, *(times(x, y) for x, y in pairs))
        if isinstance(special, float):
            c = special
            continue
        endless = total(Fraction(0), *(endless_from(x * y) for x, y in pairs))
        if isinstance(endless, float):
            c = endless
            continue
        dots = [truncated_sum(part, fmt) for part in ([pairs[::2], pairs[1::2]] if halves else [pairs])]
        top = max(own for _, own in dots)
        dot = sum(floored(value, top / 2**24) for value, _ in dots) if halves else dots[0][0]
        own = power(c, -126) if c else Fraction(2) ** -126
        both = max(top, own)
        low = Fraction(0) if halves and own < both / 2**25 else floored(c, both / 2**24)
        found = floored(dot, both / 2**32) + low
        if found:
            found = floored(found, power(found, -126) / 2**31)
        c = number(rounded(found, FP32, NEAREST))
    return c


def endless_from(product):
    """A finite product of 2^128 and above is infinite."""
    return math.copysign(math.inf, product) if abs(product) >= 2**128 else Fraction(0)


def truncated_sum(pairs, fmt):
    first, second = emins(fmt)
    terms = [(x * y, power(x, first) * power(y, second)) for x, y in pairs if x and y]
    top = max((own for _, own in terms), default=Fraction(2) ** -999)
    return sum((truncated(value, top / 2**24) for value, _ in terms), Fraction(0)), top


def scaled_block(a, b, a_scale, b_scale, c, formats, size, fraction):
    """Chained blocks of terms with power-of-two scales, which count in a term's exponent."""
    for first in range(0, len(a), size):
        places = range(first, min(first + size, len(a)))
        products = [times(times(a[k], b[k]), times(a_scale[k], b_scale[k])) for k in places]
        if isinstance(special := total(c, *products), float):
            c = special
            continue
        terms = [
            (a[k] * b[k] * a_scale[k] * b_scale[k], power(a[k], formats[0].emin) * power(b[k], formats[1].emin)
             * a_scale[k] * b_scale[k])
            for k in places if a[k] and b[k]
        ]  # fmt: skip
        c = aligned_sum(terms, c, fraction)
    return c


def scaled_groups(a, b, a_scale, b_scale, c, scale_emin, size, group, fraction):
    """Groups summed exactly and multiplied by their scales, aligned by the powers of the scales alone."""
    for first in range(0, len(a), size):
        if any(isinstance(x, float) for k in range(first, min(first + size, len(a))) for x in (c, a_scale[k], b_scale[k])):
            scales = [times(a_scale[k], b_scale[k]) for k in range(first, min(first + size, len(a)))]
            c = math.nan if any(isinstance(scale, float) for scale in scales) else c  # a scale may be NaN, never infinite
            continue
        terms = []
        for begin in range(first, min(first + size, len(a)), group):
            products = [a[k] * b[k] for k in range(begin, min(begin + group, len(a)))]
            scale = a_scale[begin] * b_scale[begin]
            if any(products) and scale:
                terms.append((sum(products) * scale, power(a_scale[begin], scale_emin) * power(b_scale[begin], scale_emin)))
        c = aligned_sum(terms, c, fraction)
    return c


def aligned_sum(terms, c, fraction):
    """Terms with their powers and an fp32 addend, truncated below the largest power, added exactly, rounded toward zero."""
    terms = terms + ([(c, power(c, FP32.emin))] if c else [])
    if not terms:
        return Fraction(0)
    quantum = max(top for _, top in terms) / Fraction(2) ** fraction
    found = sum(truncated(value, quantum) for value, _ in terms)
    if abs(found) >= Fraction(2) ** 128:
        return math.copysign(math.inf, found)
    return Fraction(rounded(found, FP32, INWARD))
