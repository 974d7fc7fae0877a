"""Changes of parameters: what operations and optimizers' steps meant to change, and what they left as it was.

A parameter is what an optimizer steps, what belongs to a module that is called, and any other leaf that requires a gradient.
Within a step, changes count together, whichever operations an implementation makes them of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fpsim.backend.numba import counting, updates as kernels
from fpsim.emulation.machine import marks as tags
from fpsim.emulation.machine.changes import Change, Fresh, Kind, Told, scales_only
from fpsim.emulation.machine.finishing import BLOCK, Finish
from fpsim.emulation.machine.meaning import COST, NOTHING, floats, in_parts, mark_meant, moved
from fpsim.emulation.machine.rows import Where
from fpsim.emulation.machine.scratch import Scratch
from fpsim.numbers.rounding import Rounding

_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]
_modes_left = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]
_NOTHING_LEFT = nullcontext()
_COUNTED = [counting.UPDATES, counting.LOST]


@dataclass(slots=True)
class _Stepped:
    """What an optimizer's step has done to one tensor so far; `base` holds the elements before all but decay."""

    target: torch.Tensor
    where: Where
    name: str
    marks: np.ndarray
    base: np.ndarray
    kept: torch.Tensor | None


@dataclass(slots=True)
class Update:
    """What became of the change of a parameter in an optimizer's step, or in an operation outside of one.

    name     the parameter's; "" where it is not known
    target   the parameter, or the view of it that was written to
    updates  elements that were meant to change
    lost     those of them that are as they were, or whose decay left no trace
    kept     the elements whose change is not gone even so: an optimizer keeps it elsewhere, or it had its chance where rounding
             draws; None where that is none
    """

    name: str
    target: torch.Tensor
    where: Where
    updates: int
    lost: int
    kept: torch.Tensor | None


