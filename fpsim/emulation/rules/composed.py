"""Operations that torch has as kernels of their own, and that are others here, each with its rule, under every granularity."""

from __future__ import annotations

import math
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


def _addr(c: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """An elementwise kernel of multiplications and an addition, each rounded: no matrix product."""
    outer = (a if alpha == 1 else a * alpha).unsqueeze(1) * b
    return outer if beta == 0 else outer + (c if beta == 1 else c * beta)


def _summed_pair(a: Tensor, b: Tensor, axes: list[int]) -> Tensor:
    """The sum over these axes, which are left with one element, of a * b, as a batch of matrix products."""
    if not axes:
        return a * b
    groups: tuple[list[int], ...] = [], [], [], []
    both, left, right, inner = groups
    for axis in range(a.dim()):
        if axis not in axes:
            (right if a.shape[axis] == 1 else left if b.shape[axis] == 1 else both).append(axis)
        elif a.shape[axis] != 1 and b.shape[axis] != 1:
            inner.append(axis)
        else:
            a, b = (item if item.shape[axis] == 1 else item.sum(axis, keepdim=True) for item in (a, b))
    sizes = [1 if axis in inner else size for axis, size in enumerate(torch.broadcast_shapes(a.shape, b.shape))]
    counts = [math.prod(sizes[axis] for axis in group) for group in (both, left, right)]
    terms = math.prod(a.shape[axis] for axis in inner)
    rest = [axis for axis in axes if axis not in inner]
    rows = a.permute(*both, *left, *inner, *right, *rest).reshape(counts[0], counts[1], terms)
    columns = b.permute(*both, *inner, *right, *left, *rest).reshape(counts[0], terms, counts[2])
    order = [*both, *left, *right, *inner, *rest]
    result = rows.bmm(columns).view([sizes[axis] for axis in order])
    return result.permute([order.index(axis) for axis in range(a.dim())])


def _trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand1: list[int], expand2: list[int], expand3: list[int], sumdim: list[int],
    unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """What bilinear layers and their gradients are: a product of a and b, and one of it and c, slice by slice."""
    for axis in expand1:
        a = a.unsqueeze(axis)
    for axis in expand2:
        b = b.unsqueeze(axis)
    for axis in expand3:
        c = c.unsqueeze(axis)
    first = [axis for axis in sumdim if axis in expand3]
    second = [axis for axis in sumdim if axis not in expand3]
    if unroll_dim not in sumdim:  # slices do not meet
        result = _summed_pair(_summed_pair(a, b, first), c, second)
    else:
        count = torch.broadcast_shapes(a.shape, b.shape, c.shape)[unroll_dim]
        of_a, of_b, of_c = (item.expand(_with(item.shape, unroll_dim, count)).split(1, unroll_dim) for item in (a, b, c))
        result, *others = (_summed_pair(_summed_pair(x, y, first), z, second) for x, y, z in zip(of_a, of_b, of_c, strict=True))
        for other in others:
            result = result + other
    return result.squeeze(sumdim)


def _with(shape: torch.Size, axis: int, size: int) -> list[int]:
    return [*shape[:axis], size, *shape[axis + 1 :]]


def _euclidean_distances(a: Tensor, b: Tensor) -> Tensor:
    """The root of |a|^2 - 2 a b + |b|^2, which is one matrix product: what is near cancels, as it does on a GPU."""
    squares = [item.square().sum(-1, True) for item in (a, b)]
    left = torch.cat([a * -2, squares[0], torch.ones_like(squares[0])], -1)
    right = torch.cat([b, torch.ones_like(squares[1]), squares[1]], -1)
    return left.matmul(right.mT).clamp_min(0).sqrt()


register_functional("affine_grid_generator", "matmul", lambda op: _composed(_affine_grid))
register_functional("conv_tbc", "convolution", lambda op: _composed(_conv_tbc))
register_functional("addr", "formula", lambda op: _composed(_addr))
register_functional("_trilinear", "matmul", lambda op: _composed(_trilinear))
register_functional("_euclidean_dist", "matmul", lambda op: _composed(_euclidean_distances))
