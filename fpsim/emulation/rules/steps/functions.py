"""Functions that are made of others: elementwise, one elementary operation after the other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


def _as_tensor(x: Any, like: Any) -> Tensor:
    if isinstance(x, Tensor):
        return x
    return torch.full((), float(x), dtype=like.dtype if like.is_floating_point() else torch.get_default_dtype())


@steps("logit")
def logit(x: Tensor, eps: float | None = None) -> Tensor:
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    y = x if eps is None else torch.where(x < eps, eps, x.clamp(max=1.0 - eps))
    return (y / (1.0 - y)).log()


@steps("logit_backward")
def logit_backward(gradient: Tensor, x: Tensor, eps: float | None = None) -> Tensor:
    low, high = (0.0, 1.0) if eps is None else (eps, 1.0 - eps)
    outside = math.nan if eps is None else 0.0
    return torch.where((x >= low) & (x <= high), gradient / (x * (1.0 - x)), outside)


def _product_with_log(x: Any, y: Any, logarithm: Callable[[Tensor], Tensor]) -> Tensor:
    x, y = _as_tensor(x, y), _as_tensor(y, x)
    return torch.where(y.isnan(), math.nan, torch.where(x == 0, 0.0, x * logarithm(y)))


@steps("xlogy")
def xlogy(self: Any, other: Any) -> Tensor:
    return _product_with_log(self, other, torch.log)


@steps("special_xlog1py")
def xlog1py(self: Any, other: Any) -> Tensor:
    return _product_with_log(self, other, torch.log1p)


@steps("special_entr")
def entropy(x: Tensor) -> Tensor:
    inside = torch.where(x > 0, -x * x.log(), torch.where(x == 0, 0.0, -math.inf))
    return torch.where(x.isnan(), x, inside)


def _log_of_sum(a: Tensor, b: Tensor, rest: Callable[[Tensor], Tensor]) -> Tensor:
    high, low = torch.maximum(a, b), torch.minimum(a, b)
    same = (a == b) & a.isinf()  # their difference would be NaN
    return torch.where(same, a, high + rest(low - high))


@steps("logaddexp")
def logaddexp(a: Tensor, b: Tensor) -> Tensor:
    return _log_of_sum(a, b, lambda difference: difference.exp().log1p())


@steps("logaddexp2")
def logaddexp2(a: Tensor, b: Tensor) -> Tensor:
    return _log_of_sum(a, b, lambda difference: difference.exp2().log1p() * (1 / math.log(2)))


@steps("sinc")
def sinc(x: Tensor) -> Tensor:
    scaled = x * math.pi
    return torch.where(x == 0, 1.0, scaled.sin() / scaled)


@steps("mvlgamma")
def mvlgamma(x: Tensor, p: int) -> Tensor:
    total = torch.stack([x - j / 2 if j else x for j in range(p)], -1).lgamma().sum(-1)
    return total + p * (p - 1) / 4 * math.log(math.pi)


@steps("linalg_cross")
def cross(a: Tensor, b: Tensor, *, dim: int = -1) -> Tensor:
    a, b = torch.broadcast_tensors(a, b)
    return a.roll(-1, dim) * b.roll(1, dim) - a.roll(1, dim) * b.roll(-1, dim)


@steps("round")
def round_to_decimals(x: Tensor, *, decimals: int = 0) -> Tensor:
    if decimals == 0:
        return NotImplemented
    scale = 10.0 ** abs(decimals)
    return (x * scale).round() / scale if decimals > 0 else (x / scale).round() * scale


# Orthogonal polynomials, by their recurrences


def _recurrence(second: Callable[[Tensor], Tensor], third: Callable[..., Tensor], shifted: bool = False) -> Any:
    """Steps of the polynomials p0 = 1, p1 = second(x), p(k+1) = third(k, x, pk, p(k-1)); 0 for a negative degree."""

    def polynomial(x: Any, n: Any) -> Tensor:
        if isinstance(n, Tensor) and n.dtype is torch.float64:
            return NotImplemented
        x, degree = _as_tensor(x, n), torch.as_tensor(n)
        degree = degree.double().trunc()
        x = 2.0 * x - 1.0 if shifted else x
        x, degree = torch.broadcast_tensors(x, degree)
        result = torch.where(degree == 0, 1.0, torch.zeros_like(x))
        below, here = torch.ones_like(x), second(x)
        for k in range(1, int(degree.max().item()) + 1 if degree.numel() else 0):
            result = torch.where(degree == k, here, result)
            below, here = here, third(float(k), x, here, below)
        return result

    return polynomial


def _chebyshev(k: float, x: Tensor, here: Tensor, below: Tensor) -> Tensor:
    return (2.0 * x) * here - below


_CHEBYSHEV: dict[str, Callable[[Tensor], Tensor]] = {
    "t": lambda x: x,
    "u": lambda x: 2.0 * x,
    "v": lambda x: 2.0 * x - 1.0,
    "w": lambda x: 2.0 * x + 1.0,
}
for _kind, _second in _CHEBYSHEV.items():
    steps(f"special_chebyshev_polynomial_{_kind}")(_recurrence(_second, _chebyshev))
    steps(f"special_shifted_chebyshev_polynomial_{_kind}")(_recurrence(_second, _chebyshev, shifted=True))
steps("special_hermite_polynomial_h")(
    _recurrence(lambda x: 2.0 * x, lambda k, x, here, below: (2.0 * x) * here - (2.0 * k) * below)
)
steps("special_hermite_polynomial_he")(_recurrence(lambda x: x, lambda k, x, here, below: x * here - k * below))
steps("special_laguerre_polynomial_l")(
    _recurrence(lambda x: 1.0 - x, lambda k, x, here, below: ((2.0 * k + 1.0 - x) * here - k * below) / (k + 1.0))
)
steps("special_legendre_polynomial_p")(
    _recurrence(lambda x: x, lambda k, x, here, below: ((2.0 * k + 1.0) * x * here - k * below) / (k + 1.0))
)
