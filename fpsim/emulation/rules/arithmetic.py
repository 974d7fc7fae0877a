"""Addition, subtraction, multiplication, division, square root, and what is made of two products: rounded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba import passes
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.machine.writing import WORTH_A_PASS
from fpsim.emulation.registry import RULES, SHORT, Entry, Rule, Short, enter, register_functional
from fpsim.numbers.operations import odd_sum

_aten = torch.ops.aten
_FLOAT32, _FLOAT64 = torch.float32, torch.float64


def _exact_wide(machine: Machine, name: str, x: Tensor, y: Tensor) -> Tensor:
    """What in float64 one rounding in any mode is right from: products are exact, quotients have 53 >= 2p + 2 bits."""
    if name in ("add", "sub"):
        first, second = (item.numpy() for item in torch.broadcast_tensors(x.detach(), y.detach()))
        total = odd_sum(first, second if name == "add" else -second, machine.arithmetic.rounding)
        return torch.from_numpy(np.asarray(total))
    return getattr(torch, name)(x.double(), y.double())


def _promoted(machine: Machine, x: Any, y: Any) -> Any:
    """Operands that are not both float32: None if the result is not float32, else both as float32 of the format.

    One without dimensions that type promotion passes over is a number.
    """
    if torch.result_type(x, y) is not _FLOAT32:
        return None
    sides = [_number_beside(x, y), _number_beside(y, x)]
    return tuple(machine.floating(item) if isinstance(item, Tensor) else item for item in sides)


def _number_beside(item: Any, other: Any) -> Any:
    """The item; as a number where it is a tensor of no dimensions and another dtype beside a float32 tensor with some."""
    aside = isinstance(item, Tensor) and item.dim() == 0 and item.dtype is not _FLOAT32
    return item.item() if aside and isinstance(other, Tensor) and other.dim() and other.dtype is _FLOAT32 else item


#: The operations of one pass for a second operand that is a tensor, or a number; a difference adds what is negated.
_PASSES = {
    "add": (passes.ADD_SCALED, passes.ADD_FACTOR),
    "sub": (passes.ADD_SCALED, passes.ADD_FACTOR),
    "mul": (passes.MULTIPLY, passes.SCALE),
    "div": (passes.DIVIDE, passes.DIVIDE_BY_FACTOR),
}


def _finished(machine: Machine, result: Tensor) -> Tensor:
    """What was computed, in place maybe, in a leaf of autograd maybe."""
    machine.finish(result.detach() if result.requires_grad else result)
    return result


def _in_a_pass(name: str) -> Callable[..., MaybeTensor]:
    """Of large contiguous operands of one shape, or one and a number, in one pass; None for others."""
    with_tensor, with_number = _PASSES[name]

    def compute(machine: Machine, a: Tensor, b: Any, alpha: float, into: MaybeTensor) -> MaybeTensor:
        is_number = not isinstance(b, Tensor)
        if alpha != 1 and (is_number or machine.arithmetic.primitive):
            return None
        factor = machine.scalar(alpha) if alpha != 1 else b if is_number else 1.0
        factor = -factor if name == "sub" else factor
        operation, operands = (with_number, (a,)) if is_number else (with_tensor, (a, b))
        return machine.one_pass(operation, operands, factor, into)

    return compute


def _held(name: str, in_place: bool = False) -> Short:
    """Of operands that hold values of the format, and numbers: what is most frequent, and costs least.

    None where float32 does not suffice, or the operands are large and not of one shape.
    """
    function = getattr(Tensor, f"{name}_") if in_place else getattr(torch, name)
    in_a_pass = _in_a_pass(name)

    def compute(machine: Machine, a: Tensor, b: Any, alpha: float = 1) -> MaybeTensor:
        if not machine.arithmetic.fast or (alpha != 1 and machine.arithmetic.primitive):
            return None
        if in_place and machine.optimizer is not None and a.dim() == 0:  # its step count, maybe
            return None
        is_number = not isinstance(b, Tensor)
        if a.numel() >= WORTH_A_PASS or not (is_number or b.numel() < WORTH_A_PASS):
            into = a if in_place else None
            result = in_a_pass(machine, a, machine.scalar(b) if is_number else b, alpha, into)
            return result if into is None or result is None else machine.write(into, result)
        if is_number:
            b = machine.scalar_tensor(b)
        if alpha != 1:
            b = torch.mul(b, machine.scalar_tensor(alpha))  # rounded to fp32, as the sum is: no FMA
        result = function(a, b)
        return _finished(machine, result) if in_place else machine.finish(result)

    return compute


def _arithmetic(name: str) -> Callable[..., Tensor]:
    function = getattr(torch, name)
    held, in_a_pass = _held(name), _in_a_pass(name)

    def rule(machine: Machine, a: Any, b: Any, alpha: float = 1, into: MaybeTensor = None) -> Tensor:
        if into is None and machine.holds(a) and (not isinstance(b, Tensor) or machine.holds(b)):
            result = held(machine, a, b, alpha)
            if result is not None:
                return result
        fast = machine.arithmetic.fast
        a_is_scalar, b_is_scalar = not isinstance(a, Tensor), not isinstance(b, Tensor)
        a = a if a_is_scalar else machine.operand(a)
        b = b if b_is_scalar else machine.operand(b)
        if not (a_is_scalar or a.dtype is _FLOAT32) or not (b_is_scalar or b.dtype is _FLOAT32):
            if name == "sub" and torch.bool in {getattr(a, "dtype", None), getattr(b, "dtype", None)}:
                return function(a, b)  # torch's own error
            promoted = _promoted(machine, a, b)
            if promoted is None:
                if name == "div" and not torch.result_type(a, b).is_floating_point:  # of integers: float32 all the same
                    return machine.finish(torch.div(*(x.double() if isinstance(x, Tensor) else x for x in (a, b))))
                return function(a, b) if alpha == 1 else function(a, b, alpha=alpha)
            a, b = promoted
            a_is_scalar, b_is_scalar = not isinstance(a, Tensor), not isinstance(b, Tensor)
        a = machine.scalar(a) if a_is_scalar else a
        b = machine.scalar(b) if b_is_scalar else b
        if fast and not a_is_scalar:
            result = in_a_pass(machine, a, b, alpha, into)
            if result is not None:
                return result
        if alpha != 1:
            return _scaled(machine, function, a, b, machine.scalar(alpha))
        if fast:
            return machine.finish(function(a, b))
        if a_is_scalar or b_is_scalar:
            return _with_scalar(machine, function, a, b)
        return machine.finish(_exact_wide(machine, name, a, b))

    return rule


def _with_scalar(machine: Machine, function: Callable[..., Any], x: Any, y: Any) -> Tensor:
    """A Python number under "kernel": the operation in fp32, then one rounding.

    Stochastic rounding sees float64 instead, so that its probabilities are those of the exact result. Under "primitive"
    the number is a value of the format.
    """
    if machine.arithmetic.stochastic or machine.arithmetic.primitive:
        return machine.finish(function(*(item.double() if isinstance(item, Tensor) else item for item in (x, y))))
    return machine.finish(function(x, y))


def _scaled(machine: Machine, function: Callable[..., Any], x: Any, y: Any, factor: float) -> Tensor:
    """x +- factor * y: product and sum in fp32, each rounded there (no FMA), then one rounding to the format."""
    if machine.arithmetic.primitive:
        y = (
            machine.finish(torch.mul(y.double(), factor))
            if isinstance(y, Tensor)
            else machine.in_format(y * factor)
        )
        return RULE_OF[function](machine, x, y)
    if machine.arithmetic.stochastic:
        return machine.finish(function(x.double(), y.double() * factor if isinstance(y, Tensor) else y * factor))
    return machine.finish(function(x, y * factor))


add, sub, mul, div = (_arithmetic(name) for name in ("add", "sub", "mul", "div"))
RULE_OF = {torch.add: add, torch.sub: sub, torch.mul: mul, torch.div: div}


def _reverse_sub(machine: Machine, a: Any, b: Any, alpha: float = 1) -> Tensor:
    return sub(machine, b, a) if alpha == 1 else sub(machine, b, a, alpha=alpha)


def _div_mode(machine: Machine, a: Any, b: Any, *, rounding_mode: str | None = None) -> Tensor:
    if rounding_mode is None:
        return div(machine, a, b)
    x, y = machine.operands((a, b))
    if torch.result_type(x, y) is not _FLOAT32:
        return torch.div(x, y, rounding_mode=rounding_mode)
    sides = (_number_beside(x, y), _number_beside(y, x))
    wide = [machine.floating(item).double() if isinstance(item, Tensor) else machine.scalar(item) for item in sides]
    return machine.finish(torch.div(*wide, rounding_mode=rounding_mode))


def _arithmetic_rule_for(op: torch._ops.OpOverload) -> Rule:
    name = op._schema.name.split("::")[1]
    if "mode" in op._overloadname:
        return _div_mode
    return {"add": add, "sub": sub, "mul": mul, "div": div, "rsub": _reverse_sub}[name]


def _overwriting(rule: Rule) -> Rule:
    """The in-place form: large results go where the first operand was, without a copy."""

    def overwrite(machine: Machine, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return machine.write(target, rule(machine, target, *args, into=target, **kwargs))

    return overwrite


def _updating(rule: Rule) -> Rule:
    """The in-place form of a sum; an optimizer's step count is not rounded."""

    def update(machine: Machine, target: Tensor, other: Any, *args: Any, **kwargs: Any) -> Tensor:
        if machine.optimizer is not None and machine.is_step_count(target):
            return target.add_(other, *args, **kwargs) if rule in _ADDITIONS else _native_in_place(machine)
        return machine.write(target, rule(machine, target, other, *args, into=target, **kwargs))

    return update


