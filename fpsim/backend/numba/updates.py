"""What becomes of the elements that an update means to change: a byte of marks for each, found and counted in single passes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.counting import LOST as LOST_COLUMN, UPDATES as UPDATES_COLUMN
from fpsim.backend.numba.intrinsics import floats_at

# Marks: meant to change, and lost if in the end it is as it was; meant to change; lost.
MOVED, MEANT, LOST = 1, 2, 4

#: What tells the elements that are meant to change, of operands a and b.
CONDITIONS = ("false", "a != 0", "sign(a) / b != 0", "a / 2 != a", "a != b")
NOTHING, NOT_ZERO, QUOTIENT, SCALED, DIFFERENT = range(len(CONDITIONS))


@kernel
def find_moved(condition: int, first: int, second: int, kept: int, base: Any, marks: Any) -> None:
    """Mark as MOVED where the condition holds of the float32 numbers at two addresses; what was marked stays so.

    The numbers at `kept` are copied to `base`, unless it is empty.
    """
    a, b = floats_at(first, marks.size), floats_at(second, marks.size)
    zero, infinity = np.float32(0), np.float32(np.inf)
    if condition == NOT_ZERO:
        for i in range(marks.size):
            marks[i] |= np.uint8(a[i] != zero)
    elif condition == QUOTIENT:
        for i in range(marks.size):
            sign = np.float32(a[i] > zero) - np.float32(a[i] < zero)  # which does not underflow
            marks[i] |= np.uint8(sign / b[i] != zero)
    elif condition == SCALED:
        for i in range(marks.size):
            marks[i] |= np.uint8((a[i] != zero) & (abs(a[i]) != infinity))
    elif condition == DIFFERENT:
        for i in range(marks.size):
            marks[i] |= np.uint8(a[i] != b[i])
    if base.size:
        numbers = floats_at(kept, marks.size)
        for i in range(marks.size):  # what Numba makes of one array assigned to another takes seconds to compile
            base[i] = numbers[i]


@kernel
def mark_decay(before: Any, after: int, marks: Any) -> None:
    """What is MOVED becomes MEANT, and LOST where the float32 numbers before and after are the same."""
    b = floats_at(after, marks.size)
    for i in range(marks.size):
        marks[i] *= np.uint8(LOST + MEANT if before[i] == b[i] else MEANT)


@kernel
def mark_parts(
    before: int, after: int, start: Any, step: Any, decayed: Any, without_decay: int, without_step: int, marks: Any
) -> None:
    """Marks of a fused step from `start` over `decayed` to `decayed - step`, in float64, stored in float32 at `after`.

    Its parts are lost where what would be stored without them is the same.
    """
    old, new = floats_at(before, marks.size), floats_at(after, marks.size)
    no_decay, no_step = floats_at(without_decay, marks.size), floats_at(without_step, marks.size)
    for i in range(marks.size):
        decays, moves = decayed[i] != start[i], step[i] != 0
        traceless = (decays & (no_decay[i] == new[i])) | (moves & (no_step[i] == new[i]))
        meant = decays | moves
        lost = traceless | (meant & (old[i] == new[i]))
        marks[i] = np.uint8(MEANT if meant else 0) | np.uint8(LOST if lost else 0)


@kernel
def count_marks(marks: Any, base: Any, after: int, row: Any) -> None:
    """Count elements with any mark, and the lost ones: those marked so, and MOVED ones that equal those in `base`, if any."""
    b = floats_at(after, marks.size)
    updates = lost = 0
    if base.size:
        for i in range(marks.size):
            updates += marks[i] != 0
            lost += ((marks[i] & LOST) != 0) | (((marks[i] & MOVED) != 0) & (base[i] == b[i]))
    else:
        for i in range(marks.size):
            updates += marks[i] != 0
            lost += (marks[i] & LOST) != 0
    row[UPDATES_COLUMN] += updates
    row[LOST_COLUMN] += lost
