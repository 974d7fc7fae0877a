"""Rounding kernels: the bits of float32 or float64 values to those of a narrower format's values.

One kernel serves every format: what depends on the format arrives at run time as a row of integers. Only the rounding
mode is code, and it is a constant when a kernel is compiled. The carrier's bits are int32 or int64 throughout.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import (
    VECTOR_BYTES,
    as_bits,
    as_float,
    convert_like,
    fence,
    int_add,
    int_and,
    int_or,
    int_sub,
    int_xor,
    prefer_wide_vectors,
    prefetch,
    shift_down,
    shift_left,
    shift_right,
    stream_vector,
    uninitialized,
)
from fpsim.backend.numba.random import hash_range, step_draw

NEAREST_EVEN, NEAREST_AWAY, TOWARD_ZERO, UP, DOWN, ODD, STOCHASTIC = range(7)

# What a row of rounding constants holds, as bits of the carrier.
DROPPED = 0  # significand bits that the format does not have
TIE = 1  # 1 where a tie looks at the last bit kept, 0 where there is none to look at
NEAREST = 2  # added before truncation when rounding to nearest even: half an ulp less one
SMALL_BELOW = 3  # magnitudes below 2^emin take the format's fixed quantum; 0 where the carrier's is the same
ANCHOR = 4  # a power of two whose ulp is that quantum
OVERFLOW_POSITIVE, OVERFLOW_NEGATIVE = 5, 6  # the least magnitudes that overflow
OVERFLOWED_POSITIVE, OVERFLOWED_NEGATIVE = 7, 8  # and what they become
INFINITY = 9  # the carrier's infinity
INFINITE = 10  # what an infinity becomes
QUIET = 11  # set in every NaN
FLUSH_POSITIVE, FLUSH_NEGATIVE = 12, 13  # magnitudes below become zero
SIGN = 14  # the sign bit
ZERO_SIGN = 15  # the sign bit if the format has a negative zero
ONE = 16
MAX_FINITE = 17
DRAW_LEFT, DRAW_RIGHT = 18, 19  # shifts between the 32 bits of a draw and the bits dropped
TOP_LEFT, TOP_RIGHT = 20, 21  # the same above max_finite, where the binade may end two ulps above
TWO_64, DRAW_SCALE = 22, 23  # 2^64 and 2^-32 over the quantum below 2^emin: their product may exceed the range
LENGTH = 24


BLOCK = 1024  # elements that go through a buffer in the cache
STREAMED_BLOCK = 64  # few enough that a block's stores overlap the next one's arithmetic
_AHEAD = 1024  # how far ahead of them its reads are asked for


@inlined
def _store(buffer: Any, target: Any) -> None:
    for i in range(target.size):
        target[i] = buffer[i]


@inlined
def _stream(source: Any, out: Any, start: int, buffer: Any) -> None:
    for i in range(0, STREAMED_BLOCK, VECTOR_BYTES // out.itemsize):
        stream_vector(out, start + i, buffer, i)
        prefetch(source, start + i + _AHEAD, 1)


@inlined
def load(row: Any) -> Any:
    """A row of constants as a tuple, so that they stay in registers."""
    return (
        row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7], row[8], row[9], row[10], row[11],
        row[12], row[13], row[14], row[15], row[16], row[17], row[18], row[19], row[20], row[21], row[22], row[23],
    )  # fmt: skip


@inlined
def _round_normal(magnitude: Any, negative: Any, c: Any, mode: Any) -> Any:
    """The carrier's own quantum times 2^dropped: integer rounding carries into the exponent as it should."""
    lowest = shift_left(c[ONE], c[DROPPED])
    mask = int_sub(lowest, c[ONE])
    truncated = int_sub(magnitude, int_and(magnitude, mask))
    if mode == NEAREST_EVEN:
        odd = int_and(shift_right(magnitude, c[DROPPED]), c[TIE])
        total = int_add(int_add(magnitude, c[NEAREST]), odd)
        return int_sub(total, int_and(total, mask))
    if mode == NEAREST_AWAY:
        total = int_add(magnitude, shift_right(lowest, c[ONE]))
        return int_sub(total, int_and(total, mask))
    if mode == TOWARD_ZERO:
        return truncated
    if mode == ODD:
        return int_or(truncated, lowest) if magnitude != truncated else truncated
    total = int_add(magnitude, mask) if negative == (mode == DOWN) else magnitude
    return int_sub(total, int_and(total, mask))


