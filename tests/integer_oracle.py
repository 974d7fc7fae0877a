"""A fast oracle in 64-bit integers: exact significands, a jammed last bit, one rounding.

`test_oracles.py` checks it against rationals.

It follows the definition of an operation (unpack, compute on integers, round, pack) as a textbook does, and shares
nothing with fpsim's kernels, which compute in float64 and never unpack.
"""

import math
from typing import NamedTuple

import numba
import numpy as np

ROUND, ADD, SUB, MUL, DIV, SQRT, FMA = range(7)
OPERATIONS = {"round": ROUND, "add": ADD, "sub": SUB, "mul": MUL, "div": DIV, "sqrt": SQRT, "fma": FMA}
_WIDTH = 61  # bits that significands are brought to: sums stay below 2^63

_SPARE = 29  # low bits of float64's significand that no operand of at most 24 bits uses

jit = numba.njit(nogil=True, cache=True, error_model="numpy")


class Numbers(NamedTuple):
    """A format, as numbers."""

    precision: int
    emin: int
    max_finite: float
    infinite: float
    flush: int  # 0: kept, 1: judged after rounding, 2: before
    flush_inputs: bool
    negative_zero: bool


def numbers(fmt):
    infinite = fmt.max_finite if fmt.saturate else math.inf if fmt.specials == "ieee" else math.nan
    flush = (None, "after", "before").index(fmt.flush)
    return Numbers(fmt.precision, fmt.emin, fmt.max_finite, infinite, flush, fmt.flush_inputs, fmt.specials != "fnuz")


POWERS = 2.0 ** np.arange(-1022, 1024)


@jit
def scaled(n, exponent):
    """n * 2^exponent."""
    if -1022 <= exponent <= 1023:
        return n * POWERS[exponent + 1022]
    return math.ldexp(n, exponent)


@jit
def unpack(x):
    """(significand, exponent) of a finite float64's magnitude: an integer below 2^53 times a power of two."""
    bits = np.float64(x).view(np.int64)
    field, fraction = (bits >> 52) & 0x7FF, bits & 0xFFFFFFFFFFFFF
    if field == 0:
        return fraction, np.int64(-1074)
    return fraction | (np.int64(1) << 52), field - 1075


@jit
def bit_length(n):
    length = 0
    for width in (32, 16, 8, 4, 2, 1):
        if n >> width:
            n >>= width
            length += width
    return length + (1 if n else 0)


@jit
def normalized(n, exponent):
    shift = _WIDTH - bit_length(n)
    return n << shift, exponent - shift


@jit
def jam(n, shift):
    """n / 2^shift, its last bit set if anything was lost."""
    if shift > 62:
        return np.int64(n != 0)
    lost = n & ((np.int64(1) << shift) - 1)
    return (n >> shift) | np.int64(lost != 0)


@jit
def add_magnitudes(m, e, m_negative, n, f, n_negative):
    """The exact sum of two signed integers with exponents as (significand, exponent, sign), jammed."""
    if m == 0:
        return n, f, n_negative
    if n == 0:
        return m, e, m_negative
    m, e = normalized(m, e)
    n, f = normalized(n, f)
    if e < f or (e == f and m < n):
        m, e, m_negative, n, f, n_negative = n, f, n_negative, m, e, m_negative
    n = jam(n, e - f)
    return (m - n if m_negative != n_negative else m + n), e, m_negative


@jit
def root(n):
    """floor(sqrt(n)) and whether that is not exact, for n < 2^62."""
    r = np.int64(math.sqrt(np.float64(n)))
    while r * r > n:
        r -= 1
    while (r + 1) * (r + 1) <= n:
        r += 1
    return r, r * r != n


@jit
def pack(n, exponent, negative, mode, fmt):
    """n * 2^exponent with its sign, rounded; modes are numbered as `Rounding.code`."""
    if n == 0:
        return -0.0 if negative and fmt.negative_zero else 0.0
    top = bit_length(n) - 1 + exponent
    place = (top if fmt.flush else max(top, fmt.emin)) - fmt.precision + 1
    shift = place - exponent
    if shift <= 0:
        count, twice_rest = n << -shift, 0  # 0 below, 1 below the half, 2 the half, 3 above it
    elif shift > 62:
        count, twice_rest = np.int64(0), 1
    else:
        count = n >> shift
        rest = n & ((np.int64(1) << shift) - 1)
        half = np.int64(1) << (shift - 1)
        twice_rest = 0 if rest == 0 else 1 if rest < half else 2 if rest == half else 3
    odd = count & 1
    if mode == 0:
        up = twice_rest == 3 or (twice_rest == 2 and odd == 1)
    elif mode == 1:
        up = twice_rest >= 2
    elif mode == 2:
        up = False
    elif mode == 3:
        up = twice_rest > 0 and not negative
    elif mode == 4:
        up = twice_rest > 0 and negative
    else:
        up = twice_rest > 0 and odd == 0
    result = scaled(np.float64(count + up), place)
    if result > fmt.max_finite:
        inward = mode == 2 or mode == 5 or (mode == 3 and negative) or (mode == 4 and not negative)
        result = fmt.max_finite if inward else fmt.infinite
    small = top < fmt.emin if fmt.flush == 2 else result < scaled(1.0, fmt.emin)
    if fmt.flush and small:
        result = 0.0
    if result == 0.0 and not fmt.negative_zero:
        return 0.0
    return -result if negative else result


@jit
def special(x, fmt):
    """What the format has for an infinity or a NaN."""
    if x != x:
        return x
    return fmt.infinite if x > 0 else -fmt.infinite


