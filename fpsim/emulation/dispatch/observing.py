"""A mode that tells observers of each operation. One without observers is not of this class, and pays nothing for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.dispatch.mode import EmulationMode, run_as_written
from fpsim.emulation.machine.memory import only_looking
from fpsim.emulation.machine.rows import add_rows
from fpsim.emulation.observers.call import Call
from fpsim.emulation.registry import TABLE

_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


@functools.cache
def _is_told(operation: Any) -> bool:
    """Whether the operation makes or moves numbers; those that have no rule are taken apart, and their parts are told."""
    entry = TABLE.get(operation)
    return entry is not None and entry.family != "view" and "empty" not in operation._schema.name


def _tell(machine: Any, compute: Callable[[], Any], operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation's result; observers are told before and after."""
    observers, outer = machine.emulation.observers, machine.call
    if outer is not None and outer.args is args and outer.operation is operation:  # a change of a parameter, looked at
        return compute()
    with _without_dispatch(), torch.no_grad(), only_looking():
        keeps, looks = (any(getattr(item, need) for item in observers) for need in ("keeps_operands", "looks_into_sums"))
        call = Call(machine, operation, args, kwargs, outer, keeps, looks)
        for item in observers:
            item.before(call)
    reads, machine.reads = machine.reads, _noting(call, machine.reads)
    rows, machine.rows, machine.call = machine.rows, call.rows, call
    try:
        call.result = compute()
    finally:
        machine.rows, machine.call, machine.reads = rows, outer, reads
        add_rows(call.rows, rows)
    if outer is not None:
        outer.is_composed = True
    with _without_dispatch(), torch.no_grad(), only_looking():
        for item in observers:
            item.after(call)
    return call.result


def _noting(call: Call, others: Callable[[Any, Any], None] | None) -> Callable[[Any, Any], None]:
    """What the machine tells of operands from outside: to the call, and to who else was told."""
    if others is None:
        return call.note_read

    def note(tensor: torch.Tensor, value: torch.Tensor) -> None:
        call.note_read(tensor, value)
        others(tensor, value)

    return note


@functools.cache
def observing(kind: type[EmulationMode]) -> type[EmulationMode]:
    """The kind of mode that dispatches as this one does and tells observers."""

    class Observing(kind):  # type: ignore[valid-type, misc]
        plain = kind

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            compute = functools.partial(super().__torch_dispatch__, func, types, args, kwargs)
            return _tell(self.machine, compute, func, args, kwargs or {}) if _is_told(func) else compute()

    run_as_written(Observing.__torch_dispatch__)
    return Observing


def choose_kind(mode: EmulationMode, observes: bool) -> None:
    """Let a mode, entered or not, tell observers from now on, or tell nobody."""
    plain: Any = getattr(mode, "plain", type(mode))
    mode.__class__ = observing(plain) if observes else plain
