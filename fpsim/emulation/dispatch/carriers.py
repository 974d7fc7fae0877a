"""Half tensors in rules: each enters as a float32 tensor of its values, and marked results leave as half tensors."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.limits import SMALL
from fpsim.emulation.machine.native import NativeMachine
from fpsim.emulation.registry import TABLE, written_by
from fpsim.emulation.schemas import mapped, tensors_in

_FLOAT32 = torch.float32


class Call:
    """One call of a rule: carriers in, half tensors out."""

    def __init__(self, machine: NativeMachine, dtype: torch.dtype, as_they_are: bool = False):
        machine.choose(dtype)
        self.machine = machine
        self.dtype = dtype
        self.as_they_are = as_they_are
        self.carriers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def carry(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._carry(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self.carry(item) for item in value)
        return _FLOAT32 if isinstance(value, torch.dtype) and value in SMALL else value

    def _carry(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is not _FLOAT32 and tensor.dtype not in SMALL:
            return tensor
        carried = self.carriers.get(id(tensor))
        if carried is not None:
            return carried[1]
        carrier = tensor.detach().to(_FLOAT32, copy=True)  # exact
        if tensor.dtype is self.dtype or self.as_they_are:
            marks.mark(carrier, self.machine.arithmetic.tag)
        self.carriers[id(tensor)] = (tensor, carrier)
        return carrier

    def give(self, result: Any, written: dict[int, torch.Tensor]) -> Any:
        if isinstance(result, torch.Tensor):
            if id(result) in written:
                return written[id(result)]
            if result.dtype is _FLOAT32 and marks.tag_on(result) is self.machine.arithmetic.tag:
                return result.to(self.dtype)  # exact
            return result
        if isinstance(result, (list, tuple)):
            return type(result)(self.give(item, written) for item in result)
        return result

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        machine = self.machine
        named = {key: self.carry(value) for key, value in kwargs.items()}
        result = machine.rules[func](machine, *map(self.carry, args), **named)
        written: dict[int, torch.Tensor] = {}
        for tensor in tensors_in(written_by(func, args, kwargs)) if TABLE[func].written else ():
            if id(tensor) in self.carriers:
                carrier = self.carriers[id(tensor)][1]
                if tensor.shape != carrier.shape:
                    tensor.resize_(carrier.shape)
                tensor.copy_(carrier)  # exact
                written[id(carrier)] = tensor
        return self.give(result, written)


def upcast(value: Any) -> Any:
    """Half tensors among values as float32 ones."""
    return mapped(lambda tensor: tensor.detach().float() if tensor.dtype in SMALL else tensor, value)
