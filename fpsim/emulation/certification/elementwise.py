"""Rows of elementwise operations: arithmetic by the product rule, functions by the range of their derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fpsim.arrays.rounding import round as round_to
from fpsim.emulation.certification.products import bilinear
from fpsim.emulation.certification.segments import is_segment, quotients
from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, diagonal, diagonal_over, linear, raised, upwards
from fpsim.emulation.certification.table import Call, LibraryArithmetic, free, register, rounded
from fpsim.emulation.machine.limits import in_fp32

_aten = torch.ops.aten
_Range = Callable[..., tuple[torch.Tensor, torch.Tensor]]


# Arithmetic


def _constant(value: Any) -> Operand:
    """A Python number: in fp32 when it meets a tensor, and itself in the exact model."""
    emulated, exact = (torch.tensor(float(item), dtype=torch.float64) for item in (in_fp32(float(value)), value))
    return Operand(emulated, exact)


def _both(call: Call) -> tuple[Operand, Operand, list[bool]]:
    """The two sides, and which of them are operands; the others are numbers."""
    sides = [call.args[0], call.argument(1, "other")]
    kept = [isinstance(item, Operand) for item in sides]
    for item in sides:
        if isinstance(item, torch.Tensor):
            raise call.refuse("arithmetic of a floating-point tensor with integers")
    left, right = (item if isinstance(item, Operand) else _constant(item) for item in sides)
    return left, right, kept


def _alpha(call: Call) -> float:
    value = call.argument(2, "alpha", 1)
    if value not in (1, -1):
        raise call.refuse(f"alpha = {value}; certification knows additions with factors of 1 only")
    return float(value)


def _sum_slopes(sign: float) -> Callable[[Call], Sequence[Slope]]:
    def slopes(call: Call) -> Sequence[Slope]:
        left, right, kept = _both(call)
        shape = torch.broadcast_shapes(left.value.shape, right.value.shape)
        factor = sign * _alpha(call)
        plain = linear(lambda t: t.expand(shape))
        of_both = [plain, plain if factor > 0 else Slope(lambda t: -t.expand(shape), lambda t: t.expand(shape))]
        return [slope for slope, keep in zip(of_both, kept, strict=True) if keep]

    return slopes


def _product_slopes(call: Call) -> Sequence[Slope]:
    left, right, kept = _both(call)
    of_both = bilinear(left, right, torch.mul, 1)
    return [slope for slope, keep in zip(of_both, kept, strict=True) if keep]


def _quotient_slopes(call: Call) -> Sequence[Slope]:
    """x^/y^ - x/y = (x^ - x)/y - (x^/y^)(y^ - y)/y, with y anywhere in the box."""
    left, right, kept = _both(call)
    low, high = _reciprocal(right.low, right.high)
    shape = torch.broadcast_shapes(left.value.shape, right.value.shape)
    first = _expanded(diagonal(low.expand(shape), high.expand(shape)), shape)
    quotient = upwards(left.magnitude * torch.maximum(low.abs(), high.abs()))
    size = upwards(quotient * torch.maximum(low.abs(), high.abs())).expand(shape)
    assert call.result is not None
    middle = torch.where(size == torch.inf, 0.0, -(left.value / right.value / right.reference).expand(shape)).nan_to_num(0.0)
    point = left.spread is None and right.radius is None and right.spread is None
    radius = size * (64 * EPSILON) if point else size + middle.abs()
    second = Slope(lambda t: t * middle, lambda t: t * size, lambda t: t * radius)
    return [slope for slope, keep in zip([first, second], kept, strict=True) if keep]


def _expanded(slope: Slope, shape: torch.Size) -> Slope:
    radius = slope.radius
    return Slope(
        lambda t: slope.center(t.expand(shape)), lambda t: slope.size(t.expand(shape)),
        None if radius is None else lambda t: radius(t.expand(shape)), slope.terms,
    )  # fmt: skip


def _arithmetic_cost(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """One rounding; where a Python number takes part it is rounded to fp32 first, and so is the result."""
    left, right, kept = _both(call)
    if all(kept):
        return rounded(call, unit)
    assert call.result is not None
    roundoff, underflow = unit.with_scalar.roundoff, unit.with_scalar.underflow
    operand, number = (left, right) if kept[0] else (right, left)
    additive = "mul" not in call.step.op._schema.name and "div" not in call.step.op._schema.name
    relative = call.result.abs() + (number.reference.abs() if additive else 0.0)
    return upwards(relative * (4 * roundoff) + underflow * (2 + operand.magnitude))


for _name, _rule in (
    ("add", _sum_slopes(1.0)),
    ("sub", _sum_slopes(-1.0)),
    ("mul", _product_slopes),
    ("div", _quotient_slopes),
):
    for _overload in ("Tensor", "Scalar"):
        register(getattr(getattr(_aten, _name), _overload), "arithmetic", _rule, cost=_arithmetic_cost)

register(_aten.neg.default, "exact", lambda call: [Slope(torch.neg, lambda t: t.clone())], kind="exact", cost=free)


# Ranges of derivatives over [low, high]


@dataclass(frozen=True)
class _Smooth:
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


def _steps(*parts: tuple[float, float, float]) -> _Range:
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


def _monotone(derivative: Callable[[torch.Tensor], torch.Tensor], defined: Callable[[torch.Tensor], torch.Tensor]) -> _Range:
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


def _reciprocal(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
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
_GELU = {"none": _Smooth(_gelu, 0.8, -0.13, 1.13), "tanh": _Smooth(_gelu_tanh, 0.85, -0.14, 1.14)}


def _gelu_range(low: torch.Tensor, high: torch.Tensor, approximate: str = "none") -> tuple[torch.Tensor, torch.Tensor]:
    return _GELU[approximate](low, high)


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


#: The range of the derivative over [low, high].
RANGES: dict[str, _Range] = {
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
    "sigmoid": _Smooth(lambda x: torch.sigmoid(x) * torch.sigmoid(-x), 0.0963, 0.0, 0.25),
    "tanh": _Smooth(lambda x: 1 - torch.tanh(x) ** 2, 0.77, 0.0, 1.0),
    "erf": _Smooth(lambda x: 2 / math.sqrt(math.pi) * torch.exp(-x * x), 0.97, 0.0, 1.1284),
    "sin": _Smooth(torch.cos, 1.0, -1.0, 1.0),
    "cos": _Smooth(lambda x: -torch.sin(x), 1.0, -1.0, 1.0),
    "gelu": _gelu_range,
    "silu": _Smooth(_silu, 0.5, -0.1, 1.1),
    "exp": _monotone(torch.exp, _everywhere),
    "log": _monotone(torch.reciprocal, _positive),
    "sqrt": _monotone(lambda x: 0.5 / torch.sqrt(x), _positive),
    "rsqrt": _monotone(lambda x: -0.5 * x**-1.5, _positive),
    "reciprocal": lambda low, high: _inverse_range(low, high),
    "square": lambda low, high: _power_range(low, high, 2.0),
    "pow": _power_range,
}

_SELECTING = frozenset(("relu", "abs"))


def _inverse_range(low: torch.Tensor, high: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """-1 / x^2: minus the square of an interval that holds no 0, or of everything."""
    ends = torch.stack([end * end for end in _reciprocal(low, high)])
    return -ends.amax(0) * (1 + 4 * EPSILON), -ends.amin(0) * (1 - 4 * EPSILON)


def _function_slopes(function: _Range) -> Callable[[Call], Sequence[Slope]]:
    def slopes(call: Call) -> Sequence[Slope]:
        if len(call.operands) != 1:
            raise call.refuse("a parameter that is a tensor")
        operand = call.operands[0]

        def extent() -> tuple[torch.Tensor, torch.Tensor]:
            least, most = function(operand.low, operand.high, *call.args[1:], **call.kwargs)
            return quotients(call, least, most) if is_segment(operand) else (least, most)

        smooth = _GELU[call.kwargs.get("approximate", "none")] if function is _gelu_range else function
        if not isinstance(smooth, _Smooth):
            return [diagonal_over(extent)]
        slope = diagonal_over(extent)

        def forward(t: torch.Tensor) -> torch.Tensor:
            return smooth.moved(operand.value, t) if operand.surrounded_by(t) else upwards(slope.size(t))

        return [replace(slope, forward=forward)]

    return slopes


def _relu_slopes(call: Call) -> Sequence[Slope]:
    """No result differs from another by more than the largest of all."""
    (slope,) = _function_slopes(RANGES["relu"])(call)
    operand = call.operands[0]

    def forward(t: torch.Tensor) -> torch.Tensor:
        if operand.surrounded_by(t):
            # A sum between 0 and t errs by at most 2^-53 t, less than what is added to t; one below 0 is clamped.
            high = torch.add(operand.value, t, alpha=1 + 2.0**-48).clamp_(min=0.0)
            return torch.minimum(t, high, out=high)
        return torch.minimum(t, operand.high.clamp(min=0.0))

    return [replace(slope, forward=forward)]


def _function_cost(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """A function within a few units in the last place, its parameters in fp32.

    Where the usual formula cancels (gelu, hardsigmoid, hardswish) the error is one of the argument instead.
    """
    assert call.result is not None
    name = call.step.op._schema.name.removeprefix("aten::")
    parameters = [value for value in (*call.args[1:], *call.kwargs.values()) if isinstance(value, float)]
    exponent = call.args[1] if name == "pow" and len(call.args) > 1 else None
    if isinstance(exponent, (float, int)) and round_to(float(exponent), "float8_e5m2") != exponent:
        raise call.refuse(f"the exponent {exponent} has more bits than every format holds")
    roundoff = (unit.with_scalar if parameters else unit).roundoff
    size = call.result.abs()
    if name in _CANCELLING:
        size = torch.maximum(size, call.operands[0].magnitude.clamp(3.0, 16.0))
    extra = 4 * roundoff * sum(abs(value) for value in parameters if math.isfinite(value))
    return upwards(size * (2 * unit.ulps * roundoff) + unit.underflow + extra)


_CANCELLING = frozenset(("gelu", "hardsigmoid", "hardswish"))

for _name, _function in RANGES.items():
    _overload = {"pow": "Tensor_Scalar"}.get(_name, "default")
    _row = {"kind": "exact", "cost": free} if _name in _SELECTING else {"cost": _function_cost}
    _rule = _relu_slopes if _name == "relu" else _function_slopes(_function)
    register(getattr(getattr(_aten, _name), _overload), "function", _rule, **_row)  # type: ignore[arg-type]
