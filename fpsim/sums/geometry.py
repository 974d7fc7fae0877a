"""The sizes of a convolution: shapes, strides, padding, and where each tap reads."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import numpy as np

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Geometry:
    """The sizes of a convolution, with three spatial axes (missing ones have size 1)."""

    images: int
    channels: int
    outputs: int
    groups: int
    size: Triple
    kernel: Triple
    grid: Triple
    stride: Triple
    padding: Triple
    dilation: Triple
    dimensions: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.images, self.channels, *self.size)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return (self.outputs, self.channels // self.groups, *self.kernel)

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (self.images, self.outputs, *self.grid)

    def shown(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A shape with three spatial axes as the caller knows it."""
        return shape[:2] + shape[5 - self.dimensions :]

    @property
    def forward_axes(self) -> np.ndarray:
        """index in the input = position * stride - padding + tap * dilation."""
        rows = zip(self.stride, self.padding, self.dilation, strict=True)
        return np.array([(stride, -padding, dilation, 1) for stride, padding, dilation in rows], dtype=np.int64)

    @property
    def backward_axes(self) -> np.ndarray:
        """stride * index in the output = position + padding - tap * dilation."""
        rows = zip(self.stride, self.padding, self.dilation, strict=True)
        return np.array([(1, padding, -dilation, stride) for stride, padding, dilation in rows], dtype=np.int64)

    @staticmethod
    def of(
        input_shape: tuple[int, ...],
        weight_shape: tuple[int, ...],
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Geometry:
        """The geometry of a convolution of these shapes, (images, channels, ...) and (outputs, channels / groups, ...).

        Raises ValueError naming the argument that does not fit.
        """
        dimensions = len(input_shape) - 2
        if dimensions not in (1, 2, 3):
            raise ValueError(f"x must have shape (images, channels, 1 to 3 axes), got {tuple(input_shape)}")
        if len(weight_shape) != len(input_shape):
            raise ValueError(f"weight has shape {tuple(weight_shape)}, x {tuple(input_shape)}: they need as many axes")
        groups = _whole(groups, "groups", 1)
        images, channels, *size = input_shape
        outputs, inner, *kernel = weight_shape
        if channels % groups or outputs % groups or inner * groups != channels:
            raise ValueError(
                f"groups = {groups}: x has {channels} channels, weight {tuple(weight_shape)} takes {inner} a group "
                f"and gives {outputs}; channels and outputs must be multiples of groups"
            )
        if 0 in kernel:
            raise ValueError(f"weight has shape {tuple(weight_shape)}: a kernel axis of size 0")
        strides = _per_axis(stride, "stride", dimensions, 1)
        paddings = _per_axis(padding, "padding", dimensions, 0)
        dilations = _per_axis(dilation, "dilation", dimensions, 1)
        grid = []
        for axis in range(dimensions):
            room = size[axis] + 2 * paddings[axis] - dilations[axis] * (kernel[axis] - 1) - 1
            if room < 0:
                raise ValueError(
                    f"weight has shape {tuple(weight_shape)}: its kernel, dilated by {dilations[axis]}, is larger than "
                    f"axis {axis + 2} of x, {size[axis]} + 2 * {paddings[axis]} of padding"
                )
            grid.append(room // strides[axis] + 1)
        return Geometry(
            images,
            channels,
            outputs,
            groups,
            _triple(size, 1),
            _triple(kernel, 1),
            _triple(grid, 1),
            _triple(strides, 1),
            _triple(paddings, 0),
            _triple(dilations, 1),
            dimensions,
        )


def five_axes(array: np.ndarray) -> np.ndarray:
    """An array (n, c, 1 to 3 axes) with three spatial axes."""
    return array.reshape(*array.shape[:2], *(1,) * (5 - array.ndim), *array.shape[2:])


def _whole(value: Any, name: str, least: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def _per_axis(value: Any, name: str, dimensions: int, least: int) -> list[int]:
    values = list(value) if isinstance(value, (tuple, list)) else [value] * dimensions
    if len(values) != dimensions:
        raise ValueError(f"{name} must be one number or {dimensions}, got {value!r}")
    return [_whole(number, name, least) for number in values]


def _triple(values: list[int], missing: int) -> Triple:
    first, second, third = [missing] * (3 - len(values)) + values
    return first, second, third