def _native_in_place(machine: Machine) -> Any:
    raise machine.refuse('an optimizer changes its state["step"] by something other than an addition')


_ADDITIONS: list[Rule] = []
_IN_PLACE = {
    "add": (_aten.add, _aten.add_, _updating),
    "sub": (_aten.sub, _aten.sub_, _updating),
    "mul": (_aten.mul, _aten.mul_, _overwriting),
    "div": (_aten.div, _aten.div_, _overwriting),
}


def _register_arithmetic() -> None:
    for name in _IN_PLACE:
        register_functional([name], "elementwise", _arithmetic_rule_for)
    register_functional(["rsub"], "elementwise", _arithmetic_rule_for)
    for overload in ("Tensor", "Scalar"):
        _ADDITIONS.append(RULES[getattr(_aten.add, overload)])
        for base, packet, form in _IN_PLACE.values():
            op = getattr(packet, overload)
            enter(Entry(op, "elementwise", form(RULES[getattr(base, overload)])))
    for name, (fresh, written, _) in _IN_PLACE.items():
        SHORT[id(fresh.Tensor)] = SHORT[id(fresh.Scalar)] = _held(name)
        SHORT[id(written.Tensor)] = SHORT[id(written.Scalar)] = _held(name, in_place=True)


_register_arithmetic()


