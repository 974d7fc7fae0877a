"""Convolutions, transposed ones and their gradients on the engine; the order of k is that of `semantics.md`.

Forward (c, kh, kw); gradient of the input one chain over (o, kh, kw); gradient of the weight (n, oh, ow).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from fpsim.emulation.machine.engine import Watch, reduction
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import register
from fpsim.emulation.rules.matmul import by_library, multiplies_natively
from fpsim.sums.convolutions import Products, forward_into, input_gradient_into, weight_gradient_into
from fpsim.sums.geometry import Geometry, five_axes

_aten = torch.ops.aten


def _full(values: Any, dims: int) -> list[int]:
    """One number for each spatial axis."""
    values = list(values)
    return values * dims if len(values) == 1 else values


def _compute(
    machine: Machine, into: Callable[..., None], left: torch.Tensor, right: torch.Tensor, shape: tuple[int, ...], *rest: Any
) -> torch.Tensor:
    """Run one of the engine's three products into a new tensor of that shape."""
    watch = Watch(machine)
    key = machine.draws()
    task = machine.sum_of(left, right) if into is weight_gradient_into else machine.sum_of(right, left)
    products = Products(task, key, machine.look_into(task), watch)
    first, second = (array_of(item.detach()) for item in (left, right))
    out = np.empty(shape, np.float32)
    geometry, *bias = rest
    into(five_axes(first), five_axes(second), five_axes(out), geometry, products, *bias)
    watch.finish(out, first, second)
    return torch.from_numpy(out)


def _geometry(x_shape: Any, weight_shape: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Geometry:
    return Geometry.of(tuple(x_shape), tuple(weight_shape), stride, padding, dilation, groups)


def _shaped(machine: Machine, result: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Contiguous, or channels last where the input is."""
    channels_last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return machine.exact(result.contiguous(memory_format=torch.channels_last) if channels_last else result)


def _transposed_shape(
    x: Any, weight: Any, stride: Any, padding: Any, dilation: Any, output_padding: Any, groups: int
) -> tuple[int, ...]:
    """The result's shape of a transposed convolution: the input's of the convolution whose gradient it is."""
    dims = x.dim() - 2
    spatial = [
        (x.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (weight.shape[2 + i] - 1) + output_padding[i] + 1
        for i in range(dims)
    ]
    return (x.shape[0], weight.shape[1] * groups, *spatial)


@register(_aten.convolution.default, family="convolution")
def convolution(
    machine: Machine,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> torch.Tensor:
    if x.dtype is torch.float64 and weight.dtype is torch.float64:
        return _aten.convolution.default(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    if multiplies_natively(machine):
        operands = (*map(machine.factor, (x, weight)), machine.operands(bias))
        shape_arguments = (stride, padding, dilation, transposed, output_padding, groups)
        return machine.finish(by_library(_aten.convolution.default, *operands, *shape_arguments))
    x, weight = machine.factor(x), machine.factor(weight)
    offsets = None if bias is None else array_of(machine.operand(bias).detach())
    dims = x.dim() - 2
    stride, padding, dilation, output_padding = (_full(item, dims) for item in (stride, padding, dilation, output_padding))
    if transposed:
        shape = _transposed_shape(x, weight, stride, padding, dilation, output_padding, groups)
        geometry = _geometry(shape, weight.shape, stride, padding, dilation, groups)
        result = _compute(machine, input_gradient_into, x, weight, shape, geometry, offsets)
    else:
        geometry = _geometry(x.shape, weight.shape, stride, padding, dilation, groups)
        shape = (x.shape[0], weight.shape[0], *geometry.grid[3 - dims :])
        result = _compute(machine, forward_into, x, weight, shape, geometry, offsets)
    return _shaped(machine, result, x)


@register(_aten.convolution_backward.default, family="convolution")
def convolution_backward(
    machine: Machine, gradient: Any, x: Any, weight: Any, bias_sizes: Any, stride: Any, padding: Any, dilation: Any,
    transposed: bool, output_padding: Any, groups: int, output_mask: list[bool],
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    arguments = (bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask)
    if x.dtype is torch.float64 and weight.dtype is torch.float64:
        return _aten.convolution_backward.default(gradient, x, weight, *arguments)
    whole = machine.floating(gradient)  # what the gradient of the bias sums
    gradient, x, weight = map(machine.factor, (gradient, x, weight))
    if multiplies_natively(machine):
        gx, gw, gb = by_library(_aten.convolution_backward.default, gradient, x, weight, *arguments)
        if output_mask[2] and whole is not gradient:
            gb = whole.sum([axis for axis in range(whole.dim()) if axis != 1])
        return tuple(None if item is None else machine.finish(item) for item in (gx, gw, gb))
    dims = x.dim() - 2
    stride, padding, dilation = (_full(item, dims) for item in (stride, padding, dilation))
    # A transposed convolution is the gradient of the convolution in which its input and its output change places; an output
    # padding beyond the stride leaves that one more positions than there are.
    source, target = (gradient, x) if transposed else (x, gradient)
    geometry = _geometry(source.shape, weight.shape, stride, padding, dilation, groups)
    geometry = replace(geometry, grid=(1,) * (3 - dims) + tuple(target.shape[2:]))
    gx = gw = gb = None
    if output_mask[0]:
        into = forward_into if transposed else input_gradient_into
        gx = _shaped(machine, _compute(machine, into, gradient, weight, tuple(x.shape), geometry, None), x)
    if output_mask[1]:
        gw = machine.exact(_compute(machine, weight_gradient_into, target, source, tuple(weight.shape), geometry))
    if output_mask[2]:
        axes = (0, *range(2, whole.dim()))
        gb = machine.exact(torch.from_numpy(np.ascontiguousarray(reduction(machine, array_of(whole.detach()), axes))))
    return gx, gw, gb
