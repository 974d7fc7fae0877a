"""What rounding did to an array of numbers, counted in one pass over them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim._kernels.compiler import kernel

# Columns of a row of counts.
ELEMENTS, OVERFLOWS, UNDERFLOWS, INFINITE, NAN, UPDATES, LOST = range(7)
LENGTH = 7


@kernel
def count_edges(
    values: Any, over_positive: Any, over_negative: Any, under_positive: Any, under_negative: Any, row: Any
) -> None:
    """Count, before a deterministic rounding, what it overflows and what it takes to zero.

    The thresholds are those of the mode: the least magnitude that overflows, the largest that becomes zero.
    """
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