def _sqrt(machine: Machine, x: Tensor) -> Tensor:
    x = machine.floating(x) if x.dtype is not _FLOAT64 else x
    if x.dtype is _FLOAT64:
        return torch.sqrt(x)
    result = machine.one_pass(passes.SQUARE_ROOT, (x,))
    if result is not None:
        return result
    values = x.detach().numpy()
    with np.errstate(invalid="ignore"):
        # NumPy's is correctly rounded, torch's is not.
        root = np.sqrt(values if machine.arithmetic.fast else values.astype(np.float64))
    return machine.finish(torch.from_numpy(np.asarray(root)))


register_functional("sqrt", "elementwise", lambda op: _sqrt)


# Operations with two products


def _product_in_steps(
    machine: Machine, x: Tensor, first: Tensor, second: Tensor, value: float, function: Callable[..., Tensor], into: MaybeTensor
) -> Tensor:
    """x + value * first * second (or / second), from the left, every step in fp32; float64 where fp32 is not enough."""
    x, first, second = (machine.floating(item) for item in (x, first, second))
    factor = machine.scalar(value)
    if machine.arithmetic.primitive:
        scaled = mul(machine, first, factor) if value != 1 else first
        return add(machine, x, RULE_OF[function](machine, scaled, second))
    if machine.arithmetic.stochastic:
        x, first, second = x.double(), first.double(), second.double()
    operation = passes.ADD_PRODUCT if function is torch.mul else passes.ADD_QUOTIENT
    result = machine.one_pass(operation, (x, first, second), factor, into)
    if result is not None:
        return result
    scaled = first * factor if value != 1 else first
    return machine.finish(x + function(scaled, second))


