"""Products in parts: each factor the sum of a few narrower numbers, of whose products the largest are added.

A float32 number is nearly the sum of two bfloat16 numbers, and is that of three but for what underflows (Henry, Tang and
Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision computations", ARITH 2019). Which
products are added, and in which order, is as Triton's `input_precision` and XLA's dot algorithms BF16_BF16_F32_X3, _X6 and
_X9 have it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.rounding import Rounding, round_into


@dataclass(frozen=True)
class Split:
    """How factors are taken apart, and which parts are multiplied.

    enclosing  the format of the parts: the first is the number rounded to it, each other one what the parts before leave
    pairs      the part of the left factor and that of the right one, 0 being the first, in the order in which they are added:
               all terms of a pair before those of the next; the last one is that of the first parts
    rounding   the mode in which numbers become parts
    """

    name: str
    enclosing: Format
    pairs: tuple[tuple[int, int], ...]
    rounding: Rounding = Rounding.NEAREST_EVEN

    def parts(self, x: np.ndarray) -> list[np.ndarray]:
        """The parts of values of fp32, in arrays of x's dtype. An infinity's first part is itself, the others are NaN.

        A number beyond the largest part has an infinite first part and an opposite one next to it.
        """
        rest, parts = np.ascontiguousarray(x), []
        with np.errstate(invalid="ignore"):
            for _ in range(1 + max(max(self.pairs))):
                parts.append(np.empty_like(rest))
                round_into(rest, parts[-1], self.enclosing, self.rounding)
                rest = rest - parts[-1]  # exact: the error of rounding to fewer bits has no more bits than the number
        return parts

    def __str__(self) -> str:
        return self.name


_TWO_PARTS = ((1, 0), (0, 1), (0, 0))
_THREE_PARTS = ((1, 1), (2, 0), (0, 2), *_TWO_PARTS)
_ALL_OF_THREE = ((2, 2), (1, 2), (2, 1), *_THREE_PARTS)
SPLITS = {
    f"bf16x{len(pairs)}": Split(f"bf16x{len(pairs)}", get_format("bf16"), pairs)
    for pairs in (_TWO_PARTS, _THREE_PARTS, _ALL_OF_THREE)
}


def find_split(name: Any) -> Split | None:
    """The split that a name stands for, a split itself; None for anything else."""
    if isinstance(name, Split):
        return name
    return SPLITS.get(name.strip().lower()) if isinstance(name, str) else None


@lru_cache(maxsize=64)
def in_mode(split: Split, rounding: Rounding | None) -> Split:
    """The same, its parts rounded in that mode; None leaves it."""
    return split if rounding is None else replace(split, rounding=rounding)
