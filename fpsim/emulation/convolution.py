"""Convolutions as matrix products over gathered columns; the order of k is that of `semantics.md`.

Forward (c, kh, kw); gradient of the input one chain over (o, kh, kw); gradient of the weight (n, oh, ow).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from fpsim.emulation.engine import column_sums, product
from fpsim.emulation.matmul import is_native, native
from fpsim.emulation.table import register

_aten = torch.ops.aten


def _windows(x: torch.Tensor, kernel: list[int], stride: list[int], dilation: list[int], out: list[int]) -> torch.Tensor:
    """A view (n, c, *kernel, *out) of a padded input (n, c, *spatial)."""
    steps = x.stride()
    strides = [*steps[:2], *(s * d for s, d in zip(steps[2:], dilation, strict=True)), *(s * t for s, t in zip(steps[2:], stride, strict=True))]
    return x.as_strided([x.shape[0], x.shape[1], *kernel, *out], strides, x.storage_offset())


def _padded(x: torch.Tensor, before: list[int], after: list[int]) -> torch.Tensor:
    amounts = [value for pair in zip(reversed(before), reversed(after), strict=True) for value in pair]
    return functional.pad(x, amounts) if any(amounts) else x.contiguous()


def _full(values: Any, dims: int) -> list[int]:
    values = list(values)
    return values * dims if len(values) == 1 else values


def _forward(
    machine: Any, x: torch.Tensor, weight: torch.Tensor, bias: np.ndarray | None, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> torch.Tensor:
    dims = x.dim() - 2
    kernel = list(weight.shape[2:])
    out = [(x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(dims)]
    n, o = x.shape[0], weight.shape[0]
    padded = _padded(x, padding, padding)
    order = [1, *range(2, 2 + dims), 0, *range(2 + dims, 2 + 2 * dims)]  # (c, *kernel, n, *out)
    columns = _windows(padded, kernel, stride, dilation, out).permute(order)
    c = x.shape[1] // groups
    parts = []
    for g in range(groups):
        block = columns[g * c : (g + 1) * c].reshape(c * math.prod(kernel), -1).numpy()
        rows = weight[g * (o // groups) : (g + 1) * (o // groups)].reshape(o // groups, -1).numpy()
        addend = None if bias is None else bias[g * (o // groups) : (g + 1) * (o // groups), None]
        parts.append(product(machine, rows, block, addend))
    result = torch.from_numpy(np.concatenate(parts) if groups > 1 else parts[0]).reshape([o, n, *out])
    return result.transpose(0, 1)


def _input_gradient(
    machine: Any, gradient: torch.Tensor, weight: torch.Tensor, spatial: list[int], stride: list[int], padding: list[int], dilation: list[int],
    groups: int, bias: np.ndarray | None = None,
) -> torch.Tensor:  # fmt: skip
    """The transposed convolution of `gradient`, gathered: zeros between its elements, then one chain over (o, *kernel)."""
    dims = gradient.dim() - 2
    kernel = list(weight.shape[2:])
    n, o = gradient.shape[:2]
    spread = [(size - 1) * step + 1 if size else 0 for size, step in zip(gradient.shape[2:], stride, strict=True)]
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    before = [r - p for r, p in zip(reach, padding, strict=True)]
    after = [spatial[i] + padding[i] - spread[i] for i in range(dims)]
    wide = torch.zeros([n, o, *spread])
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = gradient
    wide = functional.pad(wide, [value for pair in zip(reversed(before), reversed(after), strict=True) for value in pair]).contiguous()
    # Kernel index k reads at offset reach - k * dilation: ascending k walks the window backwards.
    windows = _windows(wide, kernel, [1] * dims, dilation, spatial).flip(list(range(2, 2 + dims)))
    order = [1, *range(2, 2 + dims), 0, *range(2 + dims, 2 + 2 * dims)]
    columns = windows.permute(order)
    share, c = o // groups, weight.shape[1]
    parts = []
    for g in range(groups):
        block = columns[g * share : (g + 1) * share].reshape(share * math.prod(kernel), -1).numpy()
        rows = weight[g * share : (g + 1) * share].transpose(0, 1).reshape(c, -1).numpy()
        addend = None if bias is None else bias[g * c : (g + 1) * c, None]
        parts.append(product(machine, rows, block, addend))
    result = torch.from_numpy(np.concatenate(parts) if groups > 1 else parts[0]).reshape([c * groups, n, *spatial])
    return result.transpose(0, 1)


def _weight_gradient(
    machine: Any, gradient: torch.Tensor, x: torch.Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> torch.Tensor:
    """(o, c, *kernel) sums over (n, *out)."""
    dims = x.dim() - 2
    out = list(gradient.shape[2:])
    padded = _padded(x, padding, padding)
    order = [0, *range(2 + dims, 2 + 2 * dims), 1, *range(2, 2 + dims)]  # (n, *out, c, *kernel)
    windows = _windows(padded, kernel, stride, dilation, out).permute(order)
    o, c = gradient.shape[1] // groups, x.shape[1] // groups
    parts = []
    for g in range(groups):
        left = gradient[:, g * o : (g + 1) * o].transpose(0, 1).reshape(o, -1).numpy()
        right = windows[(*(slice(None),) * (1 + dims), slice(g * c, (g + 1) * c))].reshape(left.shape[1], -1).numpy()
        parts.append(product(machine, left, right))
    return torch.from_numpy(np.concatenate(parts) if groups > 1 else parts[0]).reshape([o * groups, c, *kernel])


def _shaped(machine: Any, result: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Contiguous, or channels last where the input is."""
    channels_last = like.dim() == 4 and not like.is_contiguous() and like.is_contiguous(memory_format=torch.channels_last)
    return machine.exact(result.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))


