"""How many products of two matrices are zero, term by term, found from the factors alone.

Everywhere a and b are the bits of finite numbers, as unsigned integers, and `values` is any array of their float type. Every
product of two factors is exact in float64, where it is compared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import (
    VECTOR_BYTES,
    as_bits,
    as_float,
    int_add,
    int_and,
    int_or,
    int_sub,
    lowest_bit,
    prefer_wide_vectors,
    shift_left,
    shift_right,
    uninitialized,
    zeroed,
)
from fpsim.backend.numba.tiles import REGISTER_BITS, SIGN, data_of, load_vector

_MOST_VALUES = 2**10  # magnitudes that are counted by what they are


@kernel
def count_zero_leaves(values: Any, a: Any, b: Any, positive: float, negative: float, zeros: Any, underflows: Any) -> None:
    """For each k, how many products of a[:, k] and b[k, :] are zero when those up to a magnitude become zero.

    The magnitude is that for positive or for negative products. `underflows` are those of nonzero factors.
    """
    prefer_wide_vectors()
    rows, leaves = a.shape
    columns = b.shape[1]
    one = a.dtype.type(1)
    none = int_sub(one, one)
    most = int_sub(none, one)
    magnitude = shift_right(most, one)
    most_lost, is_some, all_bits = max(positive, negative), False, none
    nonzero, least_a, least_b = zeroed(leaves, a.dtype), uninitialized(leaves, a.dtype), uninitialized(leaves, a.dtype)
    per_line = VECTOR_BYTES // a.itemsize
    limits = zeroed((leaves + per_line - 1) // per_line * per_line, a.dtype)  # of a's magnitudes, less one
    largest = none
    for k in range(leaves):
        least_a[k] = most
    for i in range(rows):
        row = a[i]
        for k in range(leaves):
            bits = int_and(row[k], magnitude)
            less = int_sub(bits, one)
            nonzero[k] = int_add(nonzero[k], a.dtype.type(less != most))
            least_a[k] = min(least_a[k], less)
            largest, all_bits = max(largest, bits), int_or(all_bits, bits)
    for k in range(leaves):
        row = b[k]
        of_row, least = none, most
        for j in range(columns):
            bits = int_and(row[j], magnitude)
            less = int_sub(bits, one)
            of_row = int_add(of_row, a.dtype.type(less != most))
            least = min(least, less)
            largest, all_bits = max(largest, bits), int_or(all_bits, bits)
        least_b[k] = least
        zeros[k] = rows * columns - np.int64(nonzero[k]) * np.int64(of_row)
        if nonzero[k] and of_row:
            factor = np.float64(as_float(int_add(least, one)))
            if np.float64(as_float(int_add(least_a[k], one))) * factor <= most_lost:
                limits[k] = a.dtype.type(_largest_factor(values, factor, most_lost))
                is_some = True
    if is_some:
        least = most
        for k in range(leaves):
            least = min(least, min(least_a[k], least_b[k]))
        smallest = int_add(least, one)
        shift = a.dtype.type(lowest_bit(all_bits))
        count = np.int64(shift_right(int_sub(largest, smallest), shift)) + 1
        if count <= _MOST_VALUES:
            _count_by_value(values, a, b, positive, negative, limits, smallest, shift, count, underflows)
        else:
            _count_by_limit(values, a, b, positive, negative, limits, underflows)
        for k in range(leaves):
            zeros[k] += underflows[k]


@kernel
def count_zero_leaves_of_pairs(
    values: Any, a: Any, b: Any, positive: float, negative: float, zeros: Any, underflows: Any
) -> None:
    """The sums of what `count_zero_leaves` finds for each pair of (n, i, k) and (n, k, j), added to both."""
    own_zeros, own_underflows = zeroed(zeros.size, np.int64), zeroed(zeros.size, np.int64)
    for pair in range(a.shape[0]):
        for k in range(zeros.size):
            own_zeros[k] = own_underflows[k] = 0
        count_zero_leaves(values, a[pair], b[pair], positive, negative, own_zeros, own_underflows)
        for k in range(zeros.size):
            zeros[k] += own_zeros[k]
            underflows[k] += own_underflows[k]


@kernel
def _count_by_value(
    values: Any, a: Any, b: Any, positive: float, negative: float, limits: Any, smallest: Any, shift: Any, count: int,
    underflows: Any,
) -> None:  # fmt: skip
    """The underflows of factors of few magnitudes, smallest + (n << shift) for n below `count`.

    For each k, how many factors of a there are of each sign and magnitude, times how many of b are small enough for it.
    """
    prefer_wide_vectors()
    rows, leaves = a.shape
    columns = b.shape[1]
    one = a.dtype.type(1)
    none = int_sub(one, one)
    magnitude, sign = shift_right(int_sub(none, one), one), a.dtype.type(8 * a.itemsize - 1)
    # For each sign of a product and magnitude of one factor, how many magnitudes of the other make it vanish.
    enough = zeroed((2, count), np.int64)
    for n in range(count):
        factor = np.float64(as_float(int_add(smallest, shift_left(a.dtype.type(n), shift))))
        for negated, least in enumerate((positive, negative)):
            if least > 0:
                beyond = np.int64(_largest_factor(values, factor, least)) - np.int64(smallest)
                enough[negated, n] = 0 if beyond < 0 else min(count, int(beyond >> np.int64(shift)) + 1)
    factors = zeroed((leaves, 2, count), np.uint32)
    row = zeroed(limits.size, a.dtype)
    per_line = VECTOR_BYTES // a.itemsize
    for i in range(rows):
        source = a[i]
        for k in range(leaves):
            row[k] = source[k]
        for low in range(0, row.size, per_line):
            small = _are_below(row, limits, low)
            while small != 0:
                k = low + lowest_bit(small)
                small &= small - 1
                n = shift_right(int_sub(int_and(row[k], magnitude), smallest), shift)
                factors[k, np.int64(shift_right(row[k], sign)), np.int64(n)] += np.uint32(1)
    others, up_to = zeroed((2, count), np.int64), zeroed((2, count + 1), np.int64)
    for k in range(leaves):
        if limits[k] == none:
            continue
        for side in range(2):
            for n in range(count):
                others[side, n] = 0
        for j in range(columns):
            bits = int_and(b[k, j], magnitude)
            if bits != none:
                others[np.int64(shift_right(b[k, j], sign)), np.int64(shift_right(int_sub(bits, smallest), shift))] += 1
        for side in range(2):
            for n in range(count):
                up_to[side, n + 1] = up_to[side, n] + others[side, n]
        total = np.int64(0)
        for side in range(2):
            for n in range(count):
                if factors[k, side, n]:
                    for other in range(2):
                        total += np.int64(factors[k, side, n]) * up_to[other, enough[side ^ other, n]]
        underflows[k] += total


@kernel
def _count_by_limit(values: Any, a: Any, b: Any, positive: float, negative: float, limits: Any, underflows: Any) -> None:
    """The underflows of factors of any magnitudes: each small one of a is compared with the row of b."""
    prefer_wide_vectors()
    rows, leaves = a.shape
    columns = b.shape[1]
    one = a.dtype.type(1)
    none = int_sub(one, one)
    magnitude, sign = shift_right(int_sub(none, one), one), a.dtype.type(8 * a.itemsize - 1)
    parts = 1 if positive == negative else 2
    per_line = VECTOR_BYTES // a.itemsize
    stride = (columns + per_line - 1) // per_line * per_line
    # Lines of what is compared with a limit, for every k that is looked at: of all of b's row, or of each sign by itself.
    room, has_lines = uninitialized(leaves * parts * stride + per_line, b.dtype), zeroed(leaves, np.bool_)
    first = -room.ctypes.data % VECTOR_BYTES // a.itemsize  # whole lines of the cache are read in half the time
    lines = room[first : first + leaves * parts * stride].reshape((leaves, parts, stride))
    row = zeroed(limits.size, a.dtype)
    for i in range(rows):
        source = a[i]
        for k in range(leaves):
            row[k] = source[k]
        for low in range(0, row.size, per_line):
            small = _are_below(row, limits, low)
            while small != 0:
                k = low + lowest_bit(small)
                small &= small - 1
                bits = int_and(row[k], magnitude)
                if not has_lines[k]:
                    has_lines[k] = True
                    for part in range(parts):
                        line = lines[k, part]
                        for j in range(columns):  # zero, and the other sign, become the largest number without a sign
                            less = int_and(_lessened(b[k, j], magnitude, one), magnitude)
                            line[j] = less if parts == 1 or shift_right(b[k, j], sign) == part else magnitude
                for part in range(parts):
                    least = positive if parts == 1 or shift_right(row[k], sign) == part else negative
                    if least == 0:
                        continue
                    line = lines[k, part]
                    limit = a.dtype.type(_largest_factor(values, np.float64(as_float(bits)), least))
                    tiny = none
                    for j in range(columns):  # the sign of a difference: masks take longer to count
                        tiny = int_add(tiny, shift_right(int_sub(line[j], limit), sign))
                    underflows[k] += np.int64(tiny)


@intrinsic
def _are_below(typing_context: Any, bits: Any, limits: Any, start: Any) -> Any:
    """A bit for each lane of a vector from `start` on: whether a magnitude's bits less one are below the limit's."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        lanes = REGISTER_BITS // bits.dtype.bitwidth
        values, ceilings = (
            load_vector(builder, data_of(context, builder, array, argument), arguments[2], lanes)
            for array, argument in ((bits, arguments[0]), (limits, arguments[1]))
        )
        below = ((values & (SIGN[values.width] - 1)) - 1).compare("<", ceilings)
        return builder.zext(builder.bitcast(below.value, ir.IntType(lanes)), ir.IntType(64))

    return types.int64(bits, limits, start), generate


@inlined
def _lessened(bits: Any, magnitude: Any, one: Any) -> Any:
    """A magnitude's bits less one: of zero, the largest number."""
    return int_sub(int_and(bits, magnitude), one)


@inlined
def _largest_factor(values: Any, factor: float, least: float) -> Any:
    """The bits of the largest magnitude whose product with the factor, which is not zero, is at most `least`."""
    limit = as_bits(values.dtype.type(least / factor))
    return limit - np.int64(np.float64(as_float(limit)) * factor > least)  # the quotient may round upward, to infinity even
