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
    min_normal: float
    max_finite: float
    infinite: float
    flush: int  # 0: kept, 1: judged after rounding, 2: before
    flush_inputs: bool
    negative_zero: bool


def numbers(fmt):
    infinite = fmt.max_finite if fmt.saturate else math.inf if fmt.specials == "ieee" else math.nan
    flush = (None, "after", "before").index(fmt.flush)
    has_negative_zero = fmt.specials != "fnuz"
    return Numbers(
        fmt.precision, fmt.emin, 2.0**fmt.emin, fmt.max_finite, infinite, flush, fmt.flush_inputs, has_negative_zero
    )


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
    """Of 0 <= n < 2^63. With the bit below its highest cleared, no conversion rounds it up to the next power of two."""
    return max(0, (np.float64(n & ~(n >> 1)).view(np.int64) >> 52) - 1022)


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


def goes_up(mode, rest, odd, negative):
    """Whether a magnitude becomes the next count; `rest` is 0, 1 below the half, 2 the half, 3 above it."""
    if mode == 0:
        return rest == 3 or (rest == 2 and odd)
    if mode == 1:
        return rest >= 2
    if mode in (3, 4):
        return rest > 0 and negative == (mode == 4)
    return mode == 5 and rest > 0 and not odd


def stays_finite(mode, negative):
    """Whether what is beyond the largest value becomes that."""
    return mode in (2, 5) or (mode in (3, 4) and negative != (mode == 4))