@jit
def finite_result(op, x, y, z, mode, fmt):
    m, e = unpack(x)
    n, f = unpack(y)
    x_negative, y_negative = math.copysign(1.0, x) < 0, math.copysign(1.0, y) < 0
    if op == ROUND:
        return pack(m, e, x_negative, mode, fmt)
    if op == SQRT:
        m, e = normalized(m, e)
        if e % 2:
            m, e = m >> 1, e + 1  # exact: the significand has at most 53 bits of 61
        r, inexact = root(m)
        return pack((r << 1) | np.int64(inexact), e // 2 - 1, False, mode, fmt)
    if op == DIV:
        m, e = normalized(m, e)
        n, f = n >> _SPARE, f + _SPARE
        quotient = m // n
        return pack((quotient << 1) | np.int64(quotient * n != m), e - f - 1, x_negative != y_negative, mode, fmt)
    if op in (MUL, FMA):
        m, e, n, f = m >> _SPARE, e + _SPARE, n >> _SPARE, f + _SPARE
        m, e, x_negative = m * n, e + f, x_negative != y_negative  # exact: at most 24 bits each
        if op == MUL:
            return pack(m, e, x_negative, mode, fmt)
        n, f = unpack(z)
        y_negative = math.copysign(1.0, z) < 0
    same_zeros = m == 0 and n == 0 and x_negative == y_negative
    total, exponent, negative = add_magnitudes(m, e, x_negative, n, f, y_negative)
    if total == 0 and not same_zeros:
        negative = mode == 4
    return pack(total, exponent, negative, mode, fmt)


@jit
def operate(op, x, y, z, mode, fmt):
    """The float64 that an operation on values of the format delivers. Unused operands are 1."""
    if fmt.flush_inputs and op != ROUND:
        least = math.ldexp(1.0, fmt.emin)
        x = math.copysign(0.0, x) if abs(x) < least else x
        y = math.copysign(0.0, y) if abs(y) < least else y
        z = math.copysign(0.0, z) if abs(z) < least else z
    if op == SUB:
        op, y = ADD, -y
    if not fmt.negative_zero:
        x, y, z = x + 0.0, y + 0.0, z + 0.0
    if not (math.isfinite(x) and math.isfinite(y) and math.isfinite(z)):
        # float64 does not differ from any format in what infinities and NaNs give.
        wide = x
        if op == ADD:
            wide = x + y
        elif op == MUL:
            wide = x * y
        elif op == DIV:
            wide = x / y
        elif op == SQRT:
            wide = math.sqrt(x)
        elif op == FMA:
            wide = z if math.isfinite(x) and math.isfinite(y) else x * y + z
        if math.isfinite(wide):
            return 0.0 if not fmt.negative_zero else wide  # a number over infinity
        return special(wide, fmt)
    if op == DIV and y == 0.0:
        return math.nan if x == 0.0 else special(math.copysign(math.inf, x) * math.copysign(1.0, y), fmt)
    if op == SQRT and x <= 0.0:
        return math.nan if x < 0.0 else pack(np.int64(0), np.int64(0), math.copysign(1.0, x) < 0, mode, fmt)
    return finite_result(op, x, y, z, mode, fmt)


@jit
def operate_array(op, x, y, z, mode, fmt, out):
    """`operate` on flat arrays of float32 or float64, into one of the same dtype."""
    for i in range(out.size):
        out[i] = operate(op, np.float64(x[i]), np.float64(y[i]), np.float64(z[i]), mode, fmt)


@jit
def mismatches(got, want):
    """How many elements differ in value, sign of zero, or in being NaN."""
    count = 0
    for i in range(got.size):
        g, w = np.float64(got[i]), np.float64(want[i])
        if g != g or w != w:
            count += not (g != g and w != w)
        else:
            count += g != w or (g == 0.0 and math.copysign(1.0, g) != math.copysign(1.0, w))
    return count


@jit
def differing_bits(got, want, infinity):
    """How many patterns (uint32 or uint64) differ, any NaN being as good as another; `infinity` is the carrier's."""
    count = 0
    mask = infinity | (infinity - 1) | (infinity >> 1)
    for i in range(got.size):
        both_nan = (got[i] & mask) > infinity and (want[i] & mask) > infinity
        count += got[i] != want[i] and not both_nan
    return count


def differing(got, want):
    """How many elements of two float32 or float64 arrays differ in value, sign of zero or NaN-ness."""
    assert got.dtype == want.dtype and got.shape == want.shape
    bits = np.uint32 if got.dtype == np.float32 else np.uint64
    infinity = np.array(np.inf, got.dtype).view(bits)[()]
    return int(differing_bits(np.ravel(got).view(bits), np.ravel(want).view(bits), infinity))


def results(name, operands, fmt, mode):
    """`operate` on arrays of one dtype and size."""
    if not fmt.signed:
        return _scale_results(operands[0], fmt, mode)
    first = operands[0]
    ones = np.ones_like(first)
    out = np.empty_like(first)
    operate_array(OPERATIONS[name], *operands, *[ones] * (3 - len(operands)), mode.code, numbers(fmt), out)
    return out


def _scale_results(x, fmt, mode):
    """float8_e8m0fnu: no zero, no sign; what lies below its least value becomes it."""
    out = np.empty_like(x)
    raised = np.maximum(x, x.dtype.type(fmt.min_normal))
    operate_array(ROUND, raised, raised, raised, mode.code, numbers(fmt), out)
    out[~(x > 0) | np.isinf(x)] = np.nan
    return out
