"""Random numbers that are the same on every machine and with every version: bits of a counter-based generator (Philox, as
NumPy has it), made into numbers by exact steps. No function of a library whose last bit may differ takes part.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np


class Draws:
    """A stream of draws, named by a seed and what it is for: streams of other names have nothing to do with it."""

    def __init__(self, seed: int, purpose: str):
        name = hashlib.sha256(f"{seed} {purpose}".encode()).digest()
        # The stream of `random_raw` is fixed for good (NEP 19), those of `Generator` are not.
        self._bits = np.random.Philox(key=int.from_bytes(name[:16], "little"))

    def uniform(self, *shape: int) -> np.ndarray:
        """float64 multiples of 2^-53 in [0, 1)."""
        return (self._bits.random_raw(math.prod(shape)) >> np.uint64(11)).reshape(shape) * 2.0**-53

    def integers(self, below: int, *shape: int) -> np.ndarray:
        """int64 in [0, below), by the integer part of below * u: biased by less than below * 2^-53."""
        return np.floor(self.uniform(*shape) * below).astype(np.int64)

    def permutation(self, count: int) -> np.ndarray:
        """An order of 0 ... count - 1: that of as many 64-bit draws."""
        return np.argsort(self._bits.random_raw(count), kind="stable")


def digest(*arrays: np.ndarray) -> str:
    """64 bits of the SHA-256 of shapes, types and values; every NaN counts as the same one."""
    total = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array)
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), np.array(np.nan, values.dtype), values)
        total.update(f"{values.dtype.str}{values.shape}".encode() + values.astype(values.dtype.newbyteorder("<")).tobytes())
    return total.hexdigest()[:16]
