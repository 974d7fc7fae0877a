"""Operations in float64 whose results lose nothing that a later rounding to at most 24 bits could miss.

Each block of results is the exact result rounded to odd (Boldo and Melquiond 2008), or truncated together with what
stochastic rounding needs of the rest. The operands are values of formats whose products and quotients stay within
float64 (`require_arithmetic` says which).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, fused_multiply_add, int_max, prefer_wide_vectors, uninitialized
from fpsim.backend.numba.random import hash_range, step_draw
from fpsim.backend.numba.rounding import load, round_bits_stochastically

ADD, MUL, DIV, SQRT, FMA = range(5)

_SIGN = np.int64(np.iinfo(np.int64).min)
_INFINITY = np.int64(0x7FF0000000000000)
_EXPONENT = np.int64(52)
_BIAS = np.int64(1023)
_ONE = np.int64(1)


@inlined
def _two_sum(a: Any, b: Any, down: Any) -> Any:
    """a + b to nearest and the exact rest (Knuth's TwoSum; NaN where the sum is not finite).

    An exact zero from operands of unlike signs is -0 when rounding down (IEEE 754-2019, section 6.3).
    """
    total = a + b
    part = total - a
    rest = (a - (total - part)) + (b - part)
    unlike = (as_bits(a) ^ as_bits(b)) < 0
    return (-0.0 if down and unlike and total == 0.0 else total), rest


@inlined
def _nearest(op: Any, a: Any, b: Any, c: Any, down: Any) -> Any:
    """The float64 result, and a number of the sign of what the exact one has beyond it (not finite: no such number).

    For ADD, MUL and FMA that number is the difference itself. For DIV it is the difference times b, for SQRT it is
    a - root^2: both are exact (Boldo and Daumas 2003).
    """
    if op == ADD:
        return _two_sum(a, b, down)
    if op == MUL:
        return a * b, 0.0  # exact: at most 48 bits within the range
    if op == FMA:
        return _two_sum(a * b, c, down)
    if op == DIV:
        quotient = a / b
        rest = fused_multiply_add(-quotient, b, a)
        return quotient, (-rest if b < 0.0 else rest)
    root = np.sqrt(a)
    return root, fused_multiply_add(-root, root, a)


@inlined
def _flushed(x: Any, least: Any) -> Any:
    """x, or a zero of its sign below `least`."""
    return as_float(as_bits(x) & _SIGN) if abs(x) < least else x


@inlined
def _odd(result: Any, rest: Any) -> Any:
    """The nearest result moved to the neighbor with an odd significand if it is inexact.

    A quotient that overflowed float64 has an infinite rest and becomes the largest finite number.
    """
    bits = as_bits(result)
    outward = (rest > 0.0) == (bits >= 0)
    inexact = (rest < 0.0 or rest > 0.0) and (bits & _ONE) == 0
    return as_float(bits + (_ONE if outward else -_ONE) if inexact else bits)


def make_operation(op: int) -> Any:
    """The kernel `(a, b, c, out, least, down) -> None`: results rounded to odd. Operands below `least` are zeros."""

    @kernel
    def operation(a: Any, b: Any, c: Any, out: Any, least: Any, down: Any) -> None:
        prefer_wide_vectors()
        for i in range(out.size):
            x, y, z = _flushed(a[i], least), _flushed(b[i], least), _flushed(c[i], least)
            result, rest = _nearest(op, x, y, z, down)
            out[i] = _odd(result, rest)

    return operation


@inlined
def _reaches(op: Any, result: Any, rest: Any, divisor: Any, step: Any) -> Any:
    """Whether the exact magnitude is at least |result| + step, for a step of at most 3 bits below 2^-50 of the result.

    Every product is exact. For SQRT: root + step <= sqrt(a) iff rest - 2 * step * root >= step^2, where the left side
    is a multiple of 2^-107 a and so exact whenever it is as small as the right side.
    """
    if op == DIV:
        return rest >= step * abs(divisor)
    if op == SQRT:
        return fused_multiply_add(-2.0 * step, result, rest) >= step * step
    return rest >= step


@inlined
def _truncated(op: Any, result: Any, rest: Any, divisor: Any, precision: Any, least: Any, top: Any) -> Any:
    """The bits of the exact result truncated to float64, and floor((exact - truncated) / unit): a unit is 2^-32 of the
    format's ulp there.

    `least` is the exponent of the smallest ulp; from `top` on the ulp is twice as large.
    """
    bits = as_bits(result)
    sign = bits & _SIGN
    magnitude = bits ^ sign
    if magnitude >= _INFINITY and not (rest < 0.0 or rest > 0.0):
        return bits, np.int64(0)
    rest = -rest if sign != 0 else rest
    magnitude -= _ONE if rest < 0.0 else np.int64(0)
    exponent = (magnitude >> _EXPONENT) - _BIAS
    ulp = int_max(exponent - precision + _ONE, least) + (_ONE if as_float(magnitude) >= top else np.int64(0))
    more = exponent - np.int64(52) - (ulp - np.int64(32))  # log2 of float64's steps in units
    count = np.int64(0)
    if more > 0 and rest != 0.0:
        steps = _ONE << more
        unit = as_float((ulp - np.int64(32) + _BIAS) << _EXPONENT)
        start = steps if rest < 0.0 else np.int64(0)
        for tried in range(1, steps):
            count += _reaches(op, as_float(bits ^ sign), rest, divisor, np.float64(tried - start) * unit)
    return magnitude | sign, count


def make_truncated_operation(op: int) -> Any:
    """The kernel `(a, b, c, out, counts, least_operand, precision, least, top) -> None`: truncated bits, units left."""

    @kernel
    def truncated_operation(
        a: Any, b: Any, c: Any, out: Any, counts: Any, least_operand: Any, precision: Any, least: Any, top: Any
    ) -> None:
        for i in range(out.size):
            x, y, z = _flushed(a[i], least_operand), _flushed(b[i], least_operand), _flushed(c[i], least_operand)
            result, rest = _nearest(op, x, y, z, False)
            out[i], counts[i] = _truncated(op, result, rest, y, precision, least, top)

    return truncated_operation


@kernel
def round_truncated(bits: Any, counts: Any, out: Any, row: Any, key: Any, first_element: Any) -> None:
    """Stochastic rounding of exact results given as `make_truncated_operation` gives them.

    draw < floor(f * 2^32) + count iff draw - count < floor(f * 2^32), f the truncated result's distance. `row` is
    `rounding_constants` of the format for float64.
    """
    constants = load(row)
    hashes = uninitialized(bits.size, np.uint32)
    hash_range(key, first_element, hashes)
    for i in range(bits.size):
        draw = np.int64(step_draw(hashes[i], np.uint32(0))) - counts[i]
        out[i] = round_bits_stochastically(bits[i], constants, draw, False)


@kernel
def fused_array(a: Any, b: Any, c: Any, out: Any) -> None:
    """a * b + c in float64, rounded once to nearest even."""
    for i in range(out.size):
        out[i] = fused_multiply_add(a[i], b[i], c[i])
