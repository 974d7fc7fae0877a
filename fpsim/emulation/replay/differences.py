"""Two tensors of one dtype, compared bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from fpsim.emulation.replay.conversions import converted
from fpsim.recorder.calls import bits_of


@dataclass(frozen=True)
class Difference:
    """How many elements differ, and the first of them in row-major order.

    recorded, emulated  its bits on both sides
    ulps                how many values of the dtype lie between the two, from recorded to emulated; None for NaN on one side
                        and for integers
    """

    count: int
    index: tuple[int, ...]
    recorded: int
    emulated: int
    digits: int
    recorded_value: float
    emulated_value: float
    ulps: int | None

    def __str__(self) -> str:
        bits = f"{self.recorded:#0{self.digits + 2}x} -> {self.emulated:#0{self.digits + 2}x}"
        apart = "" if self.ulps is None else f", {self.ulps:+d} ulp"
        return f"{list(self.index)}: {bits} ({self.recorded_value:g} -> {self.emulated_value:g}{apart})"


def compare(recorded: torch.Tensor, emulated: torch.Tensor) -> Difference | None:
    """The difference between two tensors; None where every element has the same bits, or is NaN on both sides.

    Auxiliary results (statistics of a norm) that emulation keeps wider are rounded to the recorded dtype first.
    Raises ValueError for two shapes, or for dtypes of two kinds.
    """
    if recorded.is_floating_point() and emulated.is_floating_point() and recorded.dtype != emulated.dtype:
        emulated = converted(emulated, recorded.dtype)
    if recorded.dtype != emulated.dtype or recorded.shape != emulated.shape:
        raise ValueError(
            f"recorded {recorded.dtype} {tuple(recorded.shape)}, emulated {emulated.dtype} {tuple(emulated.shape)}"
        )
    left, right = bits_of(recorded), bits_of(emulated)
    differ = left != right
    if recorded.is_floating_point() and differ.any():
        differ &= ~(_wide(recorded).isnan() & _wide(emulated).isnan()).reshape(-1).numpy()
    count = int(np.count_nonzero(differ))
    if count == 0:
        return None
    place = int(np.argmax(differ))
    values = [float(_wide(x).reshape(-1)[place]) for x in (recorded, emulated)]
    ulps = None
    if recorded.is_floating_point() and not any(np.isnan(values)):
        ulps = _ordered(right[place]) - _ordered(left[place])
    index = tuple(int(i) for i in np.unravel_index(place, tuple(recorded.shape))) if recorded.dim() else ()
    return Difference(count, index, int(left[place]), int(right[place]), 2 * left.itemsize, values[0], values[1], ulps)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.detach().double()


def _ordered(bits: np.unsignedinteger) -> int:
    """Sign and magnitude as an integer, which steps by one from each value to the next."""
    sign = 1 << (8 * bits.itemsize - 1)
    return -(int(bits) - sign) if int(bits) & sign else int(bits)
