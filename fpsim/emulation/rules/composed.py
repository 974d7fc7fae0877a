"""Operations that torch has as kernels of their own, and that are others here, each with its rule, under every granularity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register_functional


def _composed(function: Callable[..., Any]) -> Rule:
    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        with machine.dispatching():
            return function(*args, **kwargs)

    return compute


def _coordinates(like: Tensor, count: int, align_corners: bool) -> Tensor:
    if count <= 1:
        return torch.zeros(count, dtype=like.dtype)
    ends = torch.linspace(-1, 1, count, dtype=like.dtype)
    return ends if align_corners else ends * (count - 1) / count


def _affine_grid(theta: Tensor, size: list[int], align_corners: bool) -> Tensor:
    """(x, y[, z], 1) of every place times theta^T: a product of 3 or 4 terms through the accumulator."""
    images, *places = size[0], *size[2:]
    axes = [_coordinates(theta, count, align_corners) for count in places]
    columns = [axis.expand(places) for axis in reversed(torch.meshgrid(*axes, indexing="ij"))]
    base = torch.stack([*columns, torch.ones_like(columns[0])], -1).reshape(1, -1, len(places) + 1)
    return base.expand(images, -1, -1).bmm(theta.transpose(1, 2)).view(images, *places, len(places))


def _conv_tbc(x: Tensor, weight: Tensor, bias: Tensor, pad: int = 0) -> Tensor:
    """A convolution of (time, batch, channel) with (time, channel, channel of the result)."""
    return torch.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=pad).permute(2, 0, 1).contiguous()


register_functional("affine_grid_generator", "matmul", lambda op: _composed(_affine_grid))
register_functional("conv_tbc", "convolution", lambda op: _composed(_conv_tbc))
