"""Quantization that a network trains with: torch's formula in float32, one rounding of each float result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register, register_functional, steps
from fpsim.emulation.schemas import names

_aten = torch.ops.aten


def _rule_for(op: torch._ops.OpOverload) -> Rule:
    def quantize(machine: Machine, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if x.dtype is torch.float64:
            return op(x, *args, **kwargs)
        machine.whole()
        results = op(machine.operand(x), *machine.operands(args), **machine.operands(kwargs))
        return tuple(machine.finish(item) if item.dtype is torch.float32 else item for item in results)

    return quantize


register_functional(
    names(
        """
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        """
    ),
    "formula",
    _rule_for,
)


@register(_aten._fused_moving_avg_obs_fq_helper.default, family="formula")
def fused_moving_average(
    machine: Machine, x: Tensor, observer_on: Tensor, fake_quant_on: Tensor, running_min: Tensor, running_max: Tensor,
    scale: Tensor, zero_point: Tensor, *args: Any, **kwargs: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is observed is stored rounded; the output is quantized by what was computed."""
    if x.dtype is torch.float64:
        return _aten._fused_moving_avg_obs_fq_helper.default(
            x, observer_on, fake_quant_on, running_min, running_max, scale, zero_point, *args, **kwargs
        )
    machine.whole()
    stored = (running_min, running_max, scale, zero_point)
    fresh = [machine.held(item).clone() for item in stored]
    out, mask = _aten._fused_moving_avg_obs_fq_helper.default(
        machine.operand(x), observer_on, fake_quant_on, *fresh, *args, **kwargs
    )
    for target, values in zip(stored, fresh, strict=True):
        if target.shape != values.shape:
            target.resize_(values.shape)
        if values.dtype is torch.float32:
            machine.store(target, values)
        else:
            target.copy_(values)
    return machine.finish(out), mask


# Steps


def _steps(x: Tensor, scale: Any, zero_point: Any, least: int, most: int) -> tuple[Tensor, Tensor]:
    whole = torch.round(x * (1.0 / scale)) + zero_point
    return (whole.clamp(least, most) - zero_point) * scale, (whole >= least) & (whole <= most)


steps("fake_quantize_per_tensor_affine_cachemask")(_steps)


@steps("_fake_quantize_per_tensor_affine_cachemask_tensor_qparams")
def per_tensor_of_tensors(
    x: Tensor, scale: Tensor, zero_point: Tensor, enabled: Tensor, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    if not enabled.item():
        return x.clone(), torch.ones_like(x, dtype=torch.bool)
    return _steps(x, scale, zero_point, quant_min, quant_max)


@steps("fake_quantize_per_channel_affine_cachemask")
def per_channel(
    x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor]:
    shape = [-1 if index == axis else 1 for index in range(x.dim())]
    return _steps(x, scale.reshape(shape), zero_point.reshape(shape), quant_min, quant_max)