class Updates:
    """One machine's observer of changes; counts go to the row of the operation that made them, in a step of the first one."""

    def __init__(self, machine: Any):
        self._machine = machine
        self._busy = False
        self._is_aside = False
        self._fused: Kind | None = None  # the fused operation that runs
        self._optimizer: Any = None
        self._inner: dict[str, None] = {}  # the classes of those that it has step
        self._steps: dict[tuple[Any, ...], _Stepped] | None = None
        self._scratch = Scratch()  # of marks and bases in a step
        #: By a fused operation, for each parameter: its elements' marks; None while they are not asked for.
        self.told: list[np.ndarray] | None = None

    def before(self, kind: Kind, args: Any, kwargs: dict[str, Any]) -> list[Change]:
        """The changes of parameters that an operation is about to make, or to compute; none for most."""
        if self._busy or self._is_aside or kind is self._fused:
            return []
        with _hidden():
            return kind.changes(self, args, kwargs)

    @contextmanager
    def set_aside(self) -> Iterator[None]:
        """Inside, what operations do to parameters counts for nothing: who stores results of its own will `tell`."""
        outer, self._is_aside = self._is_aside, True
        try:
            yield
        finally:
            self._is_aside = outer

    def tell(self, target: torch.Tensor, start: torch.Tensor, meant: torch.Tensor, kept: torch.Tensor) -> None:
        """A parameter that held `start` was changed, in a step that meant to change some elements, and keeps some changes."""
        if self.counts(target):
            with _hidden():
                self._note(target, moved(meant), tags.array_of(floats(start)).reshape(-1), kept)

    def counts(self, tensor: torch.Tensor) -> bool:
        """Whether changes of this tensor are counted; a leaf that requires a gradient becomes a parameter for good."""
        if not tags.is_parameter(tensor):
            if not (tensor.requires_grad and tensor.is_leaf):
                return False
            tags.set_parameter(tensor)  # and so of what `.data` shares with it
        return tensor.is_cpu and bool(self._machine.emulates(tensor.dtype))

    def change(self, name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Change:
        """What an operation in place means. A step has one array of marks, and of the elements that it began with."""
        other = rest[0]
        decays = scales_only(name, other) or (name in ("add", "sub", "copy") and tags.is_multiple(other, target))
        step = self._steps.get(_place_of(target)) if self._steps and not decays else None
        elements = floats(target)
        take = np.empty if self._steps is None else self._scratch.take
        if step is None:
            marks = take(target.numel(), np.uint8)
            marks.fill(0)
        else:
            marks = step.marks
        base = copied = NOTHING
        if step is None or not step.base.size:
            if elements is target:
                base = copied = take(marks.size, np.float32)
            else:
                base = tags.array_of(elements).reshape(-1)
        mark_meant(name, target, rest, kwargs, marks, copied)
        earlier = tags.change_of(other, target) if name == "copy" else None
        if earlier is not None:  # of what was computed from the target: what was meant there
            marks |= earlier
        return Change(target, marks, decays, base)

    def observe(
        self, op: Any, kind: Kind, changes: list[Change], compute: Callable[..., Any], given: tuple[Any, ...]
    ) -> Any:
        """The operation's result, `compute(*given)`; what it did is compared with what it meant."""
        is_told = type(kind) is Told
        if is_told:
            self._fused, self.told = kind, []
        else:
            self._busy = True  # a fused operation may be made of others, which are observed
        self._machine.updates_parameters = True
        call = self._machine.call
        if call is not None and call.operation is op:
            call.find_place()  # what it changes is known by now
        try:
            result = compute(*given)
            if type(kind) is Fresh:
                if isinstance(result, torch.Tensor) and result.shape == changes[0].target.shape:
                    tags.set_change(result, changes[0].target, changes[0].marks, changes[0].decays)
                return result
            self._machine.op = op
            with _hidden():
                if is_told:
                    for change, marks in zip(changes, self.told or (), strict=False):  # where gradients are infinite, none
                        self._note(change.target, marks, NOTHING)
                else:
                    for change in changes:
                        self._finish(change)
            return result
        finally:
            self.told, self._busy, self._fused = None, False, None
            self._machine.updates_parameters = self._machine.optimizer is not None

    def _finish(self, change: Change) -> None:
        """Note what became of a change."""
        marks, base = change.marks, change.base
        if change.decays:
            after = floats(change.target)
            new = tags.pointer_to(after)
            in_parts(marks.size, lambda i, j: kernels.mark_decay(base[i:j], new + 4 * i, marks[i:j]))
            base = NOTHING
        self._note(change.target, marks, base)

    def _note(self, target: torch.Tensor, marks: np.ndarray, base: np.ndarray, kept: torch.Tensor | None = None) -> None:
        """Count marks, or keep them until the step ends."""
        if kept is None and self._machine.arithmetic.rounding is Rounding.STOCHASTIC:
            kept = torch.ones(target.shape, dtype=torch.bool)
        key = _place_of(target)
        step = self._steps.get(key) if self._steps else None
        if step is None:
            where = self._machine.where(tags.module_of((target,)))
            step = _Stepped(target, where, tags.name_of_parameter(target), marks, base, kept)
            if self._steps is None:
                self._count(step)
            else:
                self._steps[key] = step
            return
        step.kept = kept if step.kept is None else step.kept
        if step.marks is not marks:
            step.marks |= marks
        if not step.base.size:
            step.base = base

    def begin_step(self, optimizer: Any) -> None:
        """From now on the changes of an element are one update; a step within another one's is part of that."""
        if self._optimizer is optimizer:  # its last step raised
            self.end_step(optimizer)
        if self._optimizer is None:
            self._optimizer, self._steps, self._inner = optimizer, {}, {}
        else:
            self._inner[type(optimizer).__name__] = None

    def end_step(self, optimizer: Any = None) -> None:
        """Count what the optimizer's step did, or any optimizer's."""
        if self._optimizer is None or optimizer not in (None, self._optimizer):
            return
        steps, self._steps = self._steps, None
        name, self._optimizer = type(self._optimizer).__name__, None
        with _hidden(), torch.no_grad():
            for step in (steps or {}).values():
                if self._inner:  # whose operations are its own affair
                    step.where = step.where._replace(operation=f"{name}({', '.join(self._inner)})")
                self._count(step)
        self._scratch.end_step()

    def _count(self, step: _Stepped) -> None:
        """Count what became of a change, and tell observers."""
        row = self._machine.row_of(step.where)
        observers = self._machine.emulation.observers if self._machine.emulation is not None else ()
        earlier = row[_COUNTED].tolist() if observers else ()
        _count(step.target, step.marks, step.base, row)
        if observers:
            updates, lost = (now - before for now, before in zip(row[_COUNTED].tolist(), earlier, strict=True))
            update = Update(step.name, step.target, step.where, updates, lost, step.kept)
            for observer in observers:
                observer.after_update(update)


def _hidden() -> AbstractContextManager[Any]:
    """What hides torch's operations from dispatch modes, where any are left."""
    return _without_dispatch() if _modes_left() else _NOTHING_LEFT


def _place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tags.pointer_to(tensor), tensor.shape, tensor.stride()


def _count(target: torch.Tensor, marks: np.ndarray, base: np.ndarray, row: np.ndarray) -> None:
    after = floats(target)
    new = tags.pointer_to(after)
    if marks.size < BLOCK:
        kernels.count_marks(marks, base, new, row)
        return

    def part(i: int, j: int, own: np.ndarray) -> None:
        kernels.count_marks(marks[i:j], base[i:j], new + 4 * i, own)

    Finish.split(marks.size, COST, BLOCK, row, part)
