"""Python numbers among the arguments of operations: which are rounded to the format first, and which only fill elements.

Arithmetic keeps a number in fp32, as kernels do that compute in fp32 (`Machine.scalar`). What torch computes in the tensor's
own dtype sees the number in that dtype, and what only fills elements saturates: those two kinds are listed here, by name.
A tensor of no dimensions that type promotion passes over (a float64 constant beside float32 tensors) is such a number too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch

#: What torch computes in the tensor's own dtype: a number is rounded to the format before.
IN_THE_FORMAT = frozenset(
    """
    eq ne lt le gt ge isin bucketize searchsorted fmod remainder pow xlogy special_xlog1py hardshrink hardshrink_backward
    softshrink_backward threshold_backward smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward
    segment_reduce
    """.split()
)

#: What a number only fills, or bounds: rounded, and saturated where it is finite.
FILLING = frozenset(
    "clamp clamp_min clamp_max hardtanh threshold".split()
)

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


def stands_aside(tensor: torch.Tensor, others: list[torch.Tensor]) -> bool:
    """Whether this float64 tensor is a number to type promotion: it has no dimensions, and a float32 tensor has some."""
    return tensor.dtype is torch.float64 and tensor.dim() == 0 and _is_narrow(others)


def _is_narrow(tensors: list[torch.Tensor]) -> bool:
    """Whether the operation is float32's: no float64 tensor with dimensions, and a float32 one."""
    found = False
    for tensor in tensors:
        if tensor.dtype is torch.float64 and tensor.dim():
            return False
        found = found or (tensor.dtype is torch.float32)
    return found


def taking_numbers(op: torch._ops.OpOverload, name: str, rule: Callable[..., Any]) -> Callable[..., Any]:
    """The rule, given its numbers as the operation of that name takes them."""
    if name in IN_THE_FORMAT:
        return _converting(op, rule, filling=False)
    return _converting(op, rule, filling=True) if name in FILLING else rule


def _converting(op: torch._ops.OpOverload, rule: Callable[..., Any], filling: bool) -> Callable[..., Any]:
    spots = places(op)

    def compute(machine: Any, *args: Any, **kwargs: Any) -> Any:
        given = [(index, None, args[index]) for index, _ in spots if index < len(args)]
        given += [(None, name, kwargs[name]) for _, name in spots if name in kwargs]  # type: ignore[misc]
        tensors = [value for *_, value in given if isinstance(value, torch.Tensor)]
        changed = [(index, name, value) for index, name, value in given if _is_number(value, tensors)]
        if not changed or not _is_narrow(tensors):
            return rule(machine, *args, **kwargs)
        positional, named = list(args), dict(kwargs)
        for index, name, value in changed:
            new = _in_format(machine, value, filling)
            if index is not None:
                positional[index] = new
            else:
                named[name] = new  # type: ignore[index]
        return rule(machine, *positional, **named)

    return compute


def _is_number(value: Any, tensors: list[torch.Tensor]) -> bool:
    if isinstance(value, torch.Tensor):
        return stands_aside(value, tensors)
    return type(value) is float or type(value) is int


def _in_format(machine: Any, value: Any, filling: bool) -> Any:
    if isinstance(value, torch.Tensor):
        return machine.exact(torch.tensor(_in_format(machine, value.item(), filling), dtype=torch.float32))
    return machine.constant(value) if filling else machine.in_format(value)
