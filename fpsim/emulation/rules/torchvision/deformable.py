"""Deformable convolution (Dai et al., 2017; with a mask, Zhu et al., 2019): columns, and the product of a convolution.

A column is the mask times the input between its elements, where the kernel's place and the offset point to. Under "kernel"
it is computed in float64 and rounded once, under "primitive" every operation rounds; then it is the operand of a convolution
of 1 x 1: products over (channel, kernel row, kernel column) through the accumulator, the bias added there. With zero offsets
that is `conv2d` to the bit. Gradients likewise: that of the columns is a product, and what it becomes of input, offset and
mask is rounded once, or at every operation. What points outside, and what is not finite, reads 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import register
from fpsim.emulation.rules.torchvision.operators import operators

_aten = torch.ops.aten
_NOWHERE = -8.0  # no neighbor of it is an element


@dataclass(frozen=True)
class _Geometry:
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    offset_groups: int
    uses_mask: bool

    @staticmethod
    def of(weight: Tensor, numbers: tuple[Any, ...]) -> _Geometry:
        pairs = [(int(a), int(b)) for a, b in zip(numbers[0:6:2], numbers[1:6:2], strict=True)]
        return _Geometry(tuple(weight.shape[2:]), *pairs, *numbers[6:])  # type: ignore[arg-type]

    def outputs(self, lengths: tuple[int, ...]) -> list[int]:
        rows = zip(lengths, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(length + 2 * pad - (spread * (width - 1) + 1)) // step + 1 for length, width, step, pad, spread in rows]

    def fits(self, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor) -> bool:
        """Whether the operands are those of a deformable convolution; the operator has its own errors for others."""
        if x.dim() != 4 or weight.dim() != 4 or min(*self.stride, *self.dilation, self.groups, self.offset_groups) <= 0:
            return False
        places = (len(x), *self.outputs(tuple(x.shape[2:])))
        taps = self.kernel[0] * self.kernel[1] * self.offset_groups
        shapes = [(offset, 2 * taps), *([(mask, taps)] if self.uses_mask else [])]
        return (
            min(self.padding) >= 0 and min(places[1:], default=0) > 0 and x.shape[1] % self.offset_groups == 0
            and weight.shape[1] * self.groups == x.shape[1] and weight.shape[0] % self.groups == 0
            and all(tuple(item.shape) == (places[0], count, *places[1:]) for item, count in shapes)
            and tuple(bias.shape) == (weight.shape[0],)
            and all(item.dtype is x.dtype for item in (weight, offset, bias, *([mask] if self.uses_mask else [])))
        )  # fmt: skip


def _added(terms: list[Tensor], axis: int) -> Tensor:
    """The sum of terms in their order: of the accumulator, or of float64 as it is."""
    if terms[0].dtype is torch.float32:
        return torch.stack(terms, axis).sum(axis)
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def _times(mask: Tensor | None, values: Tensor) -> Tensor:
    return values if mask is None else mask * values


class _Samples:
    """What offsets point to: (images, offset groups, 1, taps, outputs); values there have a group's channels in place of 1."""

    def __init__(self, x: Tensor, offset: Tensor, geometry: _Geometry):
        self.shape, groups = x.shape, geometry.offset_groups
        self.outputs = list(offset.shape[2:])
        self.taps = geometry.kernel[0] * geometry.kernel[1]
        count = self.outputs[0] * self.outputs[1]
        self.values = x.reshape(len(x), groups, x.shape[1] // groups, x.shape[2] * x.shape[3])
        shifts = offset.reshape(len(x), groups, 1, self.taps, 2, count)
        self.at = [shifts.select(4, axis) + _places(geometry, self.outputs, axis).to(x.dtype) for axis in (0, 1)]
        finite = self.at[0].isfinite() & self.at[1].isfinite()
        self.at = [torch.where(finite, c, _NOWHERE) for c in self.at]
        near = [(c > -1.0) & (c < float(length)) for c, length in zip(self.at, x.shape[2:], strict=True)]
        self.inside = near[0] & near[1]
        self.low = [c.floor() for c in self.at]
        self.part = [c - low for c, low in zip(self.at, self.low, strict=True)]

    def read(self, along_y: int, along_x: int) -> Tensor:
        """The neighbor's values; 0 outside the input."""
        place, valid = self.place(along_y, along_x)
        flat = place.expand(*self.values.shape[:3], *place.shape[3:]).flatten(3)
        return torch.where(valid, self.values.gather(3, flat).reshape(*flat.shape[:3], *place.shape[3:]), 0.0)

    def place(self, along_y: int, along_x: int) -> tuple[Tensor, Tensor]:
        height, width = self.shape[2:]
        y, x = self.low[0].long() + along_y, self.low[1].long() + along_x
        valid = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        return torch.where(valid, y * width + x, 0), valid

    def between(self) -> Tensor:
        """The input between its elements, (images, offset groups, channels, taps, outputs)."""
        factors = [(1.0 - part, part) for part in self.part]
        terms = [factors[0][i] * factors[1][j] * self.read(i, j) for i in (0, 1) for j in (0, 1)]
        return torch.where(self.inside, _added(terms, -1), 0.0)

    def slope(self, axis: int) -> Tensor:
        """The derivative along an axis."""
        across = self.part[1 - axis]
        far, near = (
            self.read(*((1, i) if axis == 0 else (i, 1))) - self.read(*((0, i) if axis == 0 else (i, 0))) for i in (1, 0)
        )
        return across * far + (1.0 - across) * near

    def scattered(self, columns: Tensor, mask: Tensor | None) -> Tensor:
        """What columns bring to each element of the input, in the order of taps, outputs, corners."""
        terms, places, chosen = [], [], []
        for i in (0, 1):
            for j in (0, 1):
                far = [(c - (low + float(k))).abs() for c, low, k in zip(self.at, self.low, (i, j), strict=True)]
                weight = _times(mask, (1.0 - far[0]) * (1.0 - far[1]))
                place, valid = self.place(i, j)
                terms.append(weight * columns)
                places.append(place.expand(columns.shape))
                chosen.append((valid & (far[0] < 1) & (far[1] < 1)).expand(columns.shape))
        area = self.shape[2] * self.shape[3]
        rows = torch.arange(self.shape[0] * self.shape[1]).reshape(*self.values.shape[:3], 1, 1, 1) * area
        counts = torch.stack(chosen, -1)
        base = torch.zeros(self.shape.numel(), dtype=columns.dtype)
        places_of_all, terms_of_all = (rows + torch.stack(places, -1))[counts], torch.stack(terms, -1)[counts]
        return base.index_add(0, places_of_all, terms_of_all).reshape(self.shape)


def _places(geometry: _Geometry, outputs: list[int], axis: int) -> Tensor:
    """Where the kernel's taps are, (taps, outputs): whole numbers along one axis."""
    steps = np.indices(outputs)[axis].reshape(1, -1) * geometry.stride[axis] - geometry.padding[axis]
    taps = np.indices(geometry.kernel)[axis].reshape(-1, 1) * geometry.dilation[axis]
    return torch.from_numpy((taps + steps).astype(np.float64))


class _Deformed:
    """The columns of a deformable convolution, and what their gradients become; rounded at every operation, or in float64."""

    def __init__(self, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, numbers: tuple[Any, ...]):
        self.geometry = _Geometry.of(weight, numbers)
        self.samples = _Samples(x, offset, self.geometry)
        taps, places = self.samples.taps, self.samples.outputs
        self.mask = mask.reshape(len(x), -1, 1, taps, places[0] * places[1]) if self.geometry.uses_mask else None

    def columns(self) -> Tensor:
        """(images, channels and taps, outputs along y, along x)."""
        values = _times(self.mask, self.samples.between())
        return values.reshape(values.shape[0], self.samples.shape[1] * self.samples.taps, *self.samples.outputs)

    def gradients(self, columns: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of input, offset and mask, from those of columns."""
        samples = self.samples
        columns = columns.reshape(*samples.values.shape[:3], samples.taps, -1)
        shifts = [_added(list((_times(self.mask, samples.slope(axis)) * columns).unbind(2)), -1) for axis in (0, 1)]
        of_offset = torch.stack(shifts, 3).reshape(columns.shape[0], -1, *samples.outputs)
        of_mask = torch.zeros_like(mask)
        if self.mask is not None:
            of_mask = _added(list((columns * samples.between()).unbind(2)), -1).reshape(mask.shape)
        return samples.scattered(columns, self.mask), of_offset, of_mask


def _as_kernel(weight: Tensor) -> Tensor:
    """The weight of a convolution of columns."""
    return weight.reshape(weight.shape[0], -1, 1, 1)


_NO_SHAPE = ([1, 1], [0, 0], [1, 1], False, [0, 0])  # stride, padding, dilation, transposed, output padding


def _fits(numbers: tuple[Any, ...], *operands: Tensor) -> bool:
    return operands[1].dim() == 4 and _Geometry.of(operands[1], numbers).fits(*operands)


def _convolved(x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: Any) -> Tensor:
    if not _fits(numbers, x, weight, offset, mask, bias):
        return NotImplemented
    deformed = _Deformed(x, weight, offset, mask, numbers)
    return _aten.convolution.default(deformed.columns(), _as_kernel(weight), bias, *_NO_SHAPE, deformed.geometry.groups)


def _convolved_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: Any
) -> tuple[Tensor, ...]:
    if not _fits(numbers, x, weight, offset, mask, bias):
        return NotImplemented
    deformed = _Deformed(x, weight, offset, mask, numbers)
    of_columns, of_weight, of_bias = _aten.convolution_backward.default(
        gradient, deformed.columns(), _as_kernel(weight), [len(bias)], *_NO_SHAPE, deformed.geometry.groups, [True] * 3
    )
    of_input, of_offset, of_mask = deformed.gradients(of_columns, mask)
    return of_input, of_weight.reshape(weight.shape), of_offset, of_mask, of_bias


def _is_own(x: Tensor, numbers: tuple[Any, ...], *rest: Tensor) -> bool:
    """Whether this is an operation of the format; torch's own otherwise, or its error."""
    return x.dtype is torch.float32 and _fits(numbers, x, *rest)


def _refused(machine: Machine, op: torch._ops.OpOverload, *args: Any) -> Any:
    result = op(*(item.double() if isinstance(item, Tensor) and item.dtype is torch.float32 else item for item in args))
    if any(isinstance(item, Tensor) and item.dtype is torch.float32 for item in args):
        raise machine.refuse("operands that do not make a deformable convolution")  # torchvision knows more than this file
    return result


for _op in operators("deform_conv2d"):

    @register(_op, family="convolution", steps=_convolved)
    def deform_conv2d(
        machine: Machine, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: Any
    ) -> Tensor:
        if not _is_own(x, numbers, weight, offset, mask, bias):
            return _refused(machine, torch.ops.torchvision.deform_conv2d.default, x, weight, offset, mask, bias, *numbers)
        wide = [item.double() for item in machine.operands((x, offset, mask))]
        deformed = _Deformed(wide[0], weight, wide[1], wide[2], numbers)
        columns, groups = machine.finish(deformed.columns()), deformed.geometry.groups
        return machine.rules[_aten.convolution.default](machine, columns, _as_kernel(weight), bias, *_NO_SHAPE, groups)


for _op in operators("_deform_conv2d_backward"):

    @register(_op, family="convolution", steps=_convolved_backward)
    def deform_conv2d_backward(
        machine: Machine, gradient: Tensor, x: Tensor, weight: Tensor, offset: Tensor, mask: Tensor, bias: Tensor, *numbers: Any
    ) -> tuple[Tensor, ...]:
        if not _is_own(x, numbers, weight, offset, mask, bias):
            op = torch.ops.torchvision._deform_conv2d_backward.default
            return _refused(machine, op, gradient, x, weight, offset, mask, bias, *numbers)
        wide = [item.double() for item in machine.operands((x, offset, mask))]
        deformed = _Deformed(wide[0], weight, wide[1], wide[2], numbers)
        shape = [[len(bias)], *_NO_SHAPE, deformed.geometry.groups, [True] * 3]
        columns = machine.finish(deformed.columns())
        of_columns, of_weight, of_bias = machine.rules[_aten.convolution_backward.default](
            machine, gradient, columns, _as_kernel(weight), *shape
        )
        of_input, of_offset, of_mask = map(machine.finish, deformed.gradients(of_columns.double(), wide[2]))
        return of_input, of_weight.reshape(weight.shape), of_offset, of_mask, of_bias
