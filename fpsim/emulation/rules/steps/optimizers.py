"""Fused optimizer kernels as what they fuse: torch's loop over parameters, one elementary operation after the other.

A decay is added to its gradient as there, by `add` with a factor: that is how observers know it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


def _gradient(gradient: Tensor, maximize: bool, grad_scale: Tensor | None) -> Tensor:
    gradient = gradient if grad_scale is None else gradient / grad_scale
    return -gradient if maximize else gradient


def _unless_found(step: Callable[..., None]) -> Callable[..., None]:
    """What does nothing where the gradients were not finite."""

    @wraps(step)
    def guarded(*args: Any, found_inf: Tensor | None = None, **kwargs: Any) -> None:
        if found_inf is None or found_inf.item() != 1:
            step(*args, **kwargs)

    return guarded


@steps("_fused_sgd_")
@_unless_found
def sgd(
    params: list[Tensor], grads: list[Tensor], momentum_buffers: list[Tensor], *, weight_decay: float, momentum: float,
    lr: Any, dampening: float, nesterov: bool, maximize: bool, is_first_step: bool, grad_scale: Tensor | None = None,
) -> None:  # fmt: skip
    for index, param in enumerate(params):
        gradient = _gradient(grads[index], maximize, grad_scale)
        if weight_decay:
            gradient = torch.add(gradient, param, alpha=weight_decay)
        if momentum:
            buffer = momentum_buffers[index]
            if is_first_step:
                buffer.copy_(gradient)
            else:
                buffer.copy_(buffer * momentum + gradient * (1.0 - dampening))
            gradient = gradient + momentum * buffer if nesterov else buffer
        param.sub_(gradient * float(lr))


def _adam(decoupled: bool) -> Any:
    @_unless_found
    def adam(
        params: list[Tensor], grads: list[Tensor], exp_avgs: list[Tensor], exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor], state_steps: list[Tensor], *, lr: Any, beta1: float, beta2: float,
        weight_decay: float, eps: float, amsgrad: bool, maximize: bool, grad_scale: Tensor | None = None,
    ) -> None:  # fmt: skip
        rate = float(lr)
        for index, param in enumerate(params):
            step = float(state_steps[index].item())
            gradient = _gradient(grads[index], maximize, grad_scale)
            if weight_decay and decoupled:
                param.mul_(1.0 - rate * weight_decay)
            elif weight_decay:
                gradient = torch.add(gradient, param, alpha=weight_decay)
            average, squares = exp_avgs[index], exp_avg_sqs[index]
            average.copy_(average * beta1 + gradient * (1.0 - beta1))
            squares.copy_(squares * beta2 + gradient.square() * (1.0 - beta2))
            if amsgrad:
                squares = max_exp_avg_sqs[index].copy_(torch.maximum(max_exp_avg_sqs[index], squares))
            denominator = squares.sqrt() / (1.0 - beta2**step) ** 0.5 + eps
            param.sub_(average / denominator * (rate / (1.0 - beta1**step)))

    return adam


steps("_fused_adam_")(_adam(False))
steps("_fused_adamw_")(_adam(True))


@steps("_fused_adagrad_")
@_unless_found
def adagrad(
    params: list[Tensor], grads: list[Tensor], state_sums: list[Tensor], state_steps: list[Tensor], *, lr: Any,
    lr_decay: float, weight_decay: float, eps: float, maximize: bool, grad_scale: Tensor | None = None,
) -> None:  # fmt: skip
    for index, param in enumerate(params):
        rate = float(lr) / (1.0 + (float(state_steps[index].item()) - 1.0) * lr_decay)
        gradient = _gradient(grads[index], maximize, grad_scale)
        if weight_decay:
            gradient = torch.add(gradient, param, alpha=weight_decay)
        total = state_sums[index]
        total.copy_(total + gradient.square())
        param.sub_(gradient / (total.sqrt() + eps) * rate)
