"""Python numbers among the arguments of operations: which are rounded to the format first, and which only fill elements.

Arithmetic keeps a number in fp32, as kernels do that compute in fp32 (`Machine.scalar`). What torch computes in the tensor's
own dtype sees the number in that dtype, and what only fills elements saturates: those two kinds are listed here, by name.
A tensor of no dimensions that type promotion passes over (a float64 constant beside float32 tensors) is such a number too.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import torch

from fpsim.emulation.machine.protocol import Machine, Rule

#: What torch computes in the tensor's own dtype: numbers are rounded to the format before.
IN_THE_FORMAT = frozenset(
    (
        *("eq", "ne", "lt", "le", "gt", "ge", "isin", "bucketize", "searchsorted"),
        *("fmod", "remainder", "pow", "xlogy", "special_xlog1py", "index_add", "segment_reduce", "addr"),
        *("hardshrink", "hardshrink_backward", "softshrink_backward"),
        *("smooth_l1_loss", "smooth_l1_loss_backward", "huber_loss", "huber_loss_backward"),
    )
)

#: What numbers of these names only fill, or bound: they are rounded, and saturated where they are finite.
FILLING = {
    "clamp": ("min", "max"),
    "clamp_min": ("min",),
    "clamp_max": ("max",),
    "hardtanh": ("min_val", "max_val"),
    "threshold": ("value",),
    "index_fill": ("value",),
    "scatter": ("value",),
    "where": ("self", "other"),
}

_NUMBERS = ("number", "Optional[number]", "float", "Optional[float]", "List[number]", "List[float]")
_OPERANDS = ("Tensor", "Optional[Tensor]", "List[Tensor]")

Places = tuple[tuple[int, str], ...]


@lru_cache(maxsize=4096)
def places(op: torch._ops.OpOverload) -> Places:
    """Index and name of the arguments where an operation takes a number, or a tensor for which a number may stand.

    Operations without an argument that is a number by its schema, or a second tensor, have none.
    """
    arguments = [(i, argument.name, str(argument.type)) for i, argument in enumerate(op._schema.arguments)]
    numbers = any(kind in _NUMBERS for _, _, kind in arguments)
    if not numbers and sum(kind in _OPERANDS for _, _, kind in arguments) < 2:
        return ()
    return tuple((i, name) for i, name, kind in arguments if kind in _NUMBERS or kind in _OPERANDS)


def taking_numbers(op: torch._ops.OpOverload, name: str, rule: Rule) -> Rule:
    """The rule, given its numbers as the operation of that name takes them."""
    if name in IN_THE_FORMAT:
        return _converting(rule, places(op), filling=False)
    if name in FILLING:
        return _converting(rule, tuple(place for place in places(op) if place[1] in FILLING[name]), filling=True)
    return rule


def _converting(rule: Rule, spots: Places, filling: bool) -> Rule:
    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if not _has_numbers_beside_narrow((*args, *kwargs.values()) if kwargs else args):
            return rule(machine, *args, **kwargs)
        positional, named = list(args), dict(kwargs)
        for index, name in spots:
            if index < len(positional):
                positional[index] = _converted(machine, positional[index], filling)
            elif name in named:
                named[name] = _converted(machine, named[name], filling)
        return rule(machine, *positional, **named)

    return compute


def _converted(machine: Machine, value: Any, filling: bool) -> Any:
    """A number, or a float64 tensor of one, in the format."""
    if not isinstance(value, torch.Tensor):
        return machine.constant(value) if filling else machine.in_format(value)
    if value.dtype is not torch.float64 or value.dim():
        return value
    return machine.exact(torch.tensor(_converted(machine, value.item(), filling), dtype=torch.float32))


def _has_numbers_beside_narrow(values: Iterable[Any]) -> bool:
    """Whether an operation of these is float32's, and has numbers: one is a float32 tensor, no float64 one has dimensions."""
    is_narrow = has_numbers = False
    for value in values:
        if not isinstance(value, torch.Tensor):
            has_numbers = True
        elif value.dtype is torch.float32:
            is_narrow = True
        elif value.dtype is torch.float64:
            if value.dim():
                return False
            has_numbers = True
    return is_narrow and has_numbers
