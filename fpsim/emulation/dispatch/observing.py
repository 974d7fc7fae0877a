"""A mode that tells observers of each operation. One without observers is not of this class, and pays nothing for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.dispatch.mode import EmulationMode, run_as_written
from fpsim.emulation.machine.memory import looking
from fpsim.emulation.machine.rows import add_rows
from fpsim.emulation.observers.call import Call, Operation
from fpsim.emulation.observers.observer import Observer
from fpsim.emulation.registry import TABLE, positions
from fpsim.emulation.report import name_of_operation

_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


@functools.cache
def _told(operation: Any) -> Operation | None:
    """The operation if it makes or moves numbers; those that have no rule are taken apart, and their parts are told."""
    entry = TABLE.get(operation)
    if entry is None or entry.family == "view" or "empty" in operation._schema.name:
        return None
    return Operation(operation, name_of_operation(operation), entry.family, positions(operation)[1])


class Audience:
    """Observers in their order, and what any of them needs of a call."""

    def __init__(self, observers: tuple[Observer, ...]):
        self.observers = observers
        self.before = tuple(item for item in observers if getattr(item.before, "__func__", None) is not Observer.before)
        self.keeps = any(item.keeps_operands for item in observers)
        self.looks = any(item.looks_into_sums for item in observers)


class _Aside:
    """Observers look: torch's dispatch and gradients are off, and what hands out an alias writes nothing through it."""

    __slots__ = ("_dispatch", "_gradients")

    def __enter__(self) -> None:
        self._gradients = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        self._dispatch = _without_dispatch()
        self._dispatch.__enter__()
        looking.depth += 1

    def __exit__(self, *error: Any) -> None:
        looking.depth -= 1
        self._dispatch.__exit__(*error)
        torch._C._set_grad_enabled(self._gradients)


def _tell(audience: Audience, machine: Any, compute: Callable[[], Any], told: Operation, args: Any, kwargs: Any) -> Any:
    """The operation's result; observers are told before and after."""
    outer = machine.call
    if outer is not None and outer.args is args and outer.operation is told.overload:  # a change of a parameter, looked at
        return compute()
    call = Call(machine, told, args, kwargs, outer, audience.looks)
    if audience.keeps or audience.before:
        with _Aside():
            if audience.keeps:
                call.keep_operands()
            for item in audience.before:
                item.before(call)
    reads, machine.reads = machine.reads, _noting(call, machine.reads)
    rows, machine.rows, machine.call = machine.rows, call.rows, call
    try:
        call.complete(compute())
    finally:
        machine.rows, machine.call, machine.reads = rows, outer, reads
        add_rows(call.rows, rows)
    if outer is not None:
        outer.is_composed = True
    with _Aside():
        for item in audience.observers:
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
            told = _told(func)
            if told is None:
                return super().__torch_dispatch__(func, types, args, kwargs)
            machine = self.machine
            compute = functools.partial(super().__torch_dispatch__, func, types, args, kwargs)
            return _tell(machine.emulation.audience, machine, compute, told, args, kwargs or {})

    run_as_written(Observing.__torch_dispatch__)
    return Observing


def choose_kind(mode: EmulationMode, observes: bool) -> None:
    """Let a mode, entered or not, tell observers from now on, or tell nobody."""
    plain: Any = getattr(mode, "plain", type(mode))
    mode.__class__ = observing(plain) if observes else plain
