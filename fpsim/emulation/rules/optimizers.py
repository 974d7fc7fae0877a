"""Optimizer kernels: `_foreach_*` are their elementwise rules in a loop; fused ones compute in float64, round once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.marks import module_of, set_module
from fpsim.emulation.machine.meaning import mark_fused
from fpsim.emulation.machine.portable import power, sqrt
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.schemas import is_out, names, overloads

_aten = torch.ops.aten

#: `_foreach_<name>` is `<name>` for each element of the lists.
FOREACH = names(
    """
    abs acos add addcdiv addcmul asin atan ceil clamp_max clamp_min cos cosh div erf erfc exp expm1 floor frac lerp
    lgamma log log10 log1p log2 maximum minimum mul neg pow reciprocal round rsqrt sigmoid sign sin sinh sqrt sub
    tan tanh trunc zero copy norm max
    """
)

#: What takes a number in the place of these, which take tensors only.
_BOUNDS = {"maximum": "clamp_min", "minimum": "clamp_max"}
_ALIASES = {"clamp_max": "minimum", "clamp_min": "maximum"}


def _single(rules: dict[Any, Rule], name: str, in_place: bool, sample: Any) -> Rule:
    """The rule of one element: by name, and by whether the second operand is a tensor."""
    suffix = "_" if in_place else ""
    if name == "norm":
        return rules[_aten.linalg_vector_norm.default]
    if name in _BOUNDS and not isinstance(sample, Tensor):
        name = _BOUNDS[name]
    if name in _ALIASES and isinstance(sample, Tensor):
        name = _ALIASES[name]
        rule = rules[getattr(_aten, name).default]
        return (lambda machine, x, *rest: machine.write(x, rule(machine, x, *rest))) if in_place else rule
    if in_place and not hasattr(_aten, name + suffix):  # maximum and minimum have no in-place form
        functional = _single(rules, name, False, sample)
        return lambda machine, x, *rest: machine.write(x, functional(machine, x, *rest))
    packet = getattr(_aten, name + suffix)
    if name in ("clamp_min", "clamp_max") and not isinstance(sample, Tensor):
        return rules[packet.default]
    if name == "copy":
        return rules[_aten.copy_.default]
    if name == "pow":
        overload = "Tensor_Tensor" if isinstance(sample, Tensor) else "Tensor_Scalar"
        if in_place:
            overload = "Tensor" if isinstance(sample, Tensor) else "Scalar"
        return rules[getattr(packet, overload)]
    for overload in ("Tensor", "default") if isinstance(sample, Tensor) else ("Scalar", "default", "Tensor"):
        op = getattr(packet, overload, None)
        if op in rules:
            return rules[op]
    raise KeyError(name)


def _foreach_rule(name: str, in_place: bool) -> Rule:
    keyword = {"addcdiv": "value", "addcmul": "value"}.get(name)

    def foreach(machine: Machine, tensors: list[Tensor], *rest: Any, **kwargs: Any) -> Any:
        if "scalars" in kwargs:
            rest = (*rest, kwargs.pop("scalars"))
        if "ord" in kwargs:
            rest = (kwargs.pop("ord"), *rest)
        results = []
        for index, tensor in enumerate(tensors):
            values = [item[index] if isinstance(item, (list, tuple)) else item for item in rest]
            if name in ("addcdiv", "addcmul") and isinstance(rest[-1], Tensor):
                values[-1] = rest[-1][index].item()
            named = dict(kwargs)
            if keyword and len(values) > 2:
                named[keyword] = values.pop()
            sample = values[0] if values else None
            machine.owner = module_of((tensor, *values))
            results.append(_single(machine.rules, name, in_place, sample)(machine, tensor, *values, **named))
            if machine.owner is not None and not in_place:
                set_module(results[-1], machine.owner)
        return None if in_place else results

    return foreach


for _name in FOREACH:
    for _suffix in ("", "_"):
        for _op in overloads(f"_foreach_{_name}{_suffix}").values():
            if not is_out(_op):
                register(_op, family="foreach")(_foreach_rule(_name, _suffix == "_"))


def _read(machine: Machine, tensor: Tensor) -> Tensor:
    """The numbers in a fresh float64 tensor."""
    return machine.operand(tensor).detach().to(torch.float64, copy=True)


def _update(machine: Machine, param: Tensor, start: Tensor, step: Tensor, decayed: MaybeTensor = None) -> None:
    """Round start - step into a parameter, or decayed - step; say what of it was meant, and which parts left no trace.

    A part left none where without it the parameter would hold the same.
    """
    told = machine.updates.told
    if told is None:
        machine.store(param, (start if decayed is None else decayed) - step)
        return
    before = param.detach().clone()
    machine.store(param, (start if decayed is None else decayed) - step)
    if decayed is None:  # without it all is the same, and without the rest the parameter is what it was
        told.append(mark_fused(before, param, start, step, start, param, before))
    else:
        parts = (machine.would_hold(param, value) for value in (start - step, decayed))
        told.append(mark_fused(before, param, start, step, decayed, *parts))


def _scale_gradient(machine: Machine, gradient: Tensor, maximize: bool, grad_scale: MaybeTensor) -> Tensor:
    value = _read(machine, gradient)
    if grad_scale is not None:
        value = value / _read(machine, grad_scale)
    return -value if maximize else value


def _register_fused(name: str) -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of a fused step, which does nothing where its gradients were not finite."""

    def decorate(rule: Rule) -> Rule:
        def fused(machine: Machine, *args: Any, found_inf: MaybeTensor = None, **kwargs: Any) -> None:
            if found_inf is None or found_inf.item() != 1:
                rule(machine, *args, **kwargs)

        for op in overloads(name).values():
            if not is_out(op):
                register(op, family="optimizer")(fused)
        return rule

    return decorate


