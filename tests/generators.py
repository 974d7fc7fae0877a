"""Operands built to be hard: cancellation, ties, double rounding, subnormals, overflow. Reproducible and quick."""

import math

import numpy as np

from tests.integer_oracle import jit, scaled

ADD, MUL, DIV, FMA = range(4)
_KIND = {"add": ADD, "sub": ADD, "mul": MUL, "div": DIV, "sqrt": MUL, "fma": FMA}


@jit
def random_bits(seed, index):
    """64 bits for a pair of numbers (SplitMix64)."""
    z = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(index) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@jit
def fill_bits(seed, out):
    for i in range(out.size):
        out[i] = random_bits(seed, i)


@jit
def fitted(x, precision, emin, max_finite):
    """x truncated to the format's values."""
    if x == 0.0 or not math.isfinite(x):
        return x
    exponent = ((np.float64(x).view(np.int64) >> 52) & 0x7FF) - 1023
    place = max(exponent, emin) - precision + 1
    value = scaled(math.floor(scaled(abs(x), -place)), place)
    return math.copysign(min(value, max_finite), x)


@jit
def significand(r, precision):
    """A significand in [1, 2): random, or with few bits set, or with most."""
    stored = precision - 1
    if stored == 0:
        return 1.0
    kind = r & np.uint64(3)
    bits = np.int64(r >> np.uint64(8)) & ((1 << stored) - 1)
    if kind >= np.uint64(2):
        first = (np.int64((r >> np.uint64(40)) & np.uint64(0xFF)) * stored) >> 8
        second = (np.int64((r >> np.uint64(48)) & np.uint64(0xFF)) * stored) >> 8
        bits = (1 << first) | (1 << second)
        if kind == np.uint64(3):
            bits = (1 << stored) - bits
    return 1.0 + scaled(np.float64(bits & ((1 << stored) - 1)), -stored)


@jit
def between(r, low, high):
    """An integer in [low, high]."""
    return low + np.int64((((r >> np.uint64(20)) & np.uint64(0xFFFFFFFF)) * np.uint64(high - low + 1)) >> np.uint64(32))


@jit
def anything(r, precision, emin, emax, max_finite):
    """A value of any exponent; one in 32 is special."""
    sign = -1.0 if r >> np.uint64(63) else 1.0
    if (r & np.uint64(31)) == np.uint64(0):
        which = np.int64(r >> np.uint64(5)) & 7
        if which == 0:
            return sign * 0.0
        if which == 1:
            return sign * math.inf
        if which == 2:
            return math.nan
        if which == 3:
            return sign * max_finite
        if which == 4:
            return sign * scaled(1.0, emin)
        return sign * scaled(1.0, emin - precision + 1)
    s = significand(r >> np.uint64(5), precision)
    return sign * fitted(scaled(s, between(r, emin - precision, emax)), precision, emin, max_finite)


@jit
def fill(op, seed, a, b, c, precision, emin, emax, max_finite):
    """Operands: every eighth is anything, the others are of seven hard kinds in turn. Only fma has a third."""
    p = precision
    x = y = z = 0.0
    for i in range(a.size):
        r, s = random_bits(seed, 4 * i), random_bits(seed, 4 * i + 1)
        t, u = random_bits(seed, 4 * i + 2), random_bits(seed, 4 * i + 3)
        kind = (i + (i >> 6)) & 7  # shifted again and again, so that no kind keeps to a place of a vector
        plus = -1.0 if (u >> np.uint64(8)) & np.uint64(1) else 1.0
        few = between(u, -3, 3)
        middle = min(p + 2, emax - 1)
        if kind == 0:
            x = anything(r, p, emin, emax, max_finite)
            y = anything(s, p, emin, emax, max_finite)
            z = anything(t, p, emin, emax, max_finite)
        elif op == ADD:
            exponent = between(t, emin, emax)
            if kind == 2:
                exponent = min(emin + 2, emax)
            if kind == 3:
                exponent = emax
            x = plus * scaled(significand(r, p), exponent)
            if kind <= 2:  # cancellation
                y = -x * (1.0 + scaled(np.float64(few), 1 - p))
            elif kind == 3:  # overflow
                y = x * scaled(significand(s, p), -between(t, 0, p + 1))
            else:  # ties, and rests beyond the last bit
                below = between(s, p - 2, p + 2 if kind < 6 else 3 * p)
                y = (1.0 if few > 0 else -1.0) * scaled(significand(s, p), exponent - below)
        elif op == MUL:
            first = between(r, max(emin, -emax), min(emax, -emin))
            x = plus * scaled(significand(r, p), first)
            wanted = between(t, -middle, middle)
            if kind <= 3:
                wanted = emin - between(t, -3, p + 2)
            elif kind == 4:
                wanted = emax + between(t, -2, 1)
            y = scaled(significand(s, p), wanted - first)
        elif op == DIV:
            first = between(r, emin, emax)
            x = plus * scaled(significand(r, p), first)
            wanted = between(t, -middle, middle)
            if kind <= 3:
                wanted = emin - between(t, -3, p + 2)
            elif kind == 4:
                wanted = emax + between(t, -2, 1)
            y = scaled(significand(s, p), first - wanted)
        else:
            first = between(r, max(emin, -emax) // 2, min(emax, -emin) // 2)
            x = plus * scaled(significand(r, p), first)
            if kind == 4:  # subnormal results
                y = scaled(significand(s, p), emin - between(s, -2, p + 2) - first)
                z = scaled(np.float64(between(t, -(1 << p), 1 << p)), emin - p + 1)
            elif kind == 5:  # overflow
                y = scaled(significand(s, p), emax - first - between(s, 0, 1))
                z = (max_finite - abs(x) * y) * (1.0 + scaled(np.float64(few), 1 - p)) * plus
                y = y if few else y * 0.5
            elif kind == 3:  # a product on or beside a tie of its own, and a rest far below
                y = scaled(significand(s, p), between(s, -middle, middle))
                z = scaled(significand(t, p), first - between(t, p, 3 * p)) * (1.0 if few > 0 else -1.0)
            elif kind == 2 or kind == 6:  # the product is about half an ulp of c, or far less
                exponent = between(t, emin, emax)
                z = scaled(significand(t, p), exponent) * (1.0 if few > 0 else -1.0)
                y = scaled(significand(s, p), exponent - between(s, p - 2, p + 2 if kind == 2 else 3 * p) - first)
            else:  # cancellation
                y = anything(s, p, emin, emax, max_finite)
                z = -(x * y) * (1.0 + scaled(np.float64(few), 1 - p))
        a[i] = fitted(x, p, emin, max_finite)
        b[i] = fitted(y, p, emin, max_finite)
        if op == FMA:
            c[i] = fitted(z, p, emin, max_finite)


def operands(name, fmt, count, seed, dtype):
    """Arrays of values of the format for an operation."""
    arrays = [np.empty(count, dtype) for _ in range(3)]
    fill(_KIND[name], seed, *arrays, fmt.precision, fmt.emin, fmt.emax, fmt.max_finite)
    arrays = arrays[: {"sqrt": 1, "fma": 3}.get(name, 2)]
    for array in arrays:
        if not fmt.has_infinity:
            array[np.isinf(array)] = fmt.max_finite
    return arrays


def patterns(count, seed, dtype):
    """Random bit patterns of a float dtype."""
    out = np.empty(count * np.dtype(dtype).itemsize // 8, np.uint64)
    fill_bits(seed, out)
    return out.view(dtype)
