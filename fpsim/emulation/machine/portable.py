"""torch's operations in float64 by fpsim's own elementary functions, so that their bits are the same on every machine.

Formulas are those of ATen's kernels, or better ones. Additions, multiplications, divisions and comparisons of float64
tensors are IEEE 754's in torch too, and need no function of ours. What is not here is computed by torch, whose last places
are a machine's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fpsim.arrays import elementary
from fpsim.backend.numba import functions
from fpsim.emulation.direct import direct
from fpsim.emulation.machine.marks import array_of

Tensor = torch.Tensor
_aten = torch.ops.aten


def _own(name: str) -> Callable[..., Tensor]:
    def function(x: Tensor, *numbers: float) -> Tensor:
        source, out = x.detach().contiguous(), torch.empty_like(x)
        values = out if out.is_contiguous() else torch.empty(x.shape, dtype=x.dtype)
        functions.apply(name, array_of(source).reshape(-1), array_of(values).reshape(-1), *numbers)
        return out if values is out else out.copy_(values)

    return function


FUNCTIONS = {name: _own(name) for name in elementary.NAMES}
exp, exp2, expm1, log, log1p = (FUNCTIONS[name] for name in ("exp", "exp2", "expm1", "log", "log1p"))
sin, tanh, erfc, atan = (FUNCTIONS[name] for name in ("sin", "tanh", "erfc", "atan"))


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded root, which a vector library behind torch need not give."""
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(x.detach().numpy())))


def power(base: float, count: float) -> float:
    """base^count for a whole count >= 0, by squaring: within count 2^-53 of its value."""
    result, rest = 1.0, int(count)
    while rest:
        result = result * base if rest & 1 else result
        base, rest = base * base, rest >> 1
    return result


_sigmoid = _own("logistic")  # 1 / (1 + e^-x)


def _tensor(x: Any) -> Tensor:
    return x.double() if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)


# Activations


_ROOT_HALF = math.sqrt(0.5)
_TWICE_ROOT = 2.0 * math.sqrt(2.0 / math.pi)


_exact_gelu = _own("gelu")


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """(1 + tanh u) / 2 is 1 / (1 + e^-2u)."""
    if approximate == "tanh":
        return x * _sigmoid(_TWICE_ROOT * (x + 0.044715 * (x * x * x)))
    return _exact_gelu(x)


def _gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        u = _TWICE_ROOT * (x + 0.044715 * (x * x * x))
        s, slope = _sigmoid(u), _TWICE_ROOT * (1.0 + 3.0 * 0.044715 * (x * x))
        return gradient * (s + x * (s * _sigmoid(-u)) * slope)
    density = exp(x * x * -0.5) * (_ROOT_HALF / math.sqrt(math.pi))
    return gradient * (0.5 * erfc(-x * _ROOT_HALF) + x * density)


_silu = _own("silu")


def _silu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    s = _sigmoid(x)
    return gradient * s * (1.0 + x * (1.0 - s))


def _mish(x: Tensor) -> Tensor:
    return x * tanh(log1p(exp(x)))


def _mish_backward(gradient: Tensor, x: Tensor) -> Tensor:
    s, t = _sigmoid(x), tanh(log1p(exp(x)))
    return gradient * (t + x * s * (1.0 - t * t))


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return torch.where(x * beta > threshold, x, log1p(exp(x * beta)) / beta)


def _softplus_backward(gradient: Tensor, x: Tensor, beta: float, threshold: float) -> Tensor:
    z = exp(x * beta)
    return torch.where(x * beta > threshold, gradient, gradient * z / (z + 1.0))


_scaled_elu = _own("elu")


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return _scaled_elu(x, float(scale), float(alpha * scale), float(input_scale))


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha, 1, 1 / alpha)


def _elu_backward(
    gradient: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, self_or_result: Tensor
) -> Tensor:
    x, below = self_or_result, alpha * scale
    slope = input_scale * (x + below) if is_result else input_scale * below * exp(x * input_scale)
    return torch.where(x > 0, gradient * scale, gradient * slope)


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    small = exp(-x.abs())
    return x.clamp(max=0.0) - log1p(small), small


def _glu(x: Tensor, dim: int = -1) -> Tensor:
    a, b = x.chunk(2, dim)
    return a * _sigmoid(b)


def _glu_backward(gradient: Tensor, x: Tensor, dim: int) -> Tensor:
    a, b = x.chunk(2, dim)
    s = _sigmoid(b)
    return torch.cat([gradient * s, (1.0 - s) * s * gradient * a], dim)


def _glu_jvp(result: Tensor, x: Tensor, change: Tensor, dim: int) -> Tensor:
    s = _sigmoid(x.chunk(2, dim)[1])
    left, right = change.chunk(2, dim)
    return left * s + result * (1.0 - s) * right


def _glu_backward_jvp(
    result: Tensor, gradient: Tensor, x: Tensor, gradient_change: Tensor, change: Tensor, dim: int
) -> Tensor:
    a, s = x.chunk(2, dim)[0], _sigmoid(x.chunk(2, dim)[1])
    left, right = change.chunk(2, dim)
    slope = s * (1.0 - s)
    second = gradient_change * a + gradient * left + gradient * a * (1.0 - 2.0 * s) * right
    return torch.cat([gradient_change * s + gradient * slope * right, second * slope], dim)


