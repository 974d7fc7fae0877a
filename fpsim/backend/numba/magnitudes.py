"""What magnitudes an array of float32 numbers has: extremes and counts in one pass, and exponents one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from fpsim.backend.numba.compiler import (
    as_bits,
    as_float,
    floats_at,
    int_add,
    int_and,
    int_max,
    int_min,
    int_sub,
    kernel,
    prefer_wide_vectors,
    shift_left,
    shift_right,
    zeroed,
)

# What `survey` finds: the extremes as codes, and counts.
LARGEST, SMALLEST, ZEROS, SUBNORMALS, INFINITE, NAN = range(6)
# Its constants, as int32 codes: 0, 1, all bits of a magnitude, infinity, the smallest normal number.
ZERO, ONE, MAGNITUDE, INFINITY, NORMAL = range(5)

#: Of the exponents that `count_exponents` tells apart, the smallest; its array ends with zeros, infinities and NaN.
LOWEST, EXPONENTS = -149, 277

_BLOCK = 1 << 20  # elements, by counts of 32 bits
_LANES, _PART = 8, 1024


@kernel
def survey(address: int, size: int, constants: Any, found: Any) -> None:
    """Of float32 numbers that lie side by side: the largest finite magnitude and the smallest nonzero one, as codes (0 and that
    of infinity without one), and how many are zeros, subnormal (below the smallest normal number), infinite and NaN.
    """
    prefer_wide_vectors()
    zero, one, mask = constants[ZERO], constants[ONE], constants[MAGNITUDE]
    infinity, normal = constants[INFINITY], constants[NORMAL]
    numbers = carray(floats_at(address), (size,))
    largest, smallest = zero, infinity
    found[ZEROS] = found[SUBNORMALS] = found[INFINITE] = found[NAN] = 0
    for start in range(0, size, _BLOCK):
        block = numbers[start : start + _BLOCK]
        zeros = below = infinite = nan = zero
        for i in range(block.size):
            magnitude = int_and(as_bits(block[i]), mask)
            largest = int_max(largest, magnitude if magnitude < infinity else zero)
            smallest = int_min(smallest, magnitude if magnitude > zero else infinity)
            zeros = int_add(zeros, one if magnitude == zero else zero)
            below = int_add(below, one if magnitude < normal else zero)
            infinite = int_add(infinite, one if magnitude == infinity else zero)
            nan = int_add(nan, one if magnitude > infinity else zero)
        found[ZEROS] += zeros
        found[SUBNORMALS] += int_sub(below, zeros)
        found[INFINITE] += infinite
        found[NAN] += nan
    found[LARGEST], found[SMALLEST] = largest, smallest


@kernel
def count_exponents(codes: Any, counts: Any) -> None:
    """Add to counts[e - LOWEST] the float32 codes whose exponent floor(log2 |x|) is e; then zeros, infinities, NaN."""
    for i in range(codes.size):
        magnitude = codes[i] & 0x7FFFFFFF
        exponent = magnitude >> 23
        if exponent == 0:
            if magnitude == 0:
                counts[EXPONENTS] += 1
                continue
            place = -1
            while magnitude:
                magnitude >>= 1
                place += 1
            counts[place] += 1
        elif exponent == 255:
            counts[EXPONENTS + 1 + (magnitude > 0x7F800000)] += 1
        else:
            counts[exponent + 22] += 1


@kernel
def compare(results: Any, reference: Any, codes: Any, constants: Any, sums: Any) -> None:
    """How far float32 results are from float64 ones, over the elements finite in both: adds to sums[0] how many, to sums[1] and
    sums[2] the squares of the differences and of the reference, and widens sums[3], the largest difference in ulps of the
    reference. `codes` are the reference's, int64.

    constants, int64: 0, 52, 0x7FF, the biased exponent below which an ulp is as there, that of 2^(p - 1) times 2^1023, 1.
    """
    prefer_wide_vectors()
    zero, shift, mask, least, top = constants[0], constants[1], constants[2], constants[3], constants[4]
    differences, references = zeroed(_PART, np.float64), zeroed(_PART, np.float64)
    squares, whole, most = zeroed(_LANES, np.float64), zeroed(_LANES, np.float64), zeroed(_LANES, np.float64)
    for start in range(0, results.size, _PART):
        size, left_out = min(_PART, results.size - start), zero
        values, exact, bits = results[start : start + size], reference[start : start + size], codes[start : start + size]
        differences[size:] = 0.0
        references[size:] = 0.0
        for i in range(size):
            value, wide = np.float64(values[i]), exact[i]
            is_finite = (abs(value) < np.inf) & (abs(wide) < np.inf)
            differences[i] = abs(value - wide) if is_finite else 0.0
            references[i] = wide if is_finite else 0.0
            left_out = int_add(left_out, zero if is_finite else constants[5])
        sums[0] += size - left_out
        for first in range(0, _PART, _LANES):  # so many sums at a time
            for lane in range(_LANES):
                difference, wide = differences[first + lane], references[first + lane]
                squares[lane] += difference * difference
                whole[lane] += wide * wide
        for i in range(size):
            exponent = int_max(int_and(shift_right(bits[i], shift), mask), least)
            differences[i] *= as_float(shift_left(int_max(int_sub(top, exponent), zero), shift))
        for first in range(0, _PART, _LANES):
            for lane in range(_LANES):
                ulps = differences[first + lane]
                most[lane] = ulps if ulps > most[lane] else most[lane]
    for lane in range(_LANES):
        sums[1] += squares[lane]
        sums[2] += whole[lane]
        sums[3] = max(sums[3], most[lane])
