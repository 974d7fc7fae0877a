"""Half tensors in rules: each enters as a float32 tensor of its values, and marked results leave as half tensors."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.dispatch import complex_numbers
from fpsim.emulation.errors import SparseTensor
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.limits import SMALL
from fpsim.emulation.machine.native import NativeMachine
from fpsim.emulation.machine.parts import COMPLEX64
from fpsim.emulation.registry import SPARSE, TABLE, written_by
from fpsim.emulation.schemas import mapped, tensors_in

_FLOAT32, COMPLEX32 = torch.float32, torch.complex32

#: What carries tensors, by their dtype.
_CARRIERS = {**dict.fromkeys(SMALL, _FLOAT32), _FLOAT32: _FLOAT32, COMPLEX32: COMPLEX64}


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
        return _CARRIERS.get(value, value) if isinstance(value, torch.dtype) else value

    def _carry(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype not in _CARRIERS:
            return tensor
        carried = self.carriers.get(id(tensor))
        if carried is not None:
            return carried[1]
        carrier = tensor.detach().resolve_conj().to(_CARRIERS[tensor.dtype], copy=True)  # exact
        if tensor.dtype in (self.dtype, COMPLEX32) or self.as_they_are:
            marks.mark(marks.stored(carrier), self.machine.arithmetic.tag)
        self.carriers[id(tensor)] = (tensor, carrier)
        return carrier

    def give(self, result: Any, written: dict[int, torch.Tensor]) -> Any:
        if isinstance(result, torch.Tensor):
            if id(result) in written:
                return written[id(result)]
            if result.dtype in (_FLOAT32, COMPLEX64) and marks.tag_on(marks.stored(result)) is self.machine.arithmetic.tag:
                return result.to(COMPLEX32 if result.dtype is COMPLEX64 else self.dtype)  # exact
            return result
        if isinstance(result, (list, tuple)):
            return type(result)(self.give(item, written) for item in result)
        return result

    def compute(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        try:
            return self.machine.rules[func](self.machine, *args, **kwargs)
        except SparseTensor:
            if func not in SPARSE:
                raise
            return SPARSE[func](self.machine, *args, **kwargs)

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        named = {key: self.carry(value) for key, value in kwargs.items()}
        result = self.compute(func, list(map(self.carry, args)), named)
        written: dict[int, torch.Tensor] = {}
        for tensor in tensors_in(written_by(func, args, kwargs)) if TABLE[func].written else ():
            if id(tensor) in self.carriers:
                carrier = self.carriers[id(tensor)][1]
                if tensor.shape != carrier.shape:
                    _ = tensor.resize_(carrier.shape) if tensor.layout is torch.strided else tensor.resize_as_sparse_(carrier)
                tensor.copy_(carrier)  # exact
                written[id(carrier)] = tensor
        return self.give(result, written)


class ComplexCall(Call):
    """One call with complex numbers of two half ones: carried as complex64, by the rules for those."""

    def compute(self, func: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        return complex_numbers.compute(self.machine, func, args, kwargs)


def upcast(value: Any) -> Any:
    """Half tensors among values as float32 ones, complex ones of halves as complex64."""
    return mapped(
        lambda tensor: tensor.detach().to(_CARRIERS[tensor.dtype]) if tensor.dtype in _CARRIERS else tensor, value
    )
