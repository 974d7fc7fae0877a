"""Whether arrays hold values of a format: one pass that reads, and writes nothing."""

from __future__ import annotations

from typing import Any

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.intrinsics import as_float, int_and, int_or, int_sub, int_xor, prefer_wide_vectors, shift_left
from fpsim.backend.numba.rounding import BLOCK, DROPPED, MAX_FINITE, NEAREST_EVEN, ONE, SIGN, SMALL_BELOW, load, round_bits


def make_are_values(plain: bool) -> Any:
    """The kernel `(bits, row) -> bool` over flat arrays: whether rounding to nearest even changes no number but NaNs.

    Signs of zeros do not count: a format without -0 has 0, which is equal. Blocks of zeros and normal numbers, as most are,
    are known by the bits that the format does not have: `plain` formats have all numbers in between that lack those.
    """

    @kernel
    def are_values(bits: Any, row: Any) -> bool:
        prefer_wide_vectors()
        c = load(row)
        zero = int_xor(c[ONE], c[ONE])
        for start in range(0, bits.size, BLOCK):
            block = bits[start : start + BLOCK]
            if plain:
                dropped = int_sub(shift_left(c[ONE], c[DROPPED]), c[ONE])
                lost, largest, smallest = zero, zero, c[MAX_FINITE]
                for i in range(block.size):
                    magnitude = int_and(block[i], int_xor(c[SIGN], int_sub(zero, c[ONE])))
                    lost = int_or(lost, int_and(magnitude, dropped))
                    largest = max(largest, magnitude)
                    smallest = min(smallest, magnitude if magnitude != zero else c[MAX_FINITE])
                if lost == zero and largest <= c[MAX_FINITE] and smallest >= c[SMALL_BELOW]:
                    continue
            changed = zero
            for i in range(block.size):
                value = as_float(block[i])
                moved = as_float(round_bits(block[i], c, NEAREST_EVEN, plain)) != value and value == value
                changed = int_or(changed, c[ONE] if moved else zero)
            if changed != zero:
                return False
        return True

    return are_values
