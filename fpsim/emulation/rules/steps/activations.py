"""Activations and their gradients, one elementary operation after the other."""

from __future__ import annotations

import math
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


@steps("sigmoid_backward")
def sigmoid_backward(gradient: Tensor, y: Tensor) -> Tensor:
    return gradient * (y * (1.0 - y))


@steps("tanh_backward")
def tanh_backward(gradient: Tensor, y: Tensor) -> Tensor:
    return gradient * (1.0 - y.square())


@steps("silu")
def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@steps("silu_backward")
def silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    s = x.sigmoid()
    return gradient * (s * (1.0 + x * (1.0 - s)))


def _gelu_inner(x: Tensor) -> Tensor:
    return math.sqrt(2 / math.pi) * (x + 0.044715 * (x * x * x))


@steps("gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """x * (0.5 * (1 + erf(x / sqrt 2))), or with tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)) for erf."""
    inner = _gelu_inner(x).tanh() if approximate == "tanh" else (x * math.sqrt(0.5)).erf()
    return x * (0.5 * (1.0 + inner))


@steps("gelu_backward")
def gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        y = _gelu_inner(x).tanh()
        slope = (1.0 - y * y) * (math.sqrt(2 / math.pi) * (1.0 + 3 * 0.044715 * (x * x)))
        return gradient * (0.5 * (1.0 + y) + (0.5 * x) * slope)
    area = 0.5 * (1.0 + (x * math.sqrt(0.5)).erf())
    density = ((x * x) * -0.5).exp() * (1 / math.sqrt(2 * math.pi))
    return gradient * (area + x * density)


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) that does not overflow."""
    return x.clamp(min=0.0) + (-x.abs()).exp().log1p()


@steps("softplus")
def softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    scaled = x * float(beta) if beta != 1 else x
    smooth = scaled.exp().log1p()
    return torch.where(scaled > threshold, x, smooth / float(beta) if beta != 1 else smooth)


@steps("softplus_backward")
def softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    scaled = x * float(beta) if beta != 1 else x
    return torch.where(scaled > threshold, gradient, gradient * scaled.sigmoid())


@steps("mish")
def mish(x: Tensor) -> Tensor:
    return x * _softplus(x).tanh()


@steps("mish_backward")
def mish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    t, s = _softplus(x).tanh(), x.sigmoid()
    return gradient * (t + (x * s) * (1.0 - t * t))


@steps("elu")
def elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    scaled = x * float(input_scale) if input_scale != 1 else x
    negative = scaled.expm1() * (float(alpha) * float(scale)) if alpha * scale != 1 else scaled.expm1()
    return torch.where(x > 0, x * float(scale) if scale != 1 else x, negative)


@steps("celu")
def celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return elu(x, alpha, 1, 1 / alpha)


@steps("elu_backward")
def elu_backward(
    gradient: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, self_or_result: Tensor
) -> Tensor:
    x = self_or_result
    positive = gradient * float(scale) if scale != 1 else gradient
    if is_result:
        slope = (x + float(alpha) * float(scale)) * float(input_scale)
    else:
        slope = (x * float(input_scale)).exp() * (float(input_scale) * float(alpha) * float(scale))
    return torch.where(x <= 0, gradient * slope, positive)


@steps("log_sigmoid_forward")
def log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    small = (-x.abs()).exp()
    return x.clamp(max=0.0) - small.log1p(), small


@steps("log_sigmoid_backward")
def log_sigmoid_backward(gradient: Tensor, x: Tensor, buffer: Tensor) -> Tensor:
    """The gradient times sigmoid(-x), made of exp(-|x|)."""
    small = (-x.abs()).exp()
    fraction = small / (1.0 + small)
    return gradient * torch.where(x < 0, 1.0 - fraction, fraction)


@steps("hardsigmoid")
def hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3.0).clamp(0.0, 6.0) / 6.0


@steps("hardsigmoid_backward")
def hardsigmoid_backward(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.where((x > -3.0) & (x < 3.0), gradient * (1.0 / 6.0), 0.0)


@steps("hardswish")
def hardswish(x: Tensor) -> Tensor:
    return x * ((x + 3.0).clamp(0.0, 6.0) / 6.0)


@steps("hardswish_backward")
def hardswish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    middle = torch.where(x <= 3.0, gradient * (x / 3.0 + 0.5), gradient)
    return torch.where(x < -3.0, 0.0, middle)


@steps("glu")
def glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


@steps("glu_backward")
def glu_backward(gradient: Tensor, x: Tensor, dim: int) -> Tensor:
    a, b = x.chunk(2, dim)
    s = b.sigmoid()
    left = gradient * s
    return torch.cat([left, (left * a) * (1.0 - s)], dim)


@steps("glu_jvp")
def glu_jvp(result: Tensor, x: Tensor, change: Tensor, dim: int) -> Tensor:
    s = x.chunk(2, dim)[1].sigmoid()
    left, right = change.chunk(2, dim)
    return left * s + (result * (1.0 - s)) * right


@steps("glu_backward_jvp")
def glu_backward_jvp(
    result: Tensor, gradient: Tensor, x: Tensor, gradient_change: Tensor, change: Tensor, dim: int
) -> Tensor:
    a, b = x.chunk(2, dim)
    left, right = change.chunk(2, dim)
    s = b.sigmoid()
    rest = 1.0 - s
    slope = s * rest
    second = (gradient_change * a + gradient * left) + ((gradient * a) * (rest - s)) * right
    return torch.cat([gradient_change * s + (gradient * slope) * right, second * slope], dim)


@steps("_prelu_kernel_backward")
def prelu_backward(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(x > 0, gradient, weight * gradient), torch.where(x > 0, 0.0, x * gradient)


@steps("rrelu_with_noise_backward")
def rrelu_backward(
    gradient: Tensor, x: Tensor, noise: Tensor, lower: Any, upper: Any, training: bool, self_is_result: bool
) -> Tensor:
    if training and upper - lower > 1e-6:
        return gradient * noise
    return torch.where(x > 0, gradient, gradient * ((float(lower) + float(upper)) / 2))