@register(_aten.convolution.default, family="convolution")
def convolution(
    machine: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool, output_padding: Any, groups: int
) -> torch.Tensor:
    if x.dtype is torch.float64 and weight.dtype is torch.float64:
        return _aten.convolution.default(x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    if is_native(machine):
        return native(machine, _aten.convolution.default, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups)
    x, weight = machine.floating(x).detach(), machine.floating(weight).detach()
    offsets = None if bias is None else machine.operand(bias).detach().numpy()
    dims = x.dim() - 2
    stride, padding, dilation, output_padding = (_full(item, dims) for item in (stride, padding, dilation, output_padding))
    if transposed:
        kernel = weight.shape[2:]
        spatial = [
            (x.shape[2 + i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + output_padding[i] + 1 for i in range(dims)
        ]
        result = _input_gradient(machine, x, weight, spatial, stride, padding, dilation, groups, offsets)
    else:
        result = _forward(machine, x, weight, offsets, stride, padding, dilation, groups)
    return _shaped(machine, result, x)


@register(_aten.convolution_backward.default, family="convolution")
def convolution_backward(
    machine: Any, gradient: Any, x: Any, weight: Any, bias_sizes: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, output_mask: list[bool],
) -> tuple[torch.Tensor | None, ...]:  # fmt: skip
    arguments = (bias_sizes, stride, padding, dilation, transposed, output_padding, groups, output_mask)
    if x.dtype is torch.float64 and weight.dtype is torch.float64:
        return _aten.convolution_backward.default(gradient, x, weight, *arguments)
    gradient, x, weight = (machine.floating(item).detach() for item in (gradient, x, weight))
    if is_native(machine):
        results = _aten.convolution_backward.default(gradient, x, weight, *arguments)
        return tuple(None if item is None else machine.finish(item) for item in results)
    dims = x.dim() - 2
    kernel = list(weight.shape[2:])
    stride, padding, dilation = (_full(item, dims) for item in (stride, padding, dilation))
    gx = gw = gb = None
    if output_mask[0]:
        if transposed:
            gx = _forward(machine, gradient, weight, None, stride, padding, dilation, groups)
        else:
            gx = _input_gradient(machine, gradient, weight, list(x.shape[2:]), stride, padding, dilation, groups)
        gx = _shaped(machine, gx, x)
    if output_mask[1]:
        source, target = (x, gradient) if transposed else (gradient, x)
        gw = machine.exact(_weight_gradient(machine, source, target, kernel, stride, padding, dilation, groups).contiguous())
    if output_mask[2]:
        columns = gradient.transpose(0, 1).reshape(gradient.shape[1], -1).T.numpy()
        gb = machine.exact(torch.from_numpy(np.ascontiguousarray(column_sums(machine, columns))))
    return gx, gw, gb