@inlined
def _round_small(magnitude: Any, negative: Any, c: Any, mode: Any) -> Any:
    """Below 2^emin. magnitude + anchor rounds to nearest even at the format's quantum, its last bit counting quanta,
    and taking the anchor away is exact; the other modes correct that count by one, seen from the exact error.
    """
    anchor = as_float(c[ANCHOR])
    value = as_float(magnitude)
    total = value + anchor
    if mode == NEAREST_EVEN:
        return as_bits(total - anchor)
    error = value - (total - anchor)  # exact: both are multiples of value's last place, within half a quantum
    count = as_bits(total)
    if mode == NEAREST_AWAY:
        quantum = as_float(int_add(c[ANCHOR], c[ONE])) - anchor
        if error + error == quantum:
            count = int_add(count, c[ONE])
    else:
        down = int_sub(count, c[ONE]) if error < 0 else count
        if mode == TOWARD_ZERO:
            count = down
        elif mode == ODD:
            count = int_or(down, c[ONE]) if error != 0 else down
        else:
            outward = negative == (mode == DOWN)
            missing, step = (error, c[ONE]) if outward else (-error, int_sub(int_xor(c[ONE], c[ONE]), c[ONE]))
            count = int_add(count, step) if missing > 0 else count
    return as_bits(as_float(count) - anchor)


@inlined
def round_bits(bits: Any, c: Any, mode: Any, plain: Any) -> Any:
    """The bits of the format's value that `bits` rounds to, in any deterministic mode.

    `plain` leaves out what only formats that flush subnormals or have no negative zero need.
    """
    sign = int_and(bits, c[SIGN])
    magnitude = int_xor(bits, sign)
    negative = sign != 0
    result = _round_normal(magnitude, negative, c, mode)
    if magnitude < c[SMALL_BELOW]:
        result = _round_small(magnitude, negative, c, mode)
    directed = mode in (UP, DOWN)
    if not plain:
        flush = c[FLUSH_NEGATIVE] if directed and negative else c[FLUSH_POSITIVE]
        result = int_xor(c[ONE], c[ONE]) if magnitude < flush else result
    overflow = c[OVERFLOW_NEGATIVE] if directed and negative else c[OVERFLOW_POSITIVE]
    overflowed = c[OVERFLOWED_NEGATIVE] if directed and negative else c[OVERFLOWED_POSITIVE]
    result = overflowed if magnitude >= overflow else result
    if mode != NEAREST_EVEN and mode != NEAREST_AWAY:  # nearest: an infinity and an overflow become the same
        result = c[INFINITE] if magnitude == c[INFINITY] else result
    result = int_or(magnitude, c[QUIET]) if magnitude > c[INFINITY] else result
    if not plain:
        sign = int_and(sign, c[ZERO_SIGN]) if result == 0 else sign
    return int_or(result, sign)


@inlined
def _draw_bound(draw: Any, left: Any, right: Any) -> Any:
    """The largest remainder that this draw rounds down, as the carrier's integers."""
    one = convert_like(1.0, draw)
    above = int_sub(shift_left(int_add(draw, one), convert_like(left, draw)), one)
    return convert_like(shift_down(above, convert_like(right, draw)), left)


