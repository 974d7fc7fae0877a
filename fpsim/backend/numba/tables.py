"""Functions of one value of a narrow format, looked up: a value's leading bits are its place in the table."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.counting import BLOCK, ELEMENTS, INFINITE, NAN, OVERFLOWS, UNDERFLOWS
from fpsim.backend.numba.intrinsics import (
    as_bits,
    as_float,
    int_add,
    int_and,
    int_min,
    int_or,
    int_sub,
    int_xor,
    shift_left,
    shift_right,
    uninitialized,
)

#: The last bits of an entry, which values of formats of at most 21 bits do not use, say what its rounding did.
OVERFLOWED, UNDERFLOWED, IS_INFINITE, IS_NAN = 1, 2, 3, 4
EVENT_BITS = 7


@kernel
def look_up(values: Any, out: Any, table: Any, dropped: Any, row: Any) -> bool:
    """out = the table's entries (float32 bits, int32) for float32 values of a format, their events counted in `row`.

    `dropped` is how many significand bits the format does not have. False, and nothing is done, if a value has any of them.
    """
    zero, one = np.int32(0), np.int32(1)
    below = int_sub(shift_left(one, dropped), one)
    foreign = zero
    for i in range(values.size):
        foreign = int_or(foreign, int_and(as_bits(values[i]), below))
    if foreign != zero:
        return False
    mask = np.int32(EVENT_BITS)
    events = uninitialized(int_min(BLOCK, values.size), np.int32)
    for start in range(0, values.size, BLOCK):
        block, target = values[start : start + BLOCK], out[start : start + BLOCK]
        any_event = zero
        for i in range(block.size):
            entry = table[np.uint32(shift_right(as_bits(block[i]), dropped))]
            event = int_and(entry, mask)
            events[i] = event
            any_event = int_or(any_event, event)
            target[i] = as_float(int_xor(entry, event))
        if any_event != zero:
            overflows = underflows = infinite = nan = zero
            for i in range(block.size):
                overflows = int_add(overflows, one if events[i] == np.int32(OVERFLOWED) else zero)
                underflows = int_add(underflows, one if events[i] == np.int32(UNDERFLOWED) else zero)
                infinite = int_add(infinite, one if events[i] == np.int32(IS_INFINITE) else zero)
                nan = int_add(nan, one if events[i] == np.int32(IS_NAN) else zero)
            row[OVERFLOWS] += overflows
            row[UNDERFLOWS] += underflows
            row[INFINITE] += infinite
            row[NAN] += nan
    row[ELEMENTS] += values.size
    return True
