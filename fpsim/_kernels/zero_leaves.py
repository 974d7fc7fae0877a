"""How many products of two matrices are zero, term by term, found from the factors alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim._kernels.compiler import (
    VECTOR_BYTES,
    as_bits,
    as_float,
    inlined,
    int_add,
    int_and,
    int_or,
    int_sub,
    kernel,
    prefer_wide_vectors,
    shift_right,
)


@kernel
def count_zero_leaves(values: Any, a: Any, b: Any, positive: float, negative: float, zeros: Any, underflows: Any) -> None:
    """For each k, how many products of a[:, k] and b[k, :] are zero when those up to a magnitude become zero.

    The magnitude is that for positive or for negative products. a and b are the bits of finite numbers, as unsigned integers;
    `values` is any array of their float type. `underflows` are those of nonzero factors. Every product of two factors is exact
    in float64, where it is compared.
    """
    prefer_wide_vectors()
    rows, leaves = a.shape
    columns = b.shape[1]
    one = a.dtype.type(1)
    none = int_sub(one, one)
    most = int_sub(none, one)
    magnitude, sign = shift_right(most, one), a.dtype.type(8 * a.itemsize - 1)
    most_lost, parts = max(positive, negative), 1 if positive == negative else 2
    nonzero, least_a, limits = np.zeros(leaves, a.dtype), np.full(leaves, most), np.zeros(leaves, a.dtype)
    for i in range(rows):
        row = a[i]
        for k in range(leaves):
            less = _lessened(row[k], magnitude, one)
            nonzero[k] = int_add(nonzero[k], a.dtype.type(less != most))
            least_a[k] = min(least_a[k], less)
    for k in range(leaves):
        row = b[k]
        found, least_b = none, most
        for j in range(columns):
            less = _lessened(row[j], magnitude, one)
            found = int_add(found, a.dtype.type(less != most))
            least_b = min(least_b, less)
        zeros[k] = rows * columns - np.int64(nonzero[k]) * np.int64(found)
        if nonzero[k] and found:
            factor = np.float64(as_float(int_add(least_b, one)))
            if np.float64(as_float(int_add(least_a[k], one))) * factor <= most_lost:
                limits[k] = a.dtype.type(_largest_factor(values, factor, most_lost))
    per_line = VECTOR_BYTES // a.itemsize
    stride = (columns + per_line - 1) // per_line * per_line
    # Lines of what is compared with a limit, for every k that is looked at: of all of b's row, or of each sign by itself.
    room, has_lines = np.empty(leaves * parts * stride + per_line, b.dtype), np.zeros(leaves, np.bool_)
    first = -room.ctypes.data % VECTOR_BYTES // a.itemsize  # whole lines of the cache are read in half the time
    lines = room[first : first + leaves * parts * stride].reshape((leaves, parts, stride))
    small = np.empty(leaves + 1, np.int64)  # terms whose factor may be too small
    for i in range(rows):
        row = a[i]
        some = none
        for k in range(leaves):
            some = int_or(some, a.dtype.type(_lessened(row[k], magnitude, one) < limits[k]))
        if some == none:
            continue
        count = np.int64(0)
        for k in range(leaves):  # without a branch, which nobody could predict
            small[count] = k
            count += np.int64(_lessened(row[k], magnitude, one) < limits[k])
        for place in range(count):
            k = small[place]
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
                zeros[k] += np.int64(tiny)


@inlined
def _lessened(bits: Any, magnitude: Any, one: Any) -> Any:
    """A magnitude's bits less one: of zero, the largest number."""
    return int_sub(int_and(bits, magnitude), one)


@inlined
def _largest_factor(values: Any, factor: float, least: float) -> Any:
    """The bits of the largest magnitude whose product with the factor, which is not zero, is at most `least`."""
    limit = as_bits(values.dtype.type(least / factor))
    return limit - np.int64(np.float64(as_float(limit)) * factor > least)  # the quotient may round upward, to infinity even
