"""Roles whose format is a number system without kernels: results counted and rounded by the system itself."""

from __future__ import annotations

import numpy as np
import torch

from fpsim.backend.numba import counting
from fpsim.emulation.machine.finishing import Finish
from fpsim.emulation.registry import TABLE
from fpsim.emulation.schemas import name_of, names
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem

_NEEDS = {
    **dict.fromkeys(names("div reciprocal addcdiv floor_divide fmod remainder"), "div"),
    **dict.fromkeys(names("sqrt rsqrt"), "sqrt"),
    **dict.fromkeys(names("pow float_power"), "functions"),
}


def what_is_lacking(system: NumberSystem, rounding: Rounding, op: torch._ops.OpOverload) -> str | None:
    """Why the system has no such operation, None where it has; a kernel that is wide inside (softmax, norms) needs nothing."""
    if isinstance(system, Format):
        return None
    needed = "functions" if TABLE[op].family == "elementary" else _NEEDS.get(name_of(op).removeprefix("_foreach_"))
    return None if needed is None else system.lacks(needed, rounding)


class SystemFinish(Finish):
    """The same by the system's own rounding. What it is to round beyond its range counts as an overflow."""

    has_kernels = False

    def __init__(self, system: NumberSystem, rounding: Rounding):
        self.fmt, self.rounding = system, rounding
        self.stochastic = rounding is Rounding.STOCHASTIC

    def count(self, flat: np.ndarray, row: np.ndarray) -> None:
        mode = Rounding.TOWARD_ZERO if self.stochastic else self.rounding  # by draws alone nothing overflows
        self._round(flat, np.empty(flat.shape, np.float64), row, 0, 0, mode)

    def round_few(self, tensor: torch.Tensor, row: np.ndarray) -> bool:
        return False

    def tanh_gradient(self, gradient: np.ndarray, result: np.ndarray, out: np.ndarray, row: np.ndarray) -> None:
        wide = result.astype(np.float64)
        self._round(gradient * (1 - wide * wide), out, row, 0, 0)

    def _round(
        self, values: np.ndarray, out: np.ndarray, row: np.ndarray, key: int, first: int, mode: Rounding | None = None
    ) -> None:
        mode, wide = mode or self.rounding, values.astype(np.float64)
        rounded, free = np.empty_like(wide), np.empty_like(wide)
        self.fmt.round_into(wide, rounded, mode, key, first)
        self.fmt.beyond.round_into(wide, free, mode, key, first)
        row[counting.ELEMENTS] += wide.size
        row[counting.OVERFLOWS] += int(np.count_nonzero((free != rounded) & np.isfinite(wide)))
        row[counting.UNDERFLOWS] += int(np.count_nonzero((wide != 0) & (free == 0)))
        row[counting.INFINITE] += int(np.count_nonzero(np.isinf(wide)))
        row[counting.NAN] += int(np.count_nonzero(np.isnan(wide)))
        out[...] = rounded  # exact: float32 holds every value of the system
