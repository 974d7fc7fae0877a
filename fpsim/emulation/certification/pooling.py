"""Max pooling: between two points a maximum moves by a mean of what the elements move that may be the largest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fpsim.emulation.certification.slopes import Slope
from fpsim.emulation.certification.table import Call, free, register

_aten = torch.ops.aten


def _pair(value: Any) -> tuple[int, int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return (values[0], values[-1])


def _max_pool_slopes(call: Call) -> Sequence[Slope]:
    x = call.operands[0]
    kernel = _pair(call.argument(1, "kernel_size"))
    stride = _pair(call.argument(2, "stride") or kernel)
    padding, dilation = _pair(call.argument(3, "padding", 0)), _pair(call.argument(4, "dilation", 1))
    images, channels = (x.value.shape[0], x.value.shape[1]) if x.value.dim() == 4 else (1, x.value.shape[0])
    if call.argument(5, "ceil_mode", False):
        raise call.refuse("ceil_mode in max pooling")
    shape = call.run([x.value]).shape

    def windows(t: torch.Tensor, outside: float = 0.0) -> torch.Tensor:
        """(images * channels, elements of a window, windows)"""
        t = t.reshape(images * channels, 1, *t.shape[-2:])
        padded = torch.nn.functional.pad(t, (padding[1], padding[1], padding[0], padding[0]), value=outside)
        return torch.nn.functional.unfold(padded, kernel, dilation, 0, stride)

    low, high = windows(x.low, -torch.inf), windows(x.high, -torch.inf)
    candidates = (high >= low.amax(1, keepdim=True)).double()
    ambiguous = candidates.sum(1, keepdim=True) > 1
    center = torch.where(ambiguous, 0.5 * candidates, candidates)
    radius = torch.where(ambiguous, 0.5 * candidates, 0.0)
    lost = torch.where(low.isnan() | high.isnan(), torch.inf, 0.0)

    def weighted(weights: torch.Tensor) -> Any:
        return lambda t: (windows(t) * weights).sum(1).reshape(shape)

    def forward(t: torch.Tensor) -> torch.Tensor:
        return (windows(t) * candidates + lost).amax(1).reshape(shape)

    return [Slope(weighted(center), weighted(candidates), weighted(radius), kernel[0] * kernel[1], forward)]


register(_aten.max_pool2d_with_indices.default, "pooling", _max_pool_slopes, kind="exact", cost=free)
