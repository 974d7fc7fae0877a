"""The ranges of elementwise functions' derivatives over intervals [low, high], float64's own errors included."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fpsim.emulation.certification.slopes import EPSILON, raised, upwards

Range = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Smooth:
    """Any derivative in [least, most] whose own derivative is at most `second` in magnitude."""

    derivative: Callable[[torch.Tensor], torch.Tensor]
    second: float
    least: float
    most: float

    def __call__(self, low: torch.Tensor, high: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        middle = self.derivative((low + high) / 2)
        reach = upwards((high - low) * (self.second / 2)) + 2.0**-44
        return (middle - reach).clamp(self.least, self.most), (middle + reach).clamp(self.least, self.most)

    def moved(self, value: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        """A bound on how far the function moves within t of the value, which float32 holds.

        The derivatives here are of order 1, and float32's own error in them is below 2^-18.
        """
        size = self.derivative(value.float()).abs_().double().add_(t, alpha=self.second * (1 + EPSILON)).add_(2.0**-17)
        return raised(size.clamp_(max=max(-self.least, self.most)).mul_(t))


def _steps(*parts: tuple[float, float, float]) -> Range:
    """A continuous function of straight parts (from, to, slope): the slopes of the parts that [low, high] meets."""

    def over(low: torch.Tensor, high: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        least, most = torch.full_like(low, math.inf), torch.full_like(low, -math.inf)
        for start, end, slope in parts:
            met = (high > start) & (low < end) | (low == high) & (low >= start) & (low < end)
            least = torch.where(met & (slope < least), slope, least)
            most = torch.where(met & (slope > most), slope, most)
        unknown = low.isnan() | high.isnan()
        return torch.where(unknown, torch.nan, least), torch.where(unknown, torch.nan, most)

    return over


def _monotone(derivative: Callable[[torch.Tensor], torch.Tensor], defined: Callable[[torch.Tensor], torch.Tensor]) -> Range:
    """A derivative that rises or falls throughout; NaN (unbounded) where the interval leaves the domain."""

    def over(low: torch.Tensor, high: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
        ends = torch.stack([derivative(low), derivative(high)])
        outside = ~defined(low)
        slack = ends.abs().amax(0) * 2.0**-44
        return tuple(torch.where(outside, torch.nan, end) for end in (ends.amin(0) - slack, ends.amax(0) + slack))  # type: ignore[return-value]

    return over


def _everywhere(x: torch.Tensor) -> torch.Tensor:
    return x == x


def _positive(x: torch.Tensor) -> torch.Tensor:
    return x > 0


def reciprocal(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The range of 1/y; everything where the interval holds 0."""
    holds = (low <= 0) & (high >= 0)
    a, b = 1 / low, 1 / high
    least, most = torch.minimum(a, b), torch.maximum(a, b)
    least, most = least - EPSILON * least.abs(), most + EPSILON * most.abs()
    return torch.where(holds, -torch.inf, least), torch.where(holds, torch.inf, most)


_SQRT2, _NORMAL = math.sqrt(2.0), 1 / math.sqrt(2 * math.pi)
_TANH = math.sqrt(2 / math.pi), 0.044715


