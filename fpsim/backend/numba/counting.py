"""What rounding did to an array of numbers, counted in one pass over them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import (
    as_bits,
    as_float,
    convert_like,
    floats_at,
    int_add,
    int_min,
    int_or,
    prefer_wide_vectors,
    uninitialized,
)
from fpsim.backend.numba.rounding import load, round_bits

# Columns of a row of counts.
ELEMENTS, OVERFLOWS, UNDERFLOWS, INFINITE, NAN, UPDATES, LOST = range(7)
LENGTH = 7

BLOCK = 1024  # elements that stay in the nearest cache between the loops over them


@inlined
def _count(values: Any, limits: Any, row: Any) -> None:
    """Add what a rounding with these limits does to a few values; counts have the carrier's width, so loops vectorize."""
    kind = values.dtype.type
    zero, infinity = kind(0), kind(np.inf)
    none = as_bits(zero)
    one = convert_like(kind(1), none)
    over_positive, over_negative, under_positive, under_negative = limits[0], limits[1], limits[2], limits[3]
    overflows = underflows = infinite = nan = none
    for i in range(values.size):
        value = values[i]
        magnitude = abs(value)
        over = (magnitude < infinity) & ((value >= over_positive) | (value <= over_negative))
        under = (value != zero) & (value <= under_positive) & (value >= under_negative)
        overflows = int_add(overflows, one if over else none)
        underflows = int_add(underflows, one if under else none)
        infinite = int_add(infinite, one if magnitude == infinity else none)
        nan = int_add(nan, one if value != value else none)
    row[OVERFLOWS] += overflows
    row[UNDERFLOWS] += underflows
    row[INFINITE] += infinite
    row[NAN] += nan


@inlined
def count_block(values: Any, limits: Any, row: Any) -> None:
    """As `count_edges` of at most BLOCK values; most blocks have none that counts, which one cheap loop shows."""
    kind = values.dtype.type
    zero = kind(0)
    some = as_bits(kind(1))
    high = limits[0] if limits[0] < -limits[1] else -limits[1]
    low = limits[2] if limits[2] > -limits[3] else -limits[3]
    edges = as_bits(zero)
    for i in range(values.size):
        magnitude = abs(values[i])
        at_edge = (not magnitude < high) | ((magnitude <= low) & (magnitude > zero))
        edges = int_or(edges, some if at_edge else as_bits(zero))
    if edges != 0:
        _count(values, limits, row)
    row[ELEMENTS] += values.size


@kernel
def count_edges(values: Any, limits: Any, row: Any) -> None:
    """Count, before a deterministic rounding, what it overflows and what it takes to zero.

    The limits, of the carrier's dtype, are those of the mode: the least number that overflows, the greatest negative one
    that does, the largest that becomes zero, the most negative that does.
    """
    for start in range(0, values.size, BLOCK):
        count_block(values[start : start + BLOCK], limits, row)


@kernel
def count_change(before: Any, after: Any, largest: Any, row: Any) -> None:
    """The same from the numbers before and after a rounding whose outcome no threshold tells; largest is max_finite."""
    overflows = underflows = infinite = nan = 0
    for i in range(before.size):
        value, result = before[i], after[i]
        nan += value != value
        infinite += abs(value) == np.inf
        overflows += abs(value) < np.inf and (not abs(result) < np.inf or abs(value) > largest)
        underflows += value != 0 and result == 0
    row[ELEMENTS] += before.size
    row[OVERFLOWS] += overflows
    row[UNDERFLOWS] += underflows
    row[INFINITE] += infinite
    row[NAN] += nan


@kernel
def reaches(values: Any, largest: Any) -> bool:
    """Whether any of these float32 numbers has this magnitude, the largest of all finite ones."""
    is_reached, limit = False, np.float32(largest)
    for i in range(values.size):
        is_reached |= abs(values[i]) == limit
    return is_reached


@kernel
def count_results(values: Any, row: Any) -> None:
    """Count results whose roundings nobody watched: only that they are not finite."""
    infinite = nan = 0
    for i in range(values.size):
        nan += values[i] != values[i]
        infinite += abs(values[i]) == np.inf
    row[ELEMENTS] += values.size
    row[INFINITE] += infinite
    row[NAN] += nan


@lru_cache(maxsize=64)
def make_round_few(mode: int, plain: bool) -> Any:
    """`make_count_and_round`'s kernel in place for at most BLOCK float32 values at an address: arrays take longer to pass."""

    @kernel
    def round_few(address: int, size: int, constants: Any, limits: Any, row: Any) -> None:
        c = load(constants)
        values = floats_at(address, size)
        count_block(values, limits, row)
        for i in range(values.size):
            values[i] = as_float(round_bits(as_bits(values[i]), c, mode, plain))

    return round_few


@lru_cache(maxsize=64)
def make_count_and_round(mode: int, plain: bool) -> Any:
    """The kernel `(values, out, constants, limits, row) -> None`: `count_edges` of float32 or float64 values, then the
    rounding to values of the format in float32. `out` may be `values`.
    """

    @kernel
    def count_and_round(values: Any, out: Any, constants: Any, limits: Any, row: Any) -> None:
        prefer_wide_vectors()
        c = load(constants)
        buffer = uninitialized(int_min(BLOCK, values.size), np.float32)
        for start in range(0, values.size, BLOCK):
            block = values[start : start + BLOCK]
            count_block(block, limits, row)
            for i in range(block.size):
                buffer[i] = as_float(round_bits(as_bits(block[i]), c, mode, plain))
            target = out[start : start + BLOCK]
            for i in range(target.size):
                target[i] = buffer[i]

    return count_and_round
