"""Rows of elementwise operations: arithmetic by the product rule, functions by the range of their derivative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from fpsim.arrays.rounding import round as round_to
from fpsim.emulation.certification.derivatives import GELU, RANGES, Range, Smooth, gelu_range, reciprocal
from fpsim.emulation.certification.products import bilinear
from fpsim.emulation.certification.segments import is_segment, quotients
from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, diagonal, diagonal_over, linear, upwards
from fpsim.emulation.certification.table import Call, LibraryArithmetic, free, register, rounded
from fpsim.emulation.machine.limits import in_fp32

_aten = torch.ops.aten


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
    low, high = reciprocal(right.low, right.high)
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


# Functions


_SELECTING = frozenset(("relu", "abs"))


def _function_slopes(function: Range) -> Callable[[Call], Sequence[Slope]]:
    def slopes(call: Call) -> Sequence[Slope]:
        if len(call.operands) != 1:
            raise call.refuse("a parameter that is a tensor")
        operand = call.operands[0]

        def extent() -> tuple[torch.Tensor, torch.Tensor]:
            least, most = function(operand.low, operand.high, *call.args[1:], **call.kwargs)
            return quotients(call, least, most) if is_segment(operand) else (least, most)

        smooth = GELU[call.kwargs.get("approximate", "none")] if function is gelu_range else function
        if not isinstance(smooth, Smooth):
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
