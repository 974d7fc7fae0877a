"""What rounding did to an array of numbers, counted in one pass over them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim._kernels.compiler import as_bits, as_float, kernel
from fpsim._kernels.rounding import load, round_bits

# Columns of a row of counts.
ELEMENTS, OVERFLOWS, UNDERFLOWS, INFINITE, NAN, UPDATES, LOST = range(7)
LENGTH = 7

BLOCK = 4096


@kernel
def count_edges(values: Any, limits: Any, row: Any) -> None:
    """Count, before a deterministic rounding, what it overflows and what it takes to zero.

    The limits are those of the mode: the least number that overflows, the greatest negative one that does, the largest that
    becomes zero, the most negative that does.
    """
    over_positive, over_negative, under_positive, under_negative = limits[0], limits[1], limits[2], limits[3]
    overflows = underflows = infinite = nan = 0
    for i in range(values.size):
        value = values[i]
        magnitude = abs(value)
        finite = magnitude < np.inf
        nan += value != value
        infinite += magnitude == np.inf
        overflows += finite and (value >= over_positive or value <= over_negative)
        underflows += value != 0 and value <= under_positive and value >= under_negative
    row[ELEMENTS] += values.size
    row[OVERFLOWS] += overflows
    row[UNDERFLOWS] += underflows
    row[INFINITE] += infinite
    row[NAN] += nan


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
def count_results(values: Any, row: Any) -> None:
    """Count results whose roundings nobody watched: only that they are not finite."""
    infinite = nan = 0
    for i in range(values.size):
        nan += values[i] != values[i]
        infinite += abs(values[i]) == np.inf
    row[ELEMENTS] += values.size
    row[INFINITE] += infinite
    row[NAN] += nan


@kernel
def count_lost(old: Any, new: Any, update: Any, row: Any) -> None:
    """Count parameters that an update which is not zero left as they were."""
    updates = lost = 0
    for i in range(old.size):
        moving = update[i] != 0
        updates += moving
        lost += moving and old[i] == new[i]
    row[UPDATES] += updates
    row[LOST] += lost


@lru_cache(maxsize=64)
def make_count_and_round(mode: int, plain: bool) -> Any:
    """The kernel `(values, constants, limits, row) -> None`: `count_edges`, then the rounding, of float32 values in place."""

    @kernel
    def count_and_round(values: Any, constants: Any, limits: Any, row: Any) -> None:
        c = load(constants)
        over_positive, over_negative, under_positive, under_negative = limits[0], limits[1], limits[2], limits[3]
        for start in range(0, values.size, BLOCK):
            block = values[start : start + BLOCK]
            overflows = underflows = infinite = nan = np.int32(0)
            for i in range(block.size):
                value = block[i]
                magnitude = abs(value)
                nan += np.int32(value != value)
                infinite += np.int32(magnitude == np.inf)
                overflows += np.int32((magnitude < np.inf) & ((value >= over_positive) | (value <= over_negative)))
                underflows += np.int32((value != 0) & (value <= under_positive) & (value >= under_negative))
                block[i] = as_float(round_bits(as_bits(value), c, mode, plain))
            row[OVERFLOWS] += overflows
            row[UNDERFLOWS] += underflows
            row[INFINITE] += infinite
            row[NAN] += nan
        row[ELEMENTS] += values.size

    return count_and_round
