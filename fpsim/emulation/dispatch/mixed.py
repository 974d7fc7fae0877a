"""The mode of a machine with several settings: it selects what each operation reads and makes before its rule runs."""

from __future__ import annotations

import functools
from typing import Any

import torch

from fpsim.emulation.dispatch.mode import EmulationMode, run_as_written
from fpsim.emulation.errors import UnsupportedOp
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.mixed import MixedMachine
from fpsim.emulation.machine.systems import what_is_lacking
from fpsim.emulation.machine.updates import KINDS
from fpsim.emulation.registry import TABLE, each_element

_modes_left = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


class MixedMode(EmulationMode):
    """One thread's mode where there are several settings."""

    machine: MixedMachine

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kind = KINDS.get(func)
        if kind is not None and kind.concerns(args, kwargs):
            changes = self.machine.updates.before(kind, args, kwargs)
            if changes:
                again = functools.partial(self.__torch_dispatch__, func, types, args, kwargs)
                return self.machine.updates.observe(func, kind, changes, again)
        entry = TABLE.get(func)
        if entry is None:
            return self._without_rule(func, args, kwargs)
        if types and not marks.PLAIN_TYPES.issuperset(types):
            self._refuse_subclasses(func, types)
        if self.machine.optimizer is not None:
            result = self.in_halves(func, types, args, kwargs)
            if result is not NotImplemented:
                return result
        self.machine.op = func
        try:
            if _modes_left() == 0:
                result = self.compute(func, args, kwargs)
            else:
                with _without_dispatch():
                    result = self.compute(func, args, kwargs)
        except UnsupportedOp as error:
            self._explain(error, func, args, kwargs)
            raise
        self.machine.results.note(result)
        return result

    def compute(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        machine, entry = self.machine, TABLE[func]
        if entry.family == "foreach":  # each element may have settings of its own
            results: list[torch.Tensor] = []
            for arguments, named in each_element(args, kwargs):
                self._turn(entry.op, arguments, named)
                results += machine.rules[entry.op](machine, *arguments, **named) or []
            return results or None
        if entry.family != "view":
            self._turn(entry.op, args, kwargs)
        return machine.rules[entry.op](machine, *args, **kwargs)


    def _turn(self, op: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> None:
        machine = self.machine
        machine.turn(op, args, kwargs)
        reason = what_is_lacking(machine.arithmetic.fmt, machine.arithmetic.rounding, op)
        if reason is not None:
            raise machine.refuse(reason)


run_as_written(MixedMode.__torch_dispatch__)