def _with_product(whole: Callable[..., Tensor], function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    """x + value * function(first, second): `whole` of torch's."""

    def rule(
        machine: Machine, x: Tensor, first: Tensor, second: Tensor, *, value: float = 1, into: MaybeTensor = None
    ) -> Tensor:
        if x.dtype is _FLOAT64 or _FLOAT32 not in (x.dtype, first.dtype, second.dtype):
            return whole(x, first, second, value=value)
        return _product_in_steps(machine, x, first, second, value, function, into)

    return rule


def _held_product(function: Callable[[Tensor, Tensor], Tensor], in_place: bool) -> Short:
    """The same of small operands that hold values of the format."""

    def compute(machine: Machine, x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> MaybeTensor:
        if machine.arithmetic.primitive or not machine.arithmetic.fast:
            return None
        if in_place and x.dim() == 0:
            return None
        if max(x.numel(), first.numel(), second.numel()) >= WORTH_A_PASS:
            return None if in_place else _product_in_steps(machine, x, first, second, value, function, None)
        product = function(first if value == 1 else torch.mul(first, machine.scalar_tensor(value)), second)
        return _finished(machine, x.add_(product)) if in_place else machine.finish(torch.add(x, product))

    return compute


_addcmul, _addcdiv = _with_product(torch.addcmul, torch.mul), _with_product(torch.addcdiv, torch.div)


def _lerp(machine: Machine, start: Tensor, end: Tensor, weight: Tensor | float, into: MaybeTensor = None) -> Tensor:
    """start + weight * (end - start), or end - (end - start) * (1 - weight) from weight 0.5 on, every step in fp32."""
    if start.dtype is _FLOAT64:
        return torch.lerp(start, end, weight)
    start, end = machine.floating(start), machine.floating(end)
    factor: Any = machine.floating(weight) if isinstance(weight, Tensor) else machine.scalar(float(weight))
    if machine.arithmetic.primitive:
        difference = sub(machine, end, start)
        return add(machine, start, mul(machine, difference, factor))
    if machine.arithmetic.stochastic:
        start, end = start.double(), end.double()
    elif not isinstance(factor, Tensor):
        near = abs(factor) < 0.5
        operation, single = (passes.TOWARD, factor) if near else (passes.BACK_FROM, float(np.float32(1) - np.float32(factor)))
        result = machine.one_pass(operation, (start, end), single, into)
        if result is not None:
            return result
        factor = machine.scalar_tensor(float(weight))
    difference = end - start
    small = abs(factor) < 0.5
    if isinstance(small, Tensor) and small.dim():
        near, far = start + factor * difference, end - difference * (1 - factor)
        return machine.finish(torch.where(small, near, far))
    return machine.finish(difference.mul_(factor).add_(start) if small else end - difference.mul_(1 - factor))


register_functional("addcmul", "formula", lambda op: _addcmul)
register_functional("addcdiv", "formula", lambda op: _addcdiv)
register_functional("lerp", "formula", lambda op: _lerp)


for _op, _rule in (
    (_aten.addcmul_.default, _addcmul),
    (_aten.addcdiv_.default, _addcdiv),
    (_aten.lerp_.Scalar, _lerp),
    (_aten.lerp_.Tensor, _lerp),
):
    enter(Entry(_op, "formula", _overwriting(_rule)))

for _name, _function in (("addcmul", torch.mul), ("addcdiv", torch.div)):
    for _suffix in ("", "_"):
        SHORT[id(getattr(_aten, _name + _suffix).default)] = _held_product(_function, in_place=bool(_suffix))