def _adam_rule(decoupled: bool) -> Rule:
    """Adam in float64 from the stored state; exp_avg, exp_avg_sq and the parameter each rounded once."""

    def adam(
        machine: Machine, params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *, lr: float | Tensor, beta1: float, beta2: float,
        weight_decay: float, eps: float, amsgrad: bool, maximize: bool, grad_scale: MaybeTensor = None,
    ) -> None:  # fmt: skip
        rate = float(lr)
        for index, param in enumerate(params):
            machine.owner = module_of((param,))
            step = float(state_steps[index])
            gradient = _scale_gradient(machine, grads[index], maximize, grad_scale)
            value, decayed = _read(machine, param), None
            if weight_decay:
                if decoupled:
                    decayed = value * (1.0 - rate * weight_decay)
                else:
                    gradient = gradient + value * weight_decay
            average = _read(machine, exp_avgs[index]).mul_(beta1).add_(gradient * (1.0 - beta1))
            square = _read(machine, exp_avg_sqs[index]).mul_(beta2).add_((gradient * gradient).mul_(1.0 - beta2))
            largest = square
            if amsgrad:
                largest = torch.maximum(_read(machine, max_exp_avg_sqs[index]), square)
                machine.store(max_exp_avg_sqs[index], largest)
            denominator = sqrt(largest).div_(math.sqrt(1.0 - power(beta2, step))).add_(eps)
            machine.store(exp_avgs[index], average)
            machine.store(exp_avg_sqs[index], square)
            move = average.mul_(rate / (1.0 - power(beta1, step))).div_(denominator)
            _update(machine, param, value, move, decayed)

    return adam


_register_fused("_fused_adam_")(_adam_rule(False))
_register_fused("_fused_adamw_")(_adam_rule(True))


@_register_fused("_fused_sgd_")
def _fused_sgd(
    machine: Machine, params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], *, weight_decay: float,
    momentum: float, lr: float | Tensor, dampening: float, nesterov: bool, maximize: bool, is_first_step: bool,
    grad_scale: MaybeTensor = None,
) -> None:  # fmt: skip
    """SGD in float64 from the stored state; the buffer and the parameter each rounded once."""
    rate = float(lr)
    for index, param in enumerate(params):
        machine.owner = module_of((param,))
        gradient = _scale_gradient(machine, grads[index], maximize, grad_scale)
        value = _read(machine, param)
        if weight_decay:
            gradient = gradient + value * weight_decay
        if momentum:
            buffer = (
                gradient if is_first_step else _read(machine, momentum_buffers[index]) * momentum + gradient * (1.0 - dampening)
            )
            machine.store(momentum_buffers[index], buffer.clone())
            gradient = gradient + buffer * momentum if nesterov else buffer
        _update(machine, param, value, rate * gradient)


@_register_fused("_fused_adagrad_")
def _fused_adagrad(
    machine: Machine, params: list[Tensor], grads: list[Tensor], state_sums: list[Tensor], state_steps: list[Tensor], *,
    lr: float | Tensor, lr_decay: float, weight_decay: float, eps: float, maximize: bool, grad_scale: MaybeTensor = None,
) -> None:  # fmt: skip
    """Adagrad in float64 from the stored state; the sum of squares and the parameter each rounded once."""
    machine.whole()
    for index, param in enumerate(params):
        machine.owner = module_of((param,))
        rate = float(lr) / (1.0 + (float(state_steps[index]) - 1.0) * lr_decay)
        gradient = _scale_gradient(machine, grads[index], maximize, grad_scale)
        value = _read(machine, param)
        if weight_decay:
            gradient = gradient + value * weight_decay
        total = _read(machine, state_sums[index]) + gradient * gradient
        machine.write(state_sums[index], machine.finish(total.clone()))
        _update(machine, param, value, rate * gradient / (sqrt(total) + eps))
