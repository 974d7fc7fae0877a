"""A mode that tells observers of each operation. One without observers is not of this class, and pays nothing for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fpsim.emulation.dispatch.mode import EmulationMode, run_as_written
from fpsim.emulation.dispatch.subclasses import are_taken_apart
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.memory import looking
from fpsim.emulation.observers.call import Call, Operation
from fpsim.emulation.observers.observer import Observer
from fpsim.emulation.registry import TABLE, positions
from fpsim.emulation.report import name_of_operation
from fpsim.sums.observers.counters import Counters, SwampedAdditions

_modes_left = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]
_is_grad_enabled, _set_grad_enabled = torch.is_grad_enabled, torch._C._set_grad_enabled


class Listeners(NamedTuple):
    """Who is told of an operation, and what any of them needs of it.

    reads_alone : whether it gives no tensor and writes to none: nobody is told that numbers were read which were made here
    """

    operation: Operation
    before: tuple[Observer, ...]
    after: tuple[Observer, ...]
    keeps: bool
    counts: bool
    sums: type[Counters] | None
    reads_alone: bool


class Audience(dict[Any, "Listeners | None"]):
    """Observers in their order, and by each of torch's overloads that came who of them is told of it; None for nobody."""

    def __init__(self, observers: tuple[Observer, ...]):
        super().__init__()
        self.observers = observers

    def __missing__(self, operation: Any) -> Listeners | None:
        return self.setdefault(operation, self._choose(operation))

    def _choose(self, operation: Any) -> Listeners | None:
        """Of what makes or moves numbers; operations that have no rule are taken apart, and their parts are told."""
        entry = TABLE.get(operation)
        if entry is None or entry.family == "view" or "empty" in operation._schema.name:
            return None
        told = Operation(operation, name_of_operation(operation), entry.family, positions(operation)[1])
        found = tuple(item for item in self.observers if item.wants(told))
        if not found:
            return None
        asks = (item for item in found if getattr(item.before, "__func__", None) is not Observer.before)
        before = tuple(item for item in asks if told.written or not item.is_before_writing)
        sums = None
        if any(item.looks_into_sums for item in found):
            sums = Counters
        elif any(item.looks_for_swamping for item in found):
            sums = SwampedAdditions
        keeps = bool(told.written) and any(item.keeps_operands for item in found)
        reads_alone = not told.written and not any("Tensor" in str(item.type) for item in operation._schema.returns)
        return Listeners(told, before, found, keeps, any(item.looks_at_counts for item in found), sums, reads_alone)


class _Aside:
    """Observers look: torch's dispatch and gradients are off, and what hands out an alias writes nothing through it."""

    __slots__ = ("_dispatch", "_gradients")

    def __enter__(self) -> None:
        self._gradients = _is_grad_enabled()
        if self._gradients:
            _set_grad_enabled(False)
        self._dispatch = _without_dispatch() if _modes_left() else None
        if self._dispatch is not None:
            self._dispatch.__enter__()
        looking.depth += 1

    def __exit__(self, *error: Any) -> None:
        looking.depth -= 1
        if self._dispatch is not None:
            self._dispatch.__exit__(*error)
        if self._gradients:
            _set_grad_enabled(True)


def _tell(listeners: Listeners, machine: Any, compute: Callable[..., Any], given: tuple[Any, ...]) -> Any:
    """The operation's result, `compute(*given)`; observers are told before and after."""
    told, before, after, keeps, counts, sums, _ = listeners
    *_, args, kwargs = given
    outer, reads, touched = machine.call, machine.reads, machine.touched
    call = Call(machine, told, args, kwargs or {}, outer, None if sums is None else sums())
    if keeps or before:
        with _Aside():
            if keeps:
                call.keep_operands()
            for item in before:
                item.before(call)
    machine.call, machine.reads = call, call.note_read if reads is None else _noting(call, reads)
    if counts:
        machine.touched = call.touched
    try:
        call.complete(compute(*given))
    finally:
        machine.touched, machine.call, machine.reads = touched, outer, reads
        if touched is not None:  # what was counted in the part was counted in the whole
            for row, seen in call.touched.items():
                touched.setdefault(row, seen)
    if outer is not None:
        outer.is_composed = True
    with _Aside():
        for item in after:
            item.after(call)
    return call.result


def _noting(call: Call, others: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    """What the machine tells of operands from outside: to the call, and to who else was told."""

    def note(tensor: torch.Tensor, value: torch.Tensor) -> None:
        call.note_read(tensor, value)
        others(tensor, value)

    return note


def _is_made_here(value: Any) -> bool:
    return not isinstance(value, torch.Tensor) or marks.tag_on(value) is not None


@functools.cache
def observing(kind: type[EmulationMode]) -> type[EmulationMode]:
    """The kind of mode that dispatches as this one does and tells observers."""
    compute_plainly = kind.__torch_dispatch__

    class Observing(kind):  # type: ignore[valid-type, misc]
        plain = kind

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            machine = self.machine
            listeners = machine.emulation.audience[func]
            if types and are_taken_apart(types):
                return NotImplemented
            if listeners is None or (listeners.reads_alone and all(map(_is_made_here, args))):
                return compute_plainly(self, func, types, args, kwargs)
            return _tell(listeners, machine, compute_plainly, (self, func, types, args, kwargs))

    run_as_written(Observing.__torch_dispatch__)
    return Observing


def choose_kind(mode: EmulationMode, observes: bool) -> None:
    """Let a mode, entered or not, tell observers from now on, or tell nobody."""
    plain: Any = getattr(mode, "plain", type(mode))
    mode.__class__ = observing(plain) if observes else plain
