"""Operations that draw numbers: torch's own generator, the drawn numbers rounded to the format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.dispatch import switches
from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.schemas import is_out, names, overloads

DRAWS = names(
    """
    rand randn rand_like randn_like randint randint_like randperm normal bernoulli multinomial poisson exponential
    uniform random geometric cauchy log_normal binomial
    """
)


def _draw_rule(op: torch._ops.OpOverload) -> Rule:
    def draw(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        result = op(*machine.operands(args), **kwargs)
        machine.check(result)
        return machine.finish(result) if result.dtype is torch.float32 else result

    return draw


def _drawn_into_rule(op: torch._ops.OpOverload) -> Rule:
    def draw_into(machine: Machine, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        machine.check(target)
        if target.dtype is not torch.float32:
            return op(target, *machine.operands(args), **kwargs)
        fresh = op(torch.empty_like(target), *machine.operands(args), **kwargs)
        return machine.write(target, machine.finish(fresh))

    return draw_into


for _name in DRAWS:
    for _op in overloads(_name).values():
        if not is_out(_op):
            register(_op, family="random")(_draw_rule(_op))
    for _op in overloads(f"{_name}_").values():
        if not is_out(_op):
            register(_op, family="random")(_drawn_into_rule(_op))


def _positive_rule(op: torch._ops.OpOverload) -> Rule:
    """As torch has it of a dtype: no draw is below the least normal number, of which logarithms are taken."""

    def draw(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        result = op(*machine.operands(args), **kwargs)
        if result.dtype is not torch.float32:
            return result
        return machine.finish(result.clamp_(min=machine.arithmetic.fmt.enclosing.min_normal))

    return draw


for _name in ("_standard_gamma", "_sample_dirichlet"):
    register(overloads(_name)["default"], family="random")(_positive_rule(overloads(_name)["default"]))


@register(torch.ops.aten.native_dropout.default, family="random")
def native_dropout(machine: Machine, x: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    x = machine.floating(x)
    if train is False or p == 0:
        return machine.exact(x.clone()), torch.ones_like(x, dtype=torch.bool)
    mask = torch.empty_like(x).bernoulli_(1 - p) != 0
    scale = machine.scalar(1 / (1 - p)) if p < 1 else 0.0
    return machine.finish(x * mask * scale), mask


def _sobol_engine_draw(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Points in float32, whose numerators are beyond many a format; rounded where they are copied."""
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        points, state = torch.ops.aten._sobol_engine_draw.default(*args, **kwargs)
    return points.clone(), state


switches.replacements["_sobol_engine_draw"] = _sobol_engine_draw
