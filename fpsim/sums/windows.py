"""Where the taps of a convolution read what is laid out with its padding, and with zeros between its elements."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from fpsim.sums.phases import Phase, slices


@dataclass(frozen=True)
class Window:
    """The stretch of one axis of a source that is read, with zeros where there is nothing.

    low, size  its first place, and its length; element i of the source is at place i * divisor
    target     where in it the elements lie that there are, and `source` which those are
    """

    low: int
    size: int
    target: slice
    source: slice

    @staticmethod
    def of(elements: int, divisor: int, reached: list[int]) -> Window:
        """That which holds all places that are reached."""
        low, high = min(reached), max(reached)
        first = max(0, -(-low // divisor))
        last = max(first, min(elements - 1, high // divisor) + 1)
        begin = first * divisor - low
        target = slice(begin, max(begin, (last - 1) * divisor - low + 1), divisor)
        return Window(low, high - low + 1, target, slice(first, last))


@dataclass(frozen=True, eq=False)
class Places:
    """Of one phase: what each position, and each tap, adds to a place in the windows; which of the kernel's taps those are."""

    positions: np.ndarray
    taps: np.ndarray
    which: np.ndarray


@dataclass(frozen=True, eq=False)
class Reading:
    """The windows of the three axes of a source, and where phases read in them."""

    windows: tuple[Window, ...]
    places: tuple[Places, ...]

    @property
    def plane(self) -> int:
        """Elements of the windows of one channel and image."""
        return prod(window.size for window in self.windows)


@lru_cache(maxsize=128)
def reading(sizes: tuple[int, ...], kernel: tuple[int, ...], phases: tuple[Phase, ...]) -> Reading:
    """How phases read a source of these sizes by the taps of a kernel."""
    windows = []
    for axis, elements in enumerate(sizes):
        reached, divisor = [], 1
        for phase in phases:
            step, offset, tap_step, divisor = phase.axes[axis]
            ends = ((0, phase.grid[axis] - 1), (0, max(0, phase.kernel[axis] - 1)))
            reached += [offset + position * step + tap * tap_step for position, tap in product(*ends)]
        windows.append(Window.of(elements, divisor, reached))
    numbers = np.arange(prod(kernel)).reshape(kernel)
    places = []
    for phase in phases:
        positions, taps, stride = np.zeros(1, np.int64), np.zeros(1, np.int64), 1
        for axis in (2, 1, 0):
            step, offset, tap_step, _ = phase.axes[axis]
            positions = table((phase.grid[axis], step * stride), positions)
            taps = table((phase.kernel[axis], tap_step * stride), taps + (offset - windows[axis].low) * stride)
            stride *= windows[axis].size
        places.append(Places(positions, taps, numbers[slices(phase.taps)].reshape(-1)))
    return Reading(tuple(windows), tuple(places))


def table(*axes: tuple[int, int] | np.ndarray) -> np.ndarray:
    """What the turns of a loop over several axes add up to, row-major; an axis is (count, stride) or numbers."""
    total = np.zeros(1, np.int64)
    for axis in axes:
        offsets = axis if isinstance(axis, np.ndarray) else np.arange(axis[0], dtype=np.int64) * axis[1]
        total = (total[:, None] + offsets).reshape(-1)
    return total