@inlined
def round_bits_stochastically(bits: Any, c: Any, draw: Any, plain: Any) -> Any:
    """The upper neighbor in magnitude iff draw < floor(f * 2^32), f the exact distance from the lower one in quanta.

    `draw` is a uint32 for a float32, an int64 for a float64, where a negative one always takes the upper neighbor.
    Both comparisons are exact: scaling by powers of two is, and floor(f * 2^32) > draw iff the remainder, an integer,
    exceeds (((draw + 1) << left) - 1) >> right.
    """
    sign = int_and(bits, c[SIGN])
    magnitude = int_xor(bits, sign)
    lowest = shift_left(c[ONE], c[DROPPED])
    mask = int_sub(lowest, c[ONE])
    # Adding what takes a remainder above the bound past the next multiple, then truncating.
    total = int_add(magnitude, int_sub(mask, _draw_bound(draw, c[DRAW_LEFT], c[DRAW_RIGHT])))
    result = int_sub(total, int_and(total, mask))
    if not plain and magnitude > c[MAX_FINITE]:
        bound = _draw_bound(draw, c[TOP_LEFT], c[TOP_RIGHT])
        result = c[OVERFLOWED_POSITIVE] if int_sub(magnitude, c[MAX_FINITE]) > bound else c[MAX_FINITE]
    if magnitude < c[SMALL_BELOW]:
        anchor, value = as_float(c[ANCHOR]), as_float(magnitude)
        total_value = value + anchor
        count = as_bits(total_value)
        count = int_sub(count, c[ONE]) if total_value - anchor > value else count
        distance = (value - (as_float(count) - anchor)) * as_float(c[TWO_64]) * as_float(c[DRAW_SCALE])
        count = int_add(count, c[ONE]) if draw < convert_like(distance, draw) else count
        result = as_bits(as_float(count) - anchor)
    if not plain:
        zero = int_xor(c[ONE], c[ONE])
        result = zero if magnitude < c[FLUSH_POSITIVE] or result < c[FLUSH_NEGATIVE] else result
    result = c[OVERFLOWED_POSITIVE] if result > c[MAX_FINITE] else result
    result = c[INFINITE] if magnitude == c[INFINITY] else result
    result = int_or(magnitude, c[QUIET]) if magnitude > c[INFINITY] else result
    if not plain:
        sign = int_and(sign, c[ZERO_SIGN]) if result == 0 else sign
    return int_or(result, sign)


def make_round_array(mode: int, plain: bool, streams: bool) -> Any:
    """The kernel `(bits, out, row) -> None` over flat arrays for one deterministic mode; `out` may be `bits`.

    Where it `streams`, results go past the cache, so that `out` is not read before: it is another array, aligned to
    VECTOR_BYTES, its size a multiple of STREAMED_BLOCK.
    """
    at_once = STREAMED_BLOCK if streams else BLOCK

    @kernel
    def round_array(bits: Any, out: Any, row: Any) -> None:
        prefer_wide_vectors()
        c = load(row)
        buffer = uninitialized(at_once, bits.dtype)
        for start in range(0, bits.size, at_once):
            block = bits[start : start + at_once]
            for i in range(at_once if streams else block.size):
                buffer[i] = round_bits(block[i], c, mode, plain)
            if streams:
                _stream(bits, out, start, buffer)
            else:
                _store(buffer, out[start : start + at_once])
        if streams:
            fence()

    return round_array


@inlined
def _draws(key: Any, first: Any, hashes: Any, draws: Any) -> None:
    hash_range(key, first, hashes)
    for i in range(hashes.size):
        draws[i] = step_draw(hashes[i], np.uint32(0))


def make_round_stochastically(plain: bool, streams: bool) -> Any:
    """The kernel `(bits, out, row, draws, key, first_element) -> None`; element i draws as `first_element + i`, step 0.

    `draws` is scratch of BLOCK elements: uint32 for a float32 carrier, int64 for a float64 one. `streams` as for
    `make_round_array`.
    """
    at_once = STREAMED_BLOCK if streams else BLOCK

    @kernel
    def round_stochastically(bits: Any, out: Any, row: Any, draws: Any, key: Any, first_element: Any) -> None:
        prefer_wide_vectors()
        c = load(row)
        buffer, hashes = np.empty(at_once, bits.dtype), np.empty(at_once, np.uint32)  # faster than `uninitialized`
        for start in range(0, bits.size, at_once):
            block = bits[start : start + at_once]
            _draws(key, first_element + start, hashes if streams else hashes[: block.size], draws)
            for i in range(at_once if streams else block.size):
                buffer[i] = round_bits_stochastically(block[i], c, draws[i], plain)
            if streams:
                _stream(bits, out, start, buffer)
            else:
                _store(buffer, out[start : start + at_once])
        if streams:
            fence()

    return round_stochastically
