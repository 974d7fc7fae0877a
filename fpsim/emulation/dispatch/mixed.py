"""The mode of a machine with several settings: it selects what each operation reads and makes before its rule runs."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from fpsim.emulation.dispatch.mode import EmulationMode
from fpsim.emulation.machine.mixed import MixedMachine
from fpsim.emulation.machine.protocol import Rule
from fpsim.emulation.machine.systems import what_is_lacking
from fpsim.emulation.registry import TABLE, Entry
from fpsim.emulation.schemas import each_element


class MixedMode(EmulationMode):
    """One thread's mode where there are several settings."""

    def __init__(self, machine: MixedMachine):
        super().__init__(machine)
        self.rules = SelectingRules(machine)

    def _without_rule(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        machine = self.machine
        assert isinstance(machine, MixedMachine)
        machine.select_here()
        if machine.computes_as_torch:
            return machine.others.as_itself(func, args, kwargs)
        return super()._without_rule(func, args, kwargs)


class SelectingRules:
    """The rules of a machine with several settings, each of which selects before it runs."""

    def __init__(self, machine: MixedMachine):
        self.rules = machine.rules
        self._made: dict[Entry | None, Rule | None] = {None: None}

    def get(self, op: torch._ops.OpOverload) -> Rule | None:
        entry = TABLE.get(op)
        rule = self._made.get(entry)
        if rule is None and entry is not None:
            rule = self._made[entry] = self._make(entry)
        return rule

    def _make(self, entry: Entry) -> Rule:
        if entry.family == "view":
            return self.rules[entry.op]
        return partial(self._each if entry.family == "foreach" else self._selected, entry)

    def _each(self, entry: Entry, machine: MixedMachine, *args: Any, **kwargs: Any) -> list[torch.Tensor] | None:
        """Each element may have settings of its own."""
        results: list[torch.Tensor] = []
        for arguments, named in each_element(args, kwargs):
            results += self._selected(entry, machine, *arguments, **named) or []
        return results or None

    def _selected(self, entry: Entry, machine: MixedMachine, *args: Any, **kwargs: Any) -> Any:
        machine.select(entry.op, args, kwargs)
        if machine.computes_as_torch:
            return machine.others.as_itself(entry.op, args, kwargs)
        reason = what_is_lacking(machine.arithmetic.fmt, machine.arithmetic.rounding, entry.op)
        if reason is not None:
            raise machine.refuse(reason)
        return self.rules[entry.op](machine, *args, **kwargs)
