"""Python numbers on their way into a machine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fpsim.backend.numba import counting
from fpsim.emulation.machine.limits import LARGEST, in_fp32
from fpsim.emulation.machine.place import Place
from fpsim.numbers.rounding import Rounding, round_into

_MOST, _MOST_TENSORS = 1 << 12, 1 << 6  # constants that are kept


def _make_room(kept: dict[float, Any], most: int) -> None:
    if len(kept) >= most:  # step sizes that differ at every step
        kept.clear()


class Constants(Place):
    """What numbers among an operation's arguments become."""

    #: Whether float32's largest number, and a constant beyond the range, mean the format's own largest.
    stands_for_largest = True
    saturates_constants = True

    def scalar(self, value: float) -> float:
        value = self.meant(value)
        if self.arithmetic.primitive:
            return self.in_format(value, draws=type(value) is float)
        return in_fp32(value) if type(value) is float else value

    def scalar_tensor(self, value: float) -> torch.Tensor:
        scalars = self.arithmetic.scalars
        found = scalars.get(value) if value and not self.arithmetic.primitive else None  # 0 equals -0
        if found is None:
            found = torch.scalar_tensor(self.scalar(value), dtype=torch.float32, device="cpu")
            if value and not self.arithmetic.primitive:
                _make_room(scalars, _MOST_TENSORS)
                scalars[value] = found
        return found

    def as_number(self, value: float) -> float:
        """A Python number as arithmetic reads it; nothing is counted or drawn."""
        value = self.meant(value)
        if not self.arithmetic.primitive or self.arithmetic.stochastic:
            return in_fp32(value) if type(value) is float else value
        return self.constant(value, saturate=False) if abs(value) < np.inf else value

    def meant(self, value: Any) -> Any:
        """What a number stands for: float32's largest for the format's own, and so infinity where the format has none."""
        if type(value) is not float or -LARGEST < value < LARGEST or not self.stands_for_largest:
            return value
        if abs(value) == LARGEST or (abs(value) == np.inf and not self.arithmetic.fmt.has_infinity):
            return math.copysign(self.arithmetic.fmt.max_finite, value)
        return value

    def in_format(self, value: Any, draws: bool = False) -> Any:
        if (type(value) is not float and type(value) is not int) or value == 0:
            return value
        arithmetic = self.arithmetic
        stored = arithmetic.constants.get(value)  # none where draws are counted, and none that overflows is of use here
        if stored is not None and abs(value) <= arithmetic.fmt.max_finite:
            return value if stored == value else stored
        if abs(value) == np.inf and not (arithmetic.fmt.has_infinity and arithmetic.fmt.saturate):
            return value  # where no value of the format is infinite, comparisons find that out
        value = self.meant(value)
        if abs(value) > self.arithmetic.fmt.max_finite:
            counts = np.zeros(counting.LENGTH, np.int64)
            self.arithmetic.finishing.count(np.array([value], dtype=np.float64), counts)
            self.row()[counting.OVERFLOWS] += counts[counting.OVERFLOWS]
        if self.arithmetic.stochastic and not draws and self._is_value(value):
            return value
        rounded = self.constant(value, saturate=False)
        return value if rounded == value else rounded

    def _is_value(self, value: float) -> bool:
        inward = np.array([value], dtype=np.float64)
        round_into(inward, inward, self.arithmetic.fmt, Rounding.TOWARD_ZERO)
        return bool(inward[0] == value)

    def constant(self, value: Any, saturate: bool = True) -> Any:
        if type(value) is not float and type(value) is not int:
            return value
        saturate = saturate and self.saturates_constants
        stored = self.arithmetic.constants.get(value)
        if stored is not None and (saturate or abs(value) <= self.arithmetic.fmt.max_finite):
            return stored
        if value == 0:
            return value if self.arithmetic.fmt.has_negative_zero else 0.0
        keeps = not self.arithmetic.stochastic and (saturate or abs(value) <= self.arithmetic.fmt.max_finite)
        array = np.array([value], dtype=np.float64)
        round_into(array, array, self.arithmetic.fmt, self.arithmetic.rounding, self.draws())
        result = float(array[0])
        if saturate and value == value and ((np.isinf(result) and abs(value) != np.inf) or not abs(result) <= np.inf):
            result = self.arithmetic.fmt.max_finite if value > 0 else -self.arithmetic.fmt.max_finite
        if keeps:
            _make_room(self.arithmetic.constants, _MOST)
            self.arithmetic.constants[value] = result
        return result
