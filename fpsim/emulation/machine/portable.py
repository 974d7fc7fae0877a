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
from fpsim.backend.numba import formulas, functions
from fpsim.emulation.direct import direct
from fpsim.emulation.machine.marks import array_of, pointer_to

Tensor = torch.Tensor
_aten = torch.ops.aten


def _own(name: str) -> Callable[..., Tensor]:
    def function(x: Tensor) -> Tensor:
        source, out = x.detach().contiguous(), torch.empty_like(x)
        values = out if out.is_contiguous() else torch.empty(x.shape, dtype=x.dtype)
        functions.apply(name, array_of(source).reshape(-1), array_of(values).reshape(-1))
        return out if values is out else out.copy_(values)

    return function


def _formula(name: str) -> Callable[..., Tensor]:
    """A formula of tensors, which broadcast together, and then of numbers."""
    count = formulas.operands_of(name)

    def function(*args: Any) -> Tensor:
        tensors, numbers = args[:count], args[count:]
        first, last = tensors[0], tensors[-1]
        alike = first.is_contiguous() and (first is last or (last.shape == first.shape and last.is_contiguous()))
        out = torch.empty_like(first) if count == 1 or alike else first + last  # in torch's own layout
        values = out if alike else torch.empty(out.shape, dtype=out.dtype)
        if not alike:
            tensors = tuple(tensor.contiguous() for tensor in torch.broadcast_tensors(*tensors))
        formulas.apply(name, out.numel(), *map(pointer_to, tensors), pointer_to(values), *map(float, numbers))
        return out if values is out else out.copy_(values)

    return function


FUNCTIONS = {name: _own(name) for name in elementary.NAMES}
exp, exp2, expm1, log, log1p = (FUNCTIONS[name] for name in ("exp", "exp2", "expm1", "log", "log1p"))
sin, tanh, erfc, atan = (FUNCTIONS[name] for name in ("sin", "tanh", "erfc", "atan"))


def sqrt(x: Tensor) -> Tensor:
    """The correctly rounded root, which a vector library behind torch need not give."""
    with np.errstate(invalid="ignore"):
        return torch.from_numpy(np.asarray(np.sqrt(array_of(x.detach()))))


def power(base: float, count: float) -> float:
    """base^count for a whole count >= 0, by squaring: within count 2^-53 of its value."""
    result, rest = 1.0, int(count)
    while rest:
        result = result * base if rest & 1 else result
        base, rest = base * base, rest >> 1
    return result


def _tensor(x: Any) -> Tensor:
    return x.double() if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)


# Activations


_ROOT_HALF = math.sqrt(0.5)
_TWICE_ROOT = 2.0 * math.sqrt(2.0 / math.pi)
_sigmoid = _formula("logistic")  # 1 / (1 + e^-x), as the other activations have it
_exact_gelu, _tanh_gelu, _exact_gelu_backward = map(_formula, ("gelu", "gelu_tanh", "gelu_gradient"))
_scaled_softplus, _scaled_softplus_backward = map(_formula, ("softplus", "softplus_gradient"))
_scaled_elu, _scaled_elu_backward = map(_formula, ("elu", "elu_gradient"))
_log_sigmoid, _exp_below = map(_formula, ("log_sigmoid", "exp_below"))


def _gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return _tanh_gelu(x) if approximate == "tanh" else _exact_gelu(x)


def _gelu_backward(gradient: Tensor, x: Tensor, *, approximate: str = "none") -> Tensor:
    if approximate == "tanh":
        u = _TWICE_ROOT * (x + 0.044715 * (x * x * x))
        s, slope = _sigmoid(u), _TWICE_ROOT * (1.0 + 3.0 * 0.044715 * (x * x))
        return gradient * (s + x * (s * _sigmoid(-u)) * slope)
    return _exact_gelu_backward(gradient, x)


def _softplus(x: Tensor, beta: float = 1, threshold: float = 20) -> Tensor:
    return _scaled_softplus(x, beta, threshold)


def _elu(x: Tensor, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Tensor:
    return _scaled_elu(x, scale, alpha * scale, input_scale)


def _celu(x: Tensor, alpha: float = 1.0) -> Tensor:
    return _elu(x, alpha, 1, 1 / alpha)


def _elu_backward(
    gradient: Tensor, alpha: float, scale: float, input_scale: float, is_result: bool, self_or_result: Tensor
) -> Tensor:
    x, below = self_or_result, alpha * scale
    if is_result:
        return torch.where(x > 0, gradient * scale, gradient * (input_scale * (x + below)))
    return _scaled_elu_backward(gradient, x, scale, input_scale * below, input_scale)


def _log_sigmoid_forward(x: Tensor) -> tuple[Tensor, Tensor]:
    return _log_sigmoid(x), _exp_below(x)


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


def _of_tensors(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The formula where one of its operands may be a number."""
    return lambda x, y: function(_tensor(x), _tensor(y))


_power_of_tensors, _power_by_number = _of_tensors(_formula("power")), _formula("power_by_number")


def _power(x: Any, exponent: Any) -> Tensor:
    if not isinstance(x, Tensor) or isinstance(exponent, Tensor):
        return _power_of_tensors(x, exponent)
    if exponent == 2:
        return x * x
    if abs(exponent) == 0.5:
        return sqrt(x) if exponent > 0 else 1.0 / sqrt(x)  # other zeros and infinities than C's pow
    return _power_by_number(x, exponent)


# Losses, element by element


_cross_entropy, _cross_entropy_of_logit = map(_formula, ("cross_entropy", "cross_entropy_of_logit"))


def _binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = 0) -> Tensor:
    probabilities = array_of(x.detach())
    if not ((probabilities >= 0.0) & (probabilities <= 1.0)).all():
        raise RuntimeError("all elements of input should be between 0 and 1")
    losses = _cross_entropy(x, target)
    return losses if weight is None else losses * weight


def _binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = 0
) -> Tensor:
    if pos_weight is None:
        losses = _cross_entropy_of_logit(x, target)
    else:
        losses = (1.0 - target) * x - ((pos_weight - 1.0) * target + 1.0) * _log_sigmoid(x)
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
    "silu": _formula("silu"),
    "silu_backward": _formula("silu_gradient"),
    "mish": _formula("mish"),
    "mish_backward": _formula("mish_gradient"),
    "softplus": _softplus,
    "softplus_backward": _scaled_softplus_backward,
    "elu": _elu,
    "elu_backward": _elu_backward,
    "celu": _celu,
    "log_sigmoid_forward": _log_sigmoid_forward,
    "glu": _glu,
    "glu_backward": _glu_backward,
    "glu_jvp": _glu_jvp,
    "glu_backward_jvp": _glu_backward_jvp,
    "logit": _logit,
    "xlogy": _of_tensors(_formula("x_log_y")),
    "special_xlog1py": _of_tensors(_formula("x_log1p_y")),
    "special_entr": _formula("entropy"),
    "logaddexp": _formula("log_add"),
    "logaddexp2": _formula("log_add2"),
    "sinc": _formula("sinc"),
    "hypot": _formula("hypotenuse"),
    "atan2": _formula("angle"),
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