def _gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.erfc(-x / _SQRT2) + x * _NORMAL * torch.exp(-x * x / 2)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    scale, cubic = _TANH
    x = x.clamp(-1024.0, 1024.0)  # beyond that the tanh is 1 and the slope constant, and no power overflows
    t = torch.tanh(scale * (x + cubic * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * cubic * x * x)


def _silu(x: torch.Tensor) -> torch.Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


# |gelu''| = phi(x) |2 - x^2| <= 2 phi(0) < 0.8; the tanh form stays below 0.85 and its slopes within (-0.14, 1.14).
GELU = {"none": Smooth(_gelu, 0.8, -0.13, 1.13), "tanh": Smooth(_gelu_tanh, 0.85, -0.14, 1.14)}


def gelu_range(low: torch.Tensor, high: torch.Tensor, approximate: str = "none") -> tuple[torch.Tensor, torch.Tensor]:
    return GELU[approximate](low, high)


def _clamp_range(low: torch.Tensor, high: torch.Tensor, min: Any = None, max: Any = None) -> Any:
    least = -math.inf if min is None else float(min)
    most = math.inf if max is None else float(max)
    return _steps((-math.inf, least, 0.0), (least, most, 1.0), (most, math.inf, 0.0))(low, high)


def _leaky_range(low: torch.Tensor, high: torch.Tensor, negative_slope: float = 0.01) -> Any:
    return _steps((-math.inf, 0.0, negative_slope), (0.0, math.inf, 1.0))(low, high)


def _hardswish_range(low: torch.Tensor, high: torch.Tensor) -> Any:
    """0 below -3, (2 x + 3) / 6 between, 1 above 3."""
    inner_low, inner_high = (2 * low.clamp(-3, 3) + 3) / 6 - 2.0**-44, (2 * high.clamp(-3, 3) + 3) / 6 + 2.0**-44
    least = torch.where(high <= -3, 0.0, torch.where(low >= 3, 1.0, torch.where(low < -3, inner_low.clamp(max=0), inner_low)))
    most = torch.where(high <= -3, 0.0, torch.where(low >= 3, 1.0, torch.where(low < -3, inner_high.clamp(min=0), inner_high)))
    return least, most


def _elu_range(low: torch.Tensor, high: torch.Tensor, alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Any:
    """alpha exp(c x) c s below 0 (rising), s above."""
    below = [alpha * input_scale * scale * torch.exp(input_scale * end.clamp(max=0)) for end in (low, high)]
    ends = torch.stack([torch.where(low < 0, below[0], scale), torch.where(low < 0, below[1], scale)])
    least, most = ends.amin(0), ends.amax(0)
    above = high > 0
    return (
        torch.where(above, least.clamp(max=scale), least) - 2.0**-44 * scale,
        torch.where(above, most.clamp(min=scale), most) + 2.0**-44 * scale,
    )


def _power_range(low: torch.Tensor, high: torch.Tensor, exponent: Any) -> Any:
    """n x^(n - 1) for whole n >= 1: its extremes are at the ends, or 0 inside."""
    if not float(exponent).is_integer() or exponent < 1:
        return _monotone(lambda x: exponent * x ** (exponent - 1), _positive)(low, high)
    a, b = exponent * low ** (exponent - 1), exponent * high ** (exponent - 1)
    least, most = torch.minimum(a, b), torch.maximum(a, b)
    holds = (low <= 0) & (high >= 0) & (exponent > 1)
    slack = 2.0**-44 * torch.maximum(least.abs(), most.abs())
    return torch.where(holds, least.clamp(max=0), least) - slack, torch.where(holds, most.clamp(min=0), most) + slack


def _inverse_range(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-1 / x^2: minus the square of an interval that holds no 0, or of everything."""
    ends = torch.stack([end * end for end in reciprocal(low, high)])
    return -ends.amax(0) * (1 + 4 * EPSILON), -ends.amin(0) * (1 - 4 * EPSILON)


#: The range of the derivative over [low, high].
RANGES: dict[str, Range] = {
    "relu": _steps((-math.inf, 0.0, 0.0), (0.0, math.inf, 1.0)),
    "abs": _steps((-math.inf, 0.0, -1.0), (0.0, math.inf, 1.0)),
    "hardtanh": lambda low, high, min_val=-1.0, max_val=1.0: _clamp_range(low, high, min_val, max_val),
    "clamp": _clamp_range,
    "clamp_min": lambda low, high, min: _clamp_range(low, high, min),
    "clamp_max": lambda low, high, max: _clamp_range(low, high, None, max),
    "leaky_relu": _leaky_range,
    "hardsigmoid": _steps((-math.inf, -3.0, 0.0), (-3.0, 3.0, 1 / 6), (3.0, math.inf, 0.0)),
    "hardswish": _hardswish_range,
    "elu": _elu_range,
    "sigmoid": Smooth(lambda x: torch.sigmoid(x) * torch.sigmoid(-x), 0.0963, 0.0, 0.25),
    "tanh": Smooth(lambda x: 1 - torch.tanh(x) ** 2, 0.77, 0.0, 1.0),
    "erf": Smooth(lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x), 0.97, 0.0, 1.1284),
    "sin": Smooth(torch.cos, 1.0, -1.0, 1.0),
    "cos": Smooth(lambda x: -torch.sin(x), 1.0, -1.0, 1.0),
    "gelu": gelu_range,
    "silu": Smooth(_silu, 0.5, -0.1, 1.1),
    "exp": _monotone(torch.exp, _everywhere),
    "log": _monotone(torch.reciprocal, _positive),
    "sqrt": _monotone(lambda x: 0.5 / torch.sqrt(x), _positive),
    "rsqrt": _monotone(lambda x: -0.5 * x**-1.5, _positive),
    "reciprocal": _inverse_range,
    "square": lambda low, high: _power_range(low, high, 2.0),
    "pow": _power_range,
}
