"""Operations in which complex numbers have a part: by a rule of their own, or by one that moves elements as they are."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.parts import COMPLEX64, conjugating
from fpsim.emulation.registry import COMPLEX, TABLE, written_by
from fpsim.emulation.schemas import each_element, mapped, name_of, tensors_in

_COMPLEX = (COMPLEX64, torch.complex128)
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


def has_complex(args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether a complex tensor, or such a dtype, is among the arguments."""
    tensors, numbers = tensors_in((*args, *kwargs.values())), tensors_in(args, complex)
    return kwargs.get("dtype") in _COMPLEX or any(tensor.dtype in _COMPLEX for tensor in tensors) or bool(numbers)


def compute(machine: FormatMachine, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation's result. Raises UnsupportedOp for one that has no rule for complex numbers."""
    family = TABLE[func].family
    if family == "foreach":
        return _one_by_one(machine, func, args, kwargs)
    machine.select(func, args, kwargs)
    with _without_dispatch(), conjugating():
        rule = COMPLEX.get(func)
        if rule is not None:
            return rule(machine, *args, **kwargs)
        if family in ("view", "complex"):
            return machine.rules[func](machine, *args, **kwargs)
        if family in ("exact", "comparison"):
            read = machine.constant if family == "exact" else machine.in_format
            numbers = mapped(lambda value: complex(read(value.real), read(value.imag)), args, complex)
            return machine.rules[func](machine, *numbers, **kwargs)
        if family in ("constant", "random"):
            return _made(machine, func, args, kwargs)
    raise machine.refuse(
        "complex numbers have no rule for it; take it of their parts (torch.view_as_real), or of complex128, which means itself"
    )


def _made(machine: FormatMachine, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Numbers that torch makes, fills in or draws, rounded afterwards."""
    targets = tensors_in(written_by(func, args, kwargs))
    result = func(*machine.operands(args) if not targets else args, **kwargs)
    if "empty" in func._schema.name:
        return result
    if any(item.dtype is torch.complex128 for item in (*targets, result)):
        return result  # it means itself
    if targets:
        return machine.store(targets[0], targets[0].clone())
    return machine.finish(result)


def _one_by_one(machine: FormatMachine, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """An operation on lists by the one on tensors of that name."""
    name = func._schema.name.rpartition("::")[2].removeprefix("_foreach_")
    results = []
    for arguments, named in each_element(args, kwargs):
        flat = [value[0] if isinstance(value, (list, tuple)) else value for value in arguments]
        operation = getattr(torch.Tensor, name, None) or getattr(torch, name_of(func))
        with machine.dispatching():
            results.append(operation(*flat, **named))
    return None if name.endswith("_") else results
