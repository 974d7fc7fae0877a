"""What becomes of the elements that an update means to change: a byte of marks for each, found and counted in single passes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from fpsim.backend.numba.compiler import floats_at, kernel
from fpsim.backend.numba.counting import LOST as LOST_COLUMN, UPDATES as UPDATES_COLUMN

# Marks: meant to change, and lost if in the end it is as it was; meant to change; lost.
MOVED, MEANT, LOST = 1, 2, 4

#: What tells the elements that are meant to change, of operands a and b.
CONDITIONS = ("a != 0", "sign(a) / b != 0", "a / 2 != a", "a != b")
NOT_ZERO, QUOTIENT, SCALED, DIFFERENT = range(len(CONDITIONS))


@kernel
def find_moved(condition: int, first: int, second: int, marks: Any) -> None:
    """marks = MOVED where the condition holds of the float32 numbers at two addresses, else 0."""
    a, b = carray(floats_at(first), (marks.size,)), carray(floats_at(second), (marks.size,))
    zero, infinity = np.float32(0), np.float32(np.inf)
    if condition == NOT_ZERO:
        for i in range(marks.size):
            marks[i] = a[i] != zero
    elif condition == QUOTIENT:
        for i in range(marks.size):
            sign = np.float32(a[i] > zero) - np.float32(a[i] < zero)  # which does not underflow
            marks[i] = sign / b[i] != zero
    elif condition == SCALED:
        for i in range(marks.size):
            marks[i] = (a[i] != zero) & (abs(a[i]) != infinity)
    else:
        for i in range(marks.size):
            marks[i] = a[i] != b[i]


@kernel
def mark_decay(moved: Any, before: int, after: int, marks: Any) -> None:
    """Mark what `find_moved` found as MEANT, and as LOST where the float32 numbers before and after are the same."""
    a, b = carray(floats_at(before), (marks.size,)), carray(floats_at(after), (marks.size,))
    for i in range(marks.size):
        marks[i] |= moved[i] * np.uint8(LOST + MEANT if a[i] == b[i] else MEANT)


@kernel
def mark_parts(
    before: int, after: int, start: Any, step: Any, decayed: Any, without_decay: int, without_step: int, marks: Any
) -> None:
    """Marks of a fused step from `start` over `decayed` to `decayed - step`, in float64, stored in float32 at `after`.

    Its parts are lost where what would be stored without them is the same.
    """
    old, new = carray(floats_at(before), (marks.size,)), carray(floats_at(after), (marks.size,))
    no_decay, no_step = carray(floats_at(without_decay), (marks.size,)), carray(floats_at(without_step), (marks.size,))
    for i in range(marks.size):
        decays, moves = decayed[i] != start[i], step[i] != 0
        traceless = (decays & (no_decay[i] == new[i])) | (moves & (no_step[i] == new[i]))
        meant = decays | moves
        lost = traceless | (meant & (old[i] == new[i]))
        marks[i] = np.uint8(MEANT if meant else 0) | np.uint8(LOST if lost else 0)


@kernel
def count_marks(marks: Any, base: int, after: int, row: Any) -> None:
    """Count elements with any mark, and the lost ones: those marked so, and MOVED ones that equal those at `base`."""
    a, b = carray(floats_at(base), (marks.size,)), carray(floats_at(after), (marks.size,))
    updates = lost = 0
    for i in range(marks.size):
        updates += marks[i] != 0
        lost += ((marks[i] & LOST) != 0) | (((marks[i] & MOVED) != 0) & (a[i] == b[i]))
    row[UPDATES_COLUMN] += updates
    row[LOST_COLUMN] += lost
