"""Which module and which parameter a result belongs to, where no module is running too: by what its operation reads."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.observers.call import Call


class Owner(NamedTuple):
    """The path of a module, and the parameter that a result is of, or whose gradient; "" for what it is of none."""

    module: str
    name: str


def owner_of(call: Call, result: torch.Tensor) -> Owner:
    """Of operations on lists (an optimizer's, those that clip gradients) by what the element was computed of."""
    module = call.module_of(result)
    node = torch._C._current_autograd_node() if call.phase == "backward" else None
    if isinstance(node, torch._C._functions.AccumulateGrad):  # type: ignore[attr-defined]
        return Owner(module, f" of the gradient of {marks.name_of_parameter(node.variable) or 'a parameter'}")
    own = _described(result)
    if own is not None or module or call.phase == "backward":
        return Owner(module or (own.module if own else ""), f" of {own.name}" if own and own.name else "")
    beside = call.arguments_of(result).values()
    found = {_described(item) for item in beside if isinstance(item, torch.Tensor)} - {None}
    if len(found) != 1:
        return Owner(module, "")
    (other,) = found
    return Owner(other.module, f" computed of {other.name}" if other.name else "")  # type: ignore[union-attr]


def path_of_owner(call: Call, result: torch.Tensor) -> str:
    """The path of the module alone, which is known before the parameter is looked for."""
    return call.module_of(result) or owner_of(call, result).module


def _described(tensor: torch.Tensor) -> Owner | None:
    """What is said of a parameter, and of a parameter's gradient; None for any other tensor."""
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        return None
    if marks.is_parameter(tensor):
        return Owner(marks.module_of((tensor,)) or "", marks.name_of_parameter(tensor))
    parameter = marks.parameter_with_gradient(tensor)
    if parameter is None:
        return None
    return Owner(marks.module_of((parameter,)) or "", f"the gradient of {marks.name_of_parameter(parameter)}")
