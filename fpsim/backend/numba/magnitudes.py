"""What magnitudes an array of float32 numbers has: extremes and counts in one pass, and exponents one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import (
    as_bits,
    as_float,
    doubles_at,
    floats_at,
    int_add,
    int_and,
    int_max,
    int_min,
    int_sub,
    prefer_wide_vectors,
    shift_left,
    shift_right,
    uninitialized,
)

# What `survey` finds: the extremes, and counts.
LARGEST, SMALLEST, ZEROS, SUBNORMALS, INFINITE, NAN = range(6)
# Its constants, as int32 codes: 0, 1, all bits of a magnitude, infinity, the smallest normal number.
ZERO, ONE, MAGNITUDE, INFINITY, NORMAL = range(5)

#: Of the exponents that `count_exponents` tells apart, the smallest; its array ends with zeros, infinities and NaN.
LOWEST, EXPONENTS = -149, 277

_BLOCK = 1 << 20  # elements, by counts of 32 bits
_LANES, _PART = 8, 512


@inlined
def _survey(address: int, size: int, constants: Any) -> Any:
    """What `survey` gives, the extremes as codes."""
    prefer_wide_vectors()
    zero, one, mask = constants[ZERO], constants[ONE], constants[MAGNITUDE]
    infinity, normal = constants[INFINITY], constants[NORMAL]
    numbers = floats_at(address, size)
    largest, smallest = zero, infinity
    all_zeros = all_below = all_infinite = all_nan = np.int64(0)
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
        all_zeros += zeros
        all_below += below
        all_infinite += infinite
        all_nan += nan
    return largest, smallest, all_zeros, all_below - all_zeros, all_infinite, all_nan


@kernel
def survey(address: int, size: int, constants: Any) -> Any:
    """Of float32 numbers that lie side by side: the largest finite magnitude and the smallest nonzero one (0 and infinity
    without one), and how many are zeros, subnormal (below the smallest normal number), infinite and NaN.
    """
    largest, smallest, zeros, subnormals, infinite, nan = _survey(address, size, constants)
    return np.float64(as_float(largest)), np.float64(as_float(smallest)), zeros, subnormals, infinite, nan


@kernel
def add_survey(address: int, size: int, constants: Any, found: Any) -> int:
    """`survey` of more numbers than those of which it `found` something, float64, 0 and infinity before.

    Returns how many of these are not finite.
    """
    largest, smallest, zeros, subnormals, infinite, nan = _survey(address, size, constants)
    found[LARGEST] = max(found[LARGEST], np.float64(as_float(largest)))
    found[SMALLEST] = min(found[SMALLEST], np.float64(as_float(smallest)))
    found[ZEROS] += zeros
    found[SUBNORMALS] += subnormals
    found[INFINITE] += infinite
    found[NAN] += nan
    return infinite + nan


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
def compare(results: int, reference: int, size: int, constants: Any, sums: Any) -> None:
    """How far the float32 results at an address are from the float64 ones at another, over the elements finite in both.

    Adds to sums[0] how many, to sums[1] and sums[2] the squares of the differences and of the reference, and widens
    sums[3], the largest difference in ulps of the reference.

    constants, int64: 0, 1, 52, 0x7FF, the biased exponent below which an ulp is as there, that of 2^(p - 1) times 2^1023.
    """
    prefer_wide_vectors()
    zero, one, shift, mask, least, top = constants[0], constants[1], constants[2], constants[3], constants[4], constants[5]
    values, exact = floats_at(results, size), doubles_at(reference, size)
    squares, whole = uninitialized(_PART + _LANES, np.float64), uninitialized(_PART + _LANES, np.float64)
    for lane in range(_LANES):
        squares[lane] = whole[lane] = 0.0
    most = left_out = zero
    length = 0
    for start in range(0, size, _PART):
        if start:
            for lane in range(_LANES):
                squares[lane], whole[lane] = squares[_PART + lane], whole[_PART + lane]
        length = int_min(_PART, size - start)
        narrow, wide = values[start : start + length], exact[start : start + length]
        for i in range(length):  # what is added to a sum is so many elements apart: a vector of sums
            value, right = np.float64(narrow[i]), wide[i]
            is_finite = (abs(value) < np.inf) & (abs(right) < np.inf)
            difference = abs(value - right) if is_finite else 0.0
            square = right * right if is_finite else 0.0
            squares[i + _LANES] = squares[i] + difference * difference
            whole[i + _LANES] = whole[i] + square
            left_out = int_add(left_out, zero if is_finite else one)
            exponent = int_max(int_and(shift_right(as_bits(right), shift), mask), least)
            ulps = difference * as_float(shift_left(int_max(int_sub(top, exponent), zero), shift))
            most = int_max(most, as_bits(ulps))  # which order as their codes do, being positive
    sums[0] += size - left_out
    for lane in range(_LANES):
        last = length + (lane - length) % _LANES
        sums[1] += squares[last]
        sums[2] += whole[last]
    sums[3] = max(sums[3], as_float(most))