#: By mode (numbered as `Rounding.code`) and sign; `UP` also by 2 * rest + (1 if the count is odd).
UP = np.array(
    [[[goes_up(mode, i // 2, i % 2 == 1, negative) for i in range(8)] for negative in (False, True)] for mode in range(6)]
).astype(np.int64)
INWARD = np.array([[stays_finite(mode, negative) for negative in (False, True)] for mode in range(6)])


@jit
def split(n, exponent, fmt):
    """n * 2^exponent, n > 0, as a count of a place and a rest: (count, place, what `UP` asks for, exponent of the top bit)."""
    top = bit_length(n) - 1 + exponent
    place = (top if fmt.flush else max(top, fmt.emin)) - fmt.precision + 1
    shift = place - exponent
    right = min(max(shift, 0), 62)  # n is below 2^62: nothing is counted by a longer shift, and less than a half is left
    n <<= max(-shift, 0)
    count, lost, half = n >> right, n & ((np.int64(1) << right) - 1), (np.int64(1) << right) >> 1
    rest = np.int64(lost != 0) * (1 + (lost >= half) + (lost > half)) if shift <= 62 else np.int64(1)
    return count, place, 2 * rest + (count & 1), top


@jit
def deliver(count, place, top, negative, inward, fmt):
    """count * 2^place as the format has it."""
    result = scaled(np.float64(count), place)
    if result > fmt.max_finite:
        result = fmt.max_finite if inward else fmt.infinite
    if fmt.flush and (top < fmt.emin if fmt.flush == 2 else result < fmt.min_normal):
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
def finite_result(op, x, y, z):
    """(significand, exponent, sign, whether it is zero by cancellation) of the exact result of finite numbers, jammed."""
    m, e = unpack(x)
    x_negative = math.copysign(1.0, x) < 0
    if op == ROUND:
        return m, e, x_negative, False
    if op == SQRT:
        m, e = normalized(m, e)
        if e % 2:
            m, e = m >> 1, e + 1  # exact: the significand has at most 53 bits of 61
        r, inexact = root(m)
        return (r << 1) | np.int64(inexact), e // 2 - 1, False, False
    n, f = unpack(y)
    y_negative = math.copysign(1.0, y) < 0
    if op == DIV:
        m, e = normalized(m, e)
        n, f = n >> _SPARE, f + _SPARE
        quotient = m // n
        return (quotient << 1) | np.int64(quotient * n != m), e - f - 1, x_negative != y_negative, False
    if op in (MUL, FMA):
        m, e, n, f = m >> _SPARE, e + _SPARE, n >> _SPARE, f + _SPARE
        m, e, x_negative = m * n, e + f, x_negative != y_negative  # exact: at most 24 bits each
        if op == MUL:
            return m, e, x_negative, False
        n, f = unpack(z)
        y_negative = math.copysign(1.0, z) < 0
    same_zeros = m == 0 and n == 0 and x_negative == y_negative
    total, exponent, negative = add_magnitudes(m, e, x_negative, n, f, y_negative)
    return total, exponent, negative, total == 0 and not same_zeros


@jit
def known_result(op, x, y, z, fmt):
    """(whether no mode matters, what infinities, NaNs and zeros then give); the rest is for `finite_result` to say."""
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
            return True, 0.0 if not fmt.negative_zero else wide  # a number over infinity
        return True, special(wide, fmt)
    if op == DIV and y == 0.0:
        return True, math.nan if x == 0.0 else special(math.copysign(math.inf, x) * math.copysign(1.0, y), fmt)
    if op == SQRT and x <= 0.0:
        return True, math.nan if x < 0.0 else x if fmt.negative_zero else 0.0
    return False, x


@jit
def as_operand(x, fmt):
    """Subnormals may count as zeros, and there may be one zero only."""
    if fmt.flush_inputs and abs(x) < fmt.min_normal:
        x = math.copysign(0.0, x)
    return x if fmt.negative_zero else x + 0.0


@jit
def operate_array(op, x, y, z, modes, fmt, out):
    """What an operation on flat arrays delivers, a row for each mode. Unused operands are copies of the first."""
    sign_of_y = -1.0 if op == SUB else 1.0
    op = ADD if op == SUB else op
    for i in range(out.shape[1]):
        left, right, third = np.float64(x[i]), sign_of_y * np.float64(y[i]), np.float64(z[i])
        if op != ROUND:
            left, right, third = as_operand(left, fmt), as_operand(right, fmt), as_operand(third, fmt)
        is_known, known = known_result(op, left, right, third, fmt)
        if is_known:
            for k in range(modes.size):
                out[k, i] = known
            continue
        n, exponent, negative, cancelled = finite_result(op, left, right, third)
        if n == 0:
            for k in range(modes.size):
                out[k, i] = -0.0 if fmt.negative_zero and (modes[k] == 4 if cancelled else negative) else 0.0
            continue
        count, place, rest, top = split(n, exponent, fmt)
        for k in range(modes.size):
            up, inward = UP[modes[k], np.int64(negative), rest], INWARD[modes[k], np.int64(negative)]
            out[k, i] = deliver(count + up, place, top, negative, inward, fmt)


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
def differing_bits(got, want, magnitude, infinity):
    """How many patterns (all uint32, or all uint64) differ, any NaN being as good as another; `magnitude` masks the sign."""
    count = 0
    for i in range(got.size):
        both_nan = (got[i] & magnitude > infinity) & (want[i] & magnitude > infinity)
        count += (got[i] != want[i]) & ~both_nan
    return count


def differing(got, want):
    """How many elements of two float32 or float64 arrays differ in value, sign of zero or NaN-ness."""
    assert got.dtype == want.dtype and got.shape == want.shape
    bits = np.uint32 if got.dtype == np.float32 else np.uint64
    infinity = np.array(np.inf, got.dtype).view(bits)[()]
    return int(differing_bits(np.ravel(got).view(bits), np.ravel(want).view(bits), np.iinfo(bits).max >> bits(1), infinity))


def results_in(modes, name, operands, fmt):
    """A row for each mode: what the operation gives on arrays of one dtype and size."""
    first = operands[0]
    codes, out = np.array([mode.code for mode in modes]), np.empty((len(modes), first.size), first.dtype)
    if not fmt.signed:  # float8_e8m0fnu: no zero, no sign; what lies below its least value becomes it
        operands = [np.maximum(first, first.dtype.type(fmt.min_normal))]
    operands = [*operands, *[operands[0]] * (3 - len(operands))]
    operate_array(OPERATIONS[name], *operands, codes, numbers(fmt), out)
    if not fmt.signed:
        out[:, ~(first > 0) | np.isinf(first)] = np.nan
    return out


def results(name, operands, fmt, mode):
    """What the operation gives on arrays of one dtype and size."""
    return results_in([mode], name, operands, fmt)[0]
