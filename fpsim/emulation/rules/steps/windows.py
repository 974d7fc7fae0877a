"""Pooling, padding and interpolation: every output is a weighted sum over a window of the input.

Where the window lies and what it weighs is geometry: Python numbers, rounded to the format. Values are gathered, multiplied by
their weights where those differ from 1, summed by the accumulator, and divided by the window's size where it is a mean. A
gradient adds up what the windows bring to each input, in ascending order of the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fpsim.emulation.registry import register_steps, steps

Tensor = torch.Tensor


@dataclass(frozen=True)
class Axis:
    """Windows along one axis: (outputs, taps) positions in the input, whether each counts, weights, divisors (outputs)."""

    positions: np.ndarray
    counts: np.ndarray
    weights: np.ndarray | None = None
    divisors: np.ndarray | None = None


def _outer(parts: Sequence[np.ndarray], combine: Callable[..., np.ndarray]) -> np.ndarray:
    """(all outputs, all taps) from (outputs, taps) of each axis, row-major."""
    result = parts[0]
    for part in parts[1:]:
        joined = combine(result[:, None, :, None], part[None, :, None, :])
        result = joined.reshape(len(result) * len(part), -1)
    return result


class Windows:
    """Windows over the last axes of a tensor: the product of those along each."""

    def __init__(self, axes: Sequence[Axis], sizes: Sequence[int]):
        self.outputs = [len(axis.positions) for axis in axes]
        self.sizes = list(sizes)
        strides = [math.prod(sizes[index + 1 :]) for index in range(len(sizes))]
        positions = [axis.positions * stride for axis, stride in zip(axes, strides, strict=True)]
        self.positions = torch.from_numpy(_outer(positions, np.add).astype(np.int64))
        self.counts = torch.from_numpy(_outer([axis.counts for axis in axes], np.logical_and))
        self.all_count = all(axis.counts.all() for axis in axes)
        weights = [axis.weights for axis in axes if axis.weights is not None]
        self.weights = torch.from_numpy(_outer(weights, np.multiply)) if len(weights) == len(axes) else None
        divisors = [axis.divisors[:, None] for axis in axes if axis.divisors is not None]
        self.divisors = torch.from_numpy(_outer(divisors, np.multiply).astype(np.float64)[:, 0]) if divisors else None

    def forward(self, x: Tensor) -> Tensor:
        kept = x.shape[: x.dim() - len(self.sizes)]
        values = x.reshape(*kept, math.prod(self.sizes))[..., self.positions]
        if self.weights is not None:
            values = values * self.weights.to(x.dtype)
        if not self.all_count:
            values = torch.where(self.counts, values, 0.0)
        total = values.sum(-1) if values.shape[-1] != 1 else values.squeeze(-1)
        if self.divisors is not None:
            total = total / self.divisors.to(x.dtype)
        return total.reshape(*kept, *self.outputs)

    def backward(self, gradient: Tensor) -> Tensor:
        kept = gradient.shape[: gradient.dim() - len(self.sizes)]
        share = gradient.reshape(*kept, math.prod(self.outputs))
        if self.divisors is not None:
            share = share / self.divisors.to(gradient.dtype)
        terms = share.unsqueeze(-1).expand(*kept, *self.positions.shape)
        if self.weights is not None:
            terms = terms * self.weights.to(gradient.dtype)
        chosen = self.counts.reshape(-1)
        terms = terms.reshape(*kept, chosen.numel())[..., chosen]
        places = self.positions.reshape(-1)[chosen]
        base = torch.zeros(*kept, math.prod(self.sizes), dtype=gradient.dtype)
        return base.index_add(-1, places, terms).reshape(*kept, *self.sizes)


# Average pooling


def _each(value: Any, dims: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * dims if len(values) == 1 else values


def _pooling(
    x_sizes: Sequence[int], kernel: Any, stride: Any, padding: Any, ceil_mode: bool, with_padding: bool, divisor: int | None
) -> Windows:
    dims = len(x_sizes)
    kernel, padding = _each(kernel, dims), _each(padding, dims)
    stride = _each(stride, dims) if stride is not None and _each(stride, dims) else kernel
    axes: list[Axis] = []
    for size, width, step, pad in zip(x_sizes, kernel, stride, padding, strict=True):
        span = size + 2 * pad - width
        outputs = (-(-span // step) if ceil_mode else span // step) + 1
        if ceil_mode and (outputs - 1) * step >= size + pad:
            outputs -= 1
        starts = np.arange(outputs) * step - pad
        positions = starts[:, None] + np.arange(width)
        inside = (positions >= 0) & (positions < size)
        widths = np.minimum(starts + width, size + pad) - starts if with_padding else inside.sum(1)
        if divisor is not None:
            widths = np.full(outputs, 1 if axes else divisor)
        axes.append(Axis(positions.clip(0, size - 1), inside, None, widths))
    return Windows(axes, x_sizes)


def _average_steps(dims: int, backward: bool) -> Any:
    def average(
        x: Tensor, kernel: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False, count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Tensor:  # fmt: skip
        sizes = x.shape[x.dim() - dims :]
        return _pooling(sizes, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override).forward(x)

    def average_backward(
        gradient: Tensor, x: Tensor, kernel: Any, stride: Any, padding: Any, ceil_mode: bool, count_include_pad: bool,
        divisor_override: int | None,
    ) -> Tensor:  # fmt: skip
        sizes = x.shape[x.dim() - dims :]
        return _pooling(sizes, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override).backward(gradient)

    return lambda op: average_backward if backward else average


for _dims in (1, 2, 3):
    register_steps(f"avg_pool{_dims}d", _average_steps(_dims, False))
    register_steps(f"avg_pool{_dims}d_backward", _average_steps(_dims, True))


def _adaptive(sizes: Sequence[int], outputs: Sequence[int]) -> Windows:
    axes = []
    for size, count in zip(sizes, outputs, strict=True):
        index = np.arange(count)
        starts, ends = index * size // count, -(-(index + 1) * size // count)
        widths = ends - starts
        positions = starts[:, None] + np.arange(widths.max() if count else 1)
        axes.append(Axis(positions.clip(max=size - 1), positions < ends[:, None], None, widths))
    return Windows(axes, sizes)


def _adaptive_steps(dims: int, backward: bool) -> Any:
    def adaptive(x: Tensor, output_size: Any) -> Tensor:
        return _adaptive(x.shape[x.dim() - dims :], output_size).forward(x)

    def adaptive_backward(gradient: Tensor, x: Tensor) -> Tensor:
        return _adaptive(x.shape[x.dim() - dims :], gradient.shape[x.dim() - dims :]).backward(gradient)

    return lambda op: adaptive_backward if backward else adaptive


for _dims in (2, 3):
    register_steps(f"_adaptive_avg_pool{_dims}d", _adaptive_steps(_dims, False))
    register_steps(f"_adaptive_avg_pool{_dims}d_backward", _adaptive_steps(_dims, True))
register_steps("adaptive_avg_pool2d", _adaptive_steps(2, False))


# Max pooling: gradients of selections


def _selection_steps(dims: int) -> Any:
    def backward(gradient: Tensor, x: Tensor, *rest: Any, indices: Any = None) -> Tensor:
        places = rest[-1] if indices is None else indices
        kept = x.shape[: x.dim() - dims]
        base = torch.zeros(*kept, math.prod(x.shape[x.dim() - dims :]), dtype=x.dtype)
        return base.scatter_add(-1, places.flatten(-dims), gradient.flatten(-dims)).reshape(x.shape)

    return lambda op: backward


for _name in ("max_pool{}d_with_indices_backward", "adaptive_max_pool{}d_backward", "fractional_max_pool{}d_backward"):
    for _dims in (2, 3):
        register_steps(_name.format(_dims), _selection_steps(_dims))


# Padding: gradients of gathers


def _padded(sizes: Sequence[int], padding: Sequence[int], reflect: bool) -> Windows:
    axes = []
    for index, size in enumerate(sizes):
        before, after = padding[2 * (len(sizes) - 1 - index) :][:2]
        positions = np.arange(-before, size + after)
        if reflect:
            positions = np.abs(positions)
            positions = np.where(positions >= size, 2 * (size - 1) - positions, positions)
        positions = positions.clip(0, size - 1)[:, None]
        axes.append(Axis(positions, np.ones(positions.shape, np.bool_)))
    return Windows(axes, sizes)


def _padding_steps(dims: int, reflect: bool) -> Any:
    def backward(gradient: Tensor, x: Tensor, padding: list[int]) -> Tensor:
        return _padded(x.shape[x.dim() - dims :], padding, reflect).backward(gradient)

    return lambda op: backward


for _dims in (1, 2, 3):
    register_steps(f"reflection_pad{_dims}d_backward", _padding_steps(_dims, True))
    register_steps(f"replication_pad{_dims}d_backward", _padding_steps(_dims, False))


@steps("unfold_backward")
def unfold_backward(gradient: Tensor, input_sizes: list[int], dim: int, size: int, step: int) -> Tensor:
    if not input_sizes:
        return gradient.reshape(()).clone()
    dim %= len(input_sizes)
    positions = torch.arange(gradient.shape[dim])[:, None] * step + torch.arange(size)
    terms = gradient.movedim(dim, -2).flatten(-2)
    kept = [*input_sizes[:dim], *input_sizes[dim + 1 :]]
    base = torch.zeros(*kept, input_sizes[dim], dtype=gradient.dtype)
    return base.index_add(-1, positions.reshape(-1), terms).movedim(-1, dim).contiguous()


@steps("col2im")
def col2im(
    x: Tensor, output_size: list[int], kernel_size: list[int], dilation: list[int], padding: list[int], stride: list[int]
) -> Tensor:
    """Blocks into an image: what meets in a pixel is accumulated in order of kernel positions, then of blocks."""
    axes = []
    for size, width, spread, pad, step in zip(output_size, kernel_size, dilation, padding, stride, strict=True):
        blocks = (size + 2 * pad - spread * (width - 1) - 1) // step + 1
        places = np.arange(width)[:, None] * spread + np.arange(blocks) * step - pad
        axes.append(Axis(places.clip(0, size - 1), (places >= 0) & (places < size)))
    windows = Windows(axes, output_size)
    kept = x.shape[:-2]
    channels = x.shape[-2] // math.prod(kernel_size)
    chosen = windows.counts.reshape(-1)
    terms = x.reshape(*kept, channels, chosen.numel())
    base = torch.zeros(*kept, channels, math.prod(output_size), dtype=x.dtype)
    result = base.index_add(-1, windows.positions.reshape(-1)[chosen], terms[..., chosen])
    return result.reshape(*kept, channels, *output_size)
