"""16-bit tensors inside an optimizer's step: there float16 and bfloat16 mean themselves, as under fmt="native".

`torch.optim.Muon` casts to bfloat16 by itself. Such a cast rounds to bfloat16; operations on bfloat16 tensors accumulate and
round as a bfloat16 machine does; where a bfloat16 tensor meets a float32 one, or is cast to float32, it is rounded to the
format that the machine has there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.dispatch.mode import EmulationMode
from fpsim.emulation.dispatch.native import NativeMode
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.native import HALVES, NativeMachine, common_dtype
from fpsim.emulation.machine.policy import Policy, make_policy
from fpsim.emulation.registry import TABLE, each_element, mapped, tensors_in, written_by
from fpsim.numbers.rounding import Rounding

_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_to_copy = torch.ops.aten._to_copy.default
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


class Halves:
    """What a machine with formats of its own does with 16-bit tensors while an optimizer steps."""

    def __init__(self, machine: FormatMachine):
        self.machine = machine
        self._modes: dict[Any, NativeMode] = {}

    def compute(self, mode: EmulationMode, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation's result; NotImplemented where no 16-bit tensor has a part in it, or the machine has none here.

        Raises
        ------
        UnsupportedOp : results wider than the 16-bit tensor that they are to be written to; an accumulator that takes no
            values of that dtype.
        """
        if self.machine.places or torch.is_grad_enabled():  # a closure's forward pass is the model's
            return NotImplemented
        wanted = NativeMode._wanted(func, args, kwargs)
        tensors = [item for item in tensors_in((*args, *kwargs.values())) if item.dtype.is_floating_point]
        kinds = {item.dtype for item in tensors}
        if wanted not in HALVES and kinds.isdisjoint(HALVES):
            return NotImplemented
        if TABLE[func].family == "foreach" and len(kinds) > 1:
            results: list[torch.Tensor] = []
            for arguments, named in each_element(args, kwargs):
                results += self._one(mode, func, types, arguments, named, None) or []
            return results or None
        return self._one(mode, func, types, args, kwargs, wanted)

    def _one(self, mode: EmulationMode, func: Any, types: Any, args: Any, kwargs: dict[str, Any], wanted: Any) -> Any:
        tensors = [item for item in tensors_in((*args, *kwargs.values())) if item.dtype.is_floating_point]
        targets = {item.dtype for item in tensors_in(written_by(func, args, kwargs))}
        if wanted is None:
            wanted = next(iter(targets)) if func is torch.ops.aten.copy_.default else common_dtype(tensors)
        self.machine.op = func
        if wanted in HALVES:
            self.machine.select(func, args, kwargs)
            args, kwargs = _map(self.machine.operand, (_FLOAT32,), args, kwargs)
            return self._native().dispatch(func, types, args, kwargs)
        if wanted is not _FLOAT32:  # float64 means itself, and integers do
            with _without_dispatch():
                return func(*args, **kwargs)
        if not targets.isdisjoint(HALVES):
            kinds = ", ".join(map(str, targets))
            raise self.machine.refuse(f"a float32 result that is to be written to a tensor of {kinds}: cast it first")
        self.machine.select(func, args, kwargs)
        args, kwargs = _map(self.machine.narrowed, HALVES, args, kwargs)
        with _without_dispatch():
            rule = mode.rules.get(func)
            assert rule is not None
            return rule(self.machine, *args, **kwargs)

    def _native(self) -> NativeMode:
        """The mode of a machine of each dtype, made when it is first needed."""
        machine = self.machine
        accumulate, rounding = machine.policy_of_halves()
        key = (id(accumulate), rounding)  # the policy keeps it alive
        mode = self._modes.get(key)
        if mode is None:
            policy = machine.emulation.policy
            seed = policy.seed if rounding is Rounding.STOCHASTIC else None
            try:
                native = make_policy("native", accumulate, rounding, seed, policy.granularity)
            except ValueError as error:
                raise machine.refuse(str(error)) from None
            mode = self._modes[key] = NativeMode(_Half(native, machine))
        return mode


def _map(
    function: Callable[[torch.Tensor], torch.Tensor], dtypes: tuple[torch.dtype, ...], args: Any, kwargs: dict[str, Any]
) -> Any:
    """The arguments with the function applied to tensors of these dtypes."""
    return mapped(lambda tensor: function(tensor) if tensor.dtype in dtypes else tensor, (args, kwargs))


class _Half(NativeMachine):
    """A 16-bit machine within another one: it counts into the same rows, and its draws go on from the other's."""

    def __init__(self, policy: Policy, host: FormatMachine):
        self._host, rows = host, host.rows
        super().__init__(policy, host.emulation)
        host.rows = rows

    @property
    def rows(self) -> Any:
        return self._host.rows

    @rows.setter
    def rows(self, rows: Any) -> None:
        self._host.rows = rows

    def place(self) -> str:
        return self._host.place()

    def _place_and_phase(self) -> tuple[str, str]:
        return self._host._place_and_phase()

    def key(self) -> int:
        return self._host.key()
