"""Whether arrays hold values of a format: one pass that reads, and writes nothing."""

from __future__ import annotations

from typing import Any

from fpsim._kernels.compiler import as_float, int_or, int_xor, kernel, prefer_wide_vectors
from fpsim._kernels.rounding import BLOCK, NEAREST_EVEN, ONE, load, round_bits


def make_are_values(plain: bool) -> Any:
    """The kernel `(bits, row) -> bool` over flat arrays: whether rounding to nearest even changes no number but NaNs.

    Signs of zeros do not count: a format without -0 has 0, which is equal.
    """

    @kernel
    def are_values(bits: Any, row: Any) -> bool:
        prefer_wide_vectors()
        c = load(row)
        zero = int_xor(c[ONE], c[ONE])
        for start in range(0, bits.size, BLOCK):
            block = bits[start : start + BLOCK]
            changed = zero
            for i in range(block.size):
                given = as_float(block[i])
                moved = as_float(round_bits(block[i], c, NEAREST_EVEN, plain)) != given and given == given
                changed = int_or(changed, c[ONE] if moved else zero)
            if changed != zero:
                return False
        return True

    return are_values
