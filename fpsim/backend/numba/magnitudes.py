"""What magnitudes an array of float32 numbers has: extremes and counts in one pass, and exponents one by one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel

# What `survey` counts.
ZEROS, SUBNORMALS, INFINITE, NAN = range(4)

#: Of the exponents that `count_exponents` tells apart, the smallest; its array ends with zeros, infinities and NaN.
LOWEST, EXPONENTS = -149, 277
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000


@kernel
def survey(bits: Any, normal: int, extremes: Any, counts: Any) -> None:
    """Add counts, and widen extremes (the largest finite and the smallest nonzero magnitude), of float32 codes (uint32).

    Magnitudes and `normal`, the code below which a nonzero number is subnormal, are codes too.
    """
    largest, smallest = np.uint32(extremes[0]), np.uint32(extremes[1])
    for start in range(0, bits.size, 4096):
        block = bits[start : start + 4096]
        nonzero = subnormal = infinite = nan = np.uint32(0)
        for i in range(block.size):
            magnitude = np.uint32(block[i] & np.uint32(_MAGNITUDE))
            largest = max(largest, magnitude if magnitude < np.uint32(_INFINITY) else np.uint32(0))
            smallest = min(smallest, magnitude if magnitude > np.uint32(0) else np.uint32(_INFINITY))
            nonzero += np.uint32(magnitude > np.uint32(0))
            subnormal += np.uint32((magnitude > np.uint32(0)) & (magnitude < np.uint32(normal)))
            infinite += np.uint32(magnitude == np.uint32(_INFINITY))
            nan += np.uint32(magnitude > np.uint32(_INFINITY))
        counts[ZEROS] += block.size - nonzero
        counts[SUBNORMALS] += subnormal
        counts[INFINITE] += infinite
        counts[NAN] += nan
    extremes[0], extremes[1] = largest, smallest


@kernel
def count_exponents(bits: Any, counts: Any) -> None:
    """Add to counts[e - LOWEST] the float32 codes whose exponent floor(log2 |x|) is e; then zeros, infinities, NaN."""
    for i in range(bits.size):
        magnitude = bits[i] & np.uint32(_MAGNITUDE)
        exponent = magnitude >> np.uint32(23)
        if exponent == 0:
            if magnitude == 0:
                counts[EXPONENTS] += 1
                continue
            place = -1
            while magnitude:
                magnitude >>= np.uint32(1)
                place += 1
            counts[place] += 1
        elif exponent == 255:
            counts[EXPONENTS + 1 + (magnitude > np.uint32(_INFINITY))] += 1
        else:
            counts[exponent + 22] += 1


@kernel
def compare(results: Any, reference: Any, least: int, precision: int, sums: Any) -> None:
    """How far float32 results are from float64 ones, over the elements finite in both: adds to sums[0] how many, to sums[1] and
    sums[2] the squares of the differences and of the reference, and widens sums[3], the largest difference in ulps of the
    reference (2^(max(e, least) - precision + 1), e being its exponent).
    """
    count, squares, whole, most = 0, 0.0, 0.0, sums[3]
    for i in range(results.size):
        value, exact = np.float64(results[i]), reference[i]
        difference = value - exact
        if abs(value) < np.inf and abs(exact) < np.inf:
            count += 1
            squares += difference * difference
            whole += exact * exact
            if difference != 0.0:
                exponent = max(int(np.floor(np.log2(abs(exact)))) if exact != 0.0 else least, least)
                most = max(most, abs(difference) * 2.0 ** (precision - 1 - exponent))
    sums[0] += count
    sums[1] += squares
    sums[2] += whole
    sums[3] = most
