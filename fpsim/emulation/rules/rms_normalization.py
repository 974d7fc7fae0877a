"""Root mean square normalization as one kernel, forward and backward: float64 inside, one rounding per output.

torch has no such kernel on the CPU and takes `rms_norm` apart above autograd, so a dispatch mode never sees it. While an
emulation is entered `torch.rms_norm`, which `nn.RMSNorm` calls, is the function below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba import sums64
from fpsim.emulation.dispatch import switches
from fpsim.emulation.dispatch.context import current
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import register
from fpsim.emulation.rules.normalization import vector_of, wide_tensor

_aten = torch.ops.aten
_plain = torch.rms_norm
_below_autograd = torch._C._AutoDispatchBelowAutograd  # type: ignore[attr-defined]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: MaybeTensor, shape: list[int], eps: float) -> Tensor:
        with _below_autograd():
            out, rstd = _aten._fused_rms_norm.default(x, shape, weight, eps)
        ctx.save_for_backward(x, weight, rstd)
        ctx.shape, ctx.eps = shape, eps
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        x, weight, rstd = ctx.saved_tensors
        (gradient,) = gradients
        mask = [ctx.needs_input_grad[0], ctx.needs_input_grad[1]]
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted: step by step
            inputs = [item for item, wanted in zip((x, weight), mask, strict=True) if wanted]
            out = _plain(x, ctx.shape, weight, ctx.eps)
            of_inputs = iter(torch.autograd.grad(out, inputs, gradient, create_graph=True))
            return *(next(of_inputs) if wanted else None for wanted in mask), None, None
        with _below_autograd():
            gx, gw = _aten._fused_rms_norm_backward.default(gradient, x, ctx.shape, rstd, weight, mask)
        return gx, gw, None, None


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int | torch.SymInt], weight: MaybeTensor = None, eps: float | None = None
) -> Tensor:
    """`torch.rms_norm`, which in a thread that emulates is one operation below autograd."""
    emulation = current()
    shape = list(normalized_shape)
    if (
        emulation is None
        or not isinstance(input, Tensor)
        or not (weight is None or isinstance(weight, Tensor))
        or not emulation.machine.emulates(input.dtype)
        or (weight is not None and (weight.dtype is not input.dtype or list(weight.shape) != shape))
        or list(input.shape[input.dim() - len(shape) :]) != shape
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
    ):
        return _plain(input, normalized_shape, weight, eps)
    return _RMSNorm.apply(input, weight, shape, emulation.machine.epsilon(input.dtype) if eps is None else eps)


switches.replacements["rms_norm"] = rms_norm


def _rows(machine: Machine, tensor: Tensor, size: int) -> np.ndarray:
    return array_of(machine.floating(tensor).detach().contiguous()).reshape(-1, size)


@register(_aten._fused_rms_norm.default, family="normalization")
def fused_rms_norm(
    machine: Machine, x: Tensor, shape: list[int], weight: MaybeTensor, eps: float | None
) -> tuple[Tensor, Tensor]:
    """x / sqrt(mean(x^2) + eps) * weight; eps left out is the format's, 2^(1 - p). Unrounded: 1 / sqrt(...)."""
    size = int(np.prod(shape))
    array = _rows(machine, x, size)
    squares = np.empty(len(array))
    sums64.sum_squares_of_rows(array, squares)
    with np.errstate(all="ignore"):
        inverse = 1.0 / np.sqrt(squares / np.float64(size) + (machine.epsilon(x.dtype) if eps is None else eps))
        out = (array * inverse[:, None]) * vector_of(machine, weight, size, 1.0).reshape(-1)
    outer = [*x.shape[: x.dim() - len(shape)], *(1 for _ in shape)]
    return machine.finish(torch.from_numpy(out.reshape(x.shape))), wide_tensor(inverse).view(outer)


@register(_aten._fused_rms_norm_backward.default, family="normalization")
def fused_rms_norm_backward(
    machine: Machine, gradient: Tensor, x: Tensor, shape: list[int], rstd: Tensor, weight: MaybeTensor, output_mask: list[bool]
) -> tuple[MaybeTensor, MaybeTensor]:
    size = int(np.prod(shape))
    array, g = _rows(machine, x, size), _rows(machine, gradient, size)
    inverse = array_of(rstd.detach().contiguous()).reshape(-1, 1).astype(np.float64)
    slope, gw = np.empty(len(array)), np.empty(size)
    with np.errstate(all="ignore"):
        normal = array * inverse
        scaled = g * vector_of(machine, weight, size, 1.0).reshape(-1)
        sums64.sum_rows(scaled * normal, slope)
        gx = (scaled - normal * (slope / np.float64(size))[:, None]) * inverse
        sums64.sum_rows(np.ascontiguousarray((g * normal).T), gw)
    return (
        machine.finish(torch.from_numpy(gx.reshape(x.shape))) if output_mask[0] else None,
        machine.finish(torch.from_numpy(gw.reshape(shape))) if output_mask[1] and weight is not None else None,
    )


@register(_aten.rms_norm.default, family="normalization")
def whole_rms_norm(
    machine: Machine, x: Tensor, shape: list[int], weight: MaybeTensor = None, eps: float | None = None
) -> Tensor:
    """What arrives whole under `inference_mode`."""
    if not machine.emulates(x.dtype):
        return _plain(x, shape, weight, eps)
    return fused_rms_norm(machine, x, list(shape), weight, eps)[0]
