"""Quantization that a network trains with: torch's formula in float32, one rounding of each float result."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import RULES, Rule, itself_in_float64, register, register_functional, steps
from fpsim.emulation.schemas import names

_aten = torch.ops.aten
_LEARNED = _aten._fake_quantize_learnable_per_tensor_affine_backward.default
_LEARNED_OF_CHANNELS = _aten._fake_quantize_learnable_per_channel_affine_backward.default


def _rule_for(op: torch._ops.OpOverload) -> Rule:
    @itself_in_float64(op)
    def quantize(machine: Machine, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        machine.whole()
        results = op(machine.operand(x), *machine.operands(args), **machine.operands(kwargs))
        if isinstance(results, Tensor):
            return machine.finish(results)
        return tuple(machine.finish(item) if item.dtype is torch.float32 else item for item in results)

    return quantize


register_functional(
    names(
        """
        fake_quantize_per_tensor_affine_cachemask fake_quantize_per_channel_affine_cachemask
        _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
        _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_channel_affine
        """
    ),
    "formula",
    _rule_for,
)


@register(_aten._fused_moving_avg_obs_fq_helper.default, family="formula")
@itself_in_float64(_aten._fused_moving_avg_obs_fq_helper.default)
def fused_moving_average(
    machine: Machine, x: Tensor, observer_on: Tensor, fake_quant_on: Tensor, running_min: Tensor, running_max: Tensor,
    scale: Tensor, zero_point: Tensor, *args: Any, **kwargs: Any,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What is observed is stored rounded; the output is quantized by what was computed."""
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


# Scales and zero points that are learned (Esser et al. 2020, as torch has it)


def _learned_gradients(
    machine: Machine, gradient: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axes: list[int], least: int, most: int,
    factor: float, *, of_channels: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """The gradients of input, scale and zero point; what each element adds to the last two is rounded first.

    Zero points are whole here. Ties go to even codes where each channel has one, else to even multiples of the scale.
    """
    machine.whole()
    gradient, x = machine.operand(gradient), machine.operand(x)
    inverse = 1.0 / scale
    whole = torch.round(x * inverse + zero_point) if of_channels else torch.round(x * inverse) + zero_point
    held = whole.clamp(least, most)
    inside = whole == held
    of_scale = torch.where(inside, gradient * ((held - zero_point) * scale - x) * inverse, gradient * (held - zero_point))
    of_point = torch.where(inside, 0.0, -gradient * scale)
    add = RULES[_aten.sum.dim_IntList]
    sums = (add(machine, machine.finish(item * factor), axes) for item in (of_scale, of_point))
    return machine.finish(gradient * inside), *sums


@register(_LEARNED, family="formula")
@itself_in_float64(_LEARNED, 1)
def learned_per_tensor(
    machine: Machine, gradient: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, least: int, most: int, factor: float = 1.0
) -> tuple[Tensor, ...]:
    point = (machine.operand(zero_point) + 0.5).clamp(least, most).trunc()
    axes = list(range(x.dim()))
    scale = machine.operand(scale)
    of_x, *sums = _learned_gradients(machine, gradient, x, scale, point, axes, least, most, factor, of_channels=False)
    return of_x, *(item.unsqueeze(0) for item in sums)


@register(_LEARNED_OF_CHANNELS, family="formula")
@itself_in_float64(_LEARNED_OF_CHANNELS, 1)
def learned_per_channel(
    machine: Machine, gradient: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, axis: int, least: int, most: int,
    factor: float = 1.0,
) -> tuple[Tensor, ...]:  # fmt: skip
    shape = [-1 if index == axis else 1 for index in range(x.dim())]
    point = (machine.operand(zero_point) + 0.5).clamp(least, most).floor().reshape(shape)
    axes = [index for index in range(x.dim()) if index != axis]
    wide = machine.operand(scale).reshape(shape)
    return _learned_gradients(machine, gradient, x, wide, point, axes, least, most, factor, of_channels=True)


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