# Logarithms and powers of two arguments


def _logit(x: Tensor, eps: float | None = None) -> Tensor:
    z = x if eps is None else torch.where(x < eps, eps, x.clamp(max=1.0 - eps))
    return log(z / (1.0 - z))


def _x_times(logarithm: Callable[[Tensor], Tensor]) -> Callable[[Any, Any], Tensor]:
    """x * logarithm(y), 0 where x is 0, NaN where y is."""

    def function(x: Any, y: Any) -> Tensor:
        x, y = _tensor(x), _tensor(y)
        product = x * logarithm(y)
        return torch.where((x == 0) & ~y.isnan(), torch.zeros_like(product), product)

    return function


def _entropy(x: Tensor) -> Tensor:
    lowest = torch.full_like(x, -math.inf)
    return torch.where(x.isnan(), x, torch.where(x > 0, -x * log(x), torch.where(x == 0, torch.zeros_like(x), lowest)))


def _log_add(power: Callable[[Tensor], Tensor], factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    def function(x: Tensor, y: Tensor) -> Tensor:
        largest = torch.maximum(x, y)
        summed = largest + log1p(power(-(x - y).abs())) * factor
        return torch.where(x.isinf() & (x == y), x, summed)

    return function


def _sinc(x: Tensor) -> Tensor:
    turned = math.pi * x
    return torch.where(x == 0, torch.ones_like(x), sin(turned) / turned)


def _hypot(x: Tensor, y: Tensor) -> Tensor:
    """Squares of float32 numbers are exact in float64 and do not overflow."""
    return torch.where(x.isinf() | y.isinf(), math.inf, sqrt(x * x + y * y))


def _atan2(y: Tensor, x: Tensor) -> Tensor:
    y, x = torch.broadcast_tensors(y, x)
    ratio = y.abs() / x.abs()
    ratio = torch.where(y == 0, torch.where(x.isnan(), x, 0.0), torch.where(y.isinf() & x.isinf(), 1.0, ratio))
    angle = atan(ratio)
    return torch.where(x.signbit(), math.pi - (angle - 1.2246467991473532e-16), angle).copysign(y)


def _power(x: Any, exponent: Any) -> Tensor:
    if isinstance(x, Tensor) and not isinstance(exponent, Tensor):
        if exponent == 2:
            return x * x
        if abs(exponent) == 0.5:
            return sqrt(x) if exponent > 0 else 1.0 / sqrt(x)  # other zeros and infinities than C's pow
    base, power = (array_of(_tensor(item).detach()) for item in (x, exponent))
    result = torch.from_numpy(functions.power(base, power))
    if base.flags.c_contiguous or result.shape != base.shape:
        return result
    return torch.empty_like(x, dtype=result.dtype).copy_(result)


# Losses, element by element


def _binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 0) -> Tensor:
    if not ((x >= 0.0) & (x <= 1.0)).all():
        raise RuntimeError("all elements of input should be between 0 and 1")
    losses = (target - 1.0) * log1p(-x).clamp(min=-100.0) - target * log(x).clamp(min=-100.0)
    return losses if weight is None else losses * weight


def _binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 0
) -> Tensor:
    logarithm = _log_sigmoid_forward(x)[0]
    factor = 1.0 if pos_weight is None else (pos_weight - 1.0) * target + 1.0
    losses = (1.0 - target) * x - factor * logarithm
    return losses if weight is None else losses * weight


def _soft_margin_loss(x: Tensor, target: Tensor, reduction: int = 0) -> Tensor:
    return log1p(exp(-target * x))


def _soft_margin_loss_backward(gradient: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    z = exp(-target * x)
    count = x.numel() if reduction == 1 else 1
    return -target * z / (z + 1.0) * gradient / count


_FORMULAS: dict[str, Callable[..., Any]] = {
    "gelu": _gelu,
    "gelu_backward": _gelu_backward,
    "silu": _silu,
    "silu_backward": _silu_backward,
    "mish": _mish,
    "mish_backward": _mish_backward,
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "elu": _elu,
    "elu_backward": _elu_backward,
    "celu": _celu,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "glu": _glu,
    "glu_backward": _glu_backward,
    "glu_jvp": _glu_jvp,
    "glu_backward_jvp": _glu_backward_jvp,
    "logit": _logit,
    "xlogy": _x_times(log),
    "special_xlog1py": _x_times(log1p),
    "special_entr": _entropy,
    "logaddexp": _log_add(exp, 1.0),
    "logaddexp2": _log_add(exp2, 1.0 / math.log(2.0)),
    "sinc": _sinc,
    "hypot": _hypot,
    "atan2": _atan2,
    "pow": _power,
    "binary_cross_entropy": _binary_cross_entropy,
    "binary_cross_entropy_with_logits": _binary_cross_entropy_with_logits,
    "soft_margin_loss": _soft_margin_loss,
    "soft_margin_loss_backward": _soft_margin_loss_backward,
}
#: Every operation that is computed by functions of fpsim's own, by its name in ATen.
PORTABLE: dict[str, Callable[..., Any]] = {**FUNCTIONS, **_FORMULAS}


def in_float64(op: torch._ops.OpOverload) -> Callable[..., Any]:
    """The operation on float64 tensors: the same on every machine where there is a way, else torch's own."""
    return PORTABLE.get(op._schema.name.removeprefix("aten::")) or direct(op)
