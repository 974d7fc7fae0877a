"""The gradient of a convolution's input in parts: positions between strides meet some of the kernel's positions alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from math import gcd
from typing import Any

import numpy as np

from fpsim.sums.geometry import Geometry, Triple


@dataclass(frozen=True)
class Phase:
    """Positions of the input, the kernel positions that they meet, and where those read the gradient.

    Both are ranges of each axis; `axes` is as `Geometry.backward_axes`, of positions and taps counted from 0 in their ranges.
    """

    positions: tuple[range, ...]
    taps: tuple[range, ...]
    axes: tuple[tuple[int, int, int, int], ...]

    @property
    def grid(self) -> tuple[int, ...]:
        return tuple(map(len, self.positions))

    @property
    def kernel(self) -> tuple[int, ...]:
        return tuple(map(len, self.taps))


def slices(ranges: tuple[range, ...]) -> tuple[Any, ...]:
    """What takes these places from the last axes of an array."""
    return (..., *(slice(part.start, part.stop, part.step) for part in ranges))


def whole(kernel: Triple, positions: Triple, axes: np.ndarray) -> Phase:
    """All positions, and all taps."""
    rows = tuple((int(step), int(offset), int(tap_step), int(divisor)) for step, offset, tap_step, divisor in axes)
    return Phase(tuple(map(range, positions)), tuple(map(range, kernel)), rows)


@lru_cache(maxsize=64)
def phases(geometry: Geometry) -> tuple[Phase, ...]:
    """The positions of the input in classes that meet the same kernel positions, each a convolution of stride 1."""
    choices = []
    for axis in range(3):
        stride, padding, dilation = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
        size, kernel = geometry.size[axis], geometry.kernel[axis]
        rows = []
        for first in range(min(stride, size)):
            met = [tap for tap in range(kernel) if (first + padding - tap * dilation) % stride == 0]
            start, step = (met[0], stride // gcd(stride, dilation)) if met else (kernel, 1)
            # Position first + stride * j and tap start + step * t read the gradient at j + offset + t * backward.
            offset, backward = (first + padding - start * dilation) // stride, -(step * dilation // stride)
            rows.append((range(first, size, stride), range(start, kernel, step), (1, offset, backward, 1)))
        choices.append(rows)
    return tuple(Phase(*zip(*combination, strict=True)) for combination in product(*choices))
