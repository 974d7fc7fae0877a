"""Changes of parameters: what operations and optimizers' steps mean to change, and what they leave as it was.

A parameter is what an optimizer steps, what belongs to a module that is called, and any other leaf that requires a gradient.
What an operation means is its exact result, here computed in float64 or told by its operands; sums are computed as what they
add, so that no change is too small. Within a step, changes count together, whichever operations an implementation makes them
of. Elements have marks (`backend/numba/updates.py`), in row-major order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fpsim.backend import threads
from fpsim.backend.numba import counting, updates as kernels
from fpsim.emulation.machine import marks as tags
from fpsim.emulation.machine.finishing import BLOCK, Finish
from fpsim.emulation.machine.rows import Where
from fpsim.emulation.machine.scratch import Scratch
from fpsim.emulation.registry import is_out, names, overloads, tensors_in
from fpsim.numbers.rounding import Rounding

_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]
_is_grad_enabled = torch.is_grad_enabled
_NUMBERS = frozenset((float, int, bool, complex))
_FLOAT32 = torch.float32
_HELD_BY_FLOAT32 = (_FLOAT32, torch.float16, torch.bfloat16)
_COUNTED = [counting.UPDATES, counting.LOST]
_COST = 2  # of a pass over an element, in multiply-adds

#: Operations that add to what they write to: what they would make of zeros is the change.
_ADDITIONS = frozenset(
    names("add sub addcmul addcdiv addmm addmv addr addbmm baddbmm index_add scatter_add index_put")
)
_OTHERS = frozenset(names("mul div lerp copy"))
_FUSED = names("_fused_adam _fused_adamw _fused_sgd _fused_adagrad")
_FUNCTIONAL = names("add sub mul div addcmul addcdiv lerp")


def _forms(name: str, suffix: str) -> Iterator[Any]:
    yield from (op for op in overloads(name + suffix).values() if not is_out(op))


def _may_be_parameter(tensor: torch.Tensor) -> bool:
    """Whether this is a parameter, or a leaf that requires a gradient."""
    return (tensor.requires_grad and tensor.is_leaf) or tags.is_parameter(tensor)


class Kind:
    """A kind of operations that may change parameters. `concerns` is what every operation of these pays for."""

    def __init__(self, name: str):
        self.name = name

    def concerns(self, args: Any, kwargs: Any) -> bool:
        """Whether `Updates.before` is to be asked about a call with these arguments."""
        return _may_be_parameter(args[0])

    def changes(self, updates: Updates, args: Any, kwargs: Any) -> list[Change]:
        """What a call means to change."""
        raise NotImplementedError


class _InPlace(Kind):
    def changes(self, updates: Updates, args: Any, kwargs: Any) -> list[Change]:
        if not updates.counts(args[0]):
            return []
        if not _are_plain(args) and self.name in ("add", "sub"):
            args = tuple(map(_densely, args))
        if not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        return [updates.change(self.name, args[0], args[1:], kwargs)]


class _ForEach(Kind):
    def concerns(self, args: Any, kwargs: Any) -> bool:
        return any(map(_may_be_parameter, args[0]))

    def changes(self, updates: Updates, args: Any, kwargs: Any) -> list[Change]:
        if not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        parts = _parts(self.name, args, kwargs)
        return [updates.change(self.name, *part) for part in parts if updates.counts(part[0])]


class _Into(Kind):
    """Results go to `out`."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        return _may_be_parameter(kwargs["out"])

    def changes(self, updates: Updates, args: Any, kwargs: Any) -> list[Change]:
        out = kwargs["out"]
        if not updates.counts(out) or not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        others = {key: value for key, value in kwargs.items() if key != "out"}
        first = args[0]
        if isinstance(first, torch.Tensor) and tags.pointer_to(first) == tags.pointer_to(out) and first.shape == out.shape:
            return [updates.change(self.name, out, args[1:], others)]
        wide, arguments, named = _wide((out, args, others))
        marks = _moved(getattr(torch, self.name)(*arguments, **named) != wide)
        return [Change(out, marks, False, tags.array_of(out.detach().to(_FLOAT32, copy=True)).reshape(-1))]


class _Fresh(Kind):
    """Results are fresh, and may be copied to the parameter that they were computed from."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        first = args[0]
        if type(first) in _NUMBERS:
            return False
        if first.requires_grad:
            return not _is_grad_enabled()
        return tags.is_parameter(first)

    def changes(self, updates: Updates, args: Any, kwargs: Any) -> list[Change]:
        first = args[0]
        if not updates.counts(first) or not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        shapes = [item.shape for item in tensors_in(args)]
        wider = any(len(shape) > first.dim() for shape in shapes) or torch.broadcast_shapes(*shapes) != first.shape
        return [] if wider else [Change(first, _marks_of(self.name, first, args[1:], kwargs), False, _NOTHING)]


class _Told(Kind):
    """Fused steps, whose rules tell what they do."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        return True

    def changes(self, updates: Updates, args: Any, kwargs: Any) -> list[Change]:
        return [Change(item, _NOTHING, False, _NOTHING) for item in args[0]] if any(map(updates.counts, args[0])) else []


class _Detach(Kind):
    """A leaf that requires a gradient is a parameter, and so is what `.data` shares with it."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        if args[0].requires_grad and args[0].is_leaf:
            tags.set_parameter(args[0])
        return False


def _kinds() -> Iterator[tuple[Any, Kind]]:
    for name in (*_ADDITIONS, *_OTHERS):
        yield from ((op, _InPlace(name)) for op in _forms(name, "_"))
        yield from ((op, _ForEach(name)) for op in _forms(f"_foreach_{name}", "_"))
    for name in _FUNCTIONAL:
        yield from ((op, (_Into if is_out(op) else _Fresh)(name)) for op in overloads(name).values())
    for name in _FUSED:
        yield from ((op, _Told(name)) for op in _forms(name, "_"))
    yield torch.ops.aten.detach.default, _Detach("detach")


def _densely(value: Any) -> Any:
    """A sparse tensor of float32 numbers as a dense one that holds their sums."""
    if isinstance(value, torch.Tensor) and value.layout is torch.sparse_coo and value.dtype is _FLOAT32 and value.is_cpu:
        return value.to(torch.float64).to_dense()
    return value


def _are_plain(values: Any) -> bool:
    """Whether the tensors among values are dense, on the CPU, and no subclass: else a rule refuses them."""
    for item in values:
        if isinstance(item, torch.Tensor):
            if type(item) not in tags.PLAIN_TYPES or not item.is_cpu or item.layout is not torch.strided:
                return False
        elif isinstance(item, (list, tuple)) and not _are_plain(item):
            return False
    return True


_NOTHING = np.empty(0, np.float32)


@dataclass(slots=True)
class Change:
    """What is to become of one tensor: marks of what is meant, whether it only decays, and the elements before if needed."""

    target: torch.Tensor
    marks: np.ndarray
    decays: bool
    base: np.ndarray


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
        with _without_dispatch():
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
            with _without_dispatch():
                self._note(target, _moved(meant), tags.array_of(_floats(start)).reshape(-1), kept)

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
        decays = name in ("mul", "div") and (not isinstance(other, torch.Tensor) or other.dim() == 0)
        step = self._steps.get(_place_of(target)) if self._steps and not decays else None
        elements = _floats(target)
        take = np.empty if self._steps is None else self._scratch.take
        if step is None:
            marks = take(target.numel(), np.uint8)
            marks[:] = 0
        else:
            marks = step.marks
        base = copied = _NOTHING
        if step is None or not step.base.size:
            if elements is target:
                base = copied = take(marks.size, np.float32)
            else:
                base = tags.array_of(elements).reshape(-1)
        few = _condition_of(name, target, rest, kwargs)
        if few is None:
            marks |= _moved(_meant(name, target, rest, kwargs))
            few = kernels.NOTHING, elements, elements
        _find(*few, elements, copied, marks)
        earlier = tags.change_of(other, target) if name == "copy" else None
        if earlier is not None:  # of what was computed from the target: what was meant there
            marks |= earlier
        return Change(target, marks, decays, base)

    def observe(self, op: Any, kind: Kind, changes: list[Change], compute: Callable[[], Any]) -> Any:
        """The operation's result; what it did is compared with what it meant."""
        is_told = type(kind) is _Told
        if is_told:
            self._fused, self.told = kind, []
        else:
            self._busy = True  # a fused operation may be made of others, which are observed
        self._machine.updates_parameters = True
        try:
            result = compute()
            if type(kind) is _Fresh:
                if isinstance(result, torch.Tensor) and result.shape == changes[0].target.shape:
                    tags.set_change(result, changes[0].target, changes[0].marks)
                return result
            self._machine.op = op
            with _without_dispatch():
                if is_told:
                    for change, marks in zip(changes, self.told or (), strict=False):  # where gradients are infinite, none
                        self._note(change.target, marks, _NOTHING)
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
            after = _floats(change.target)
            new = tags.pointer_to(after)
            _in_parts(marks.size, lambda i, j: kernels.mark_decay(base[i:j], new + 4 * i, marks[i:j]))
            base = _NOTHING
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
        with _without_dispatch(), torch.no_grad():
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


def _place_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tags.pointer_to(tensor), tensor.shape, tensor.stride()


def _floats(tensor: torch.Tensor) -> torch.Tensor:
    """The elements in float32 (exactly, for the dtypes held by it) one after another: itself, or a copy.

    It is read by its address: an array made of it would keep torch from ever resizing it.
    """
    if tensor.dtype is _FLOAT32 and tensor.is_contiguous() and not tensor.is_neg():
        return tensor
    return tensor.detach().to(_FLOAT32, copy=True, memory_format=torch.contiguous_format)


def _in_parts(size: int, task: Callable[[int, int], None]) -> None:
    if size < BLOCK:
        task(0, size)
    else:
        threads.run(task, threads.parts(size, _COST * size, BLOCK))


def _count(target: torch.Tensor, marks: np.ndarray, base: np.ndarray, row: np.ndarray) -> None:
    after = _floats(target)
    new = tags.pointer_to(after)
    if marks.size < BLOCK:
        kernels.count_marks(marks, base, new, row)
        return

    def part(i: int, j: int, own: np.ndarray) -> None:
        kernels.count_marks(marks[i:j], base[i:j], new + 4 * i, own)

    Finish.split(marks.size, _COST, BLOCK, row, part)


def _find(
    condition: int, a: torch.Tensor, b: torch.Tensor, elements: torch.Tensor, base: np.ndarray, marks: np.ndarray
) -> None:
    """`find_moved` of `backend/numba/updates.py`."""
    first = _floats(a)
    second = first if b is a else _floats(b)
    one, two, kept = tags.pointer_to(first), tags.pointer_to(second), tags.pointer_to(elements)
    if marks.size < BLOCK:
        kernels.find_moved(condition, one, two, kept, base, marks)
        return

    def part(i: int, j: int) -> None:
        kernels.find_moved(condition, one + 4 * i, two + 4 * i, kept + 4 * i, base[i:j], marks[i:j])

    _in_parts(marks.size, part)


def _moved(mask: torch.Tensor) -> np.ndarray:
    return tags.array_of(mask).reshape(-1).view(np.uint8)


def mark_fused(
    before: torch.Tensor, after: torch.Tensor, start: torch.Tensor, step: torch.Tensor, decayed: torch.Tensor,
    without_decay: torch.Tensor, without_step: torch.Tensor,
) -> np.ndarray:  # fmt: skip
    """The marks of a fused step: see `mark_parts` in `backend/numba/updates.py`."""
    marks = np.empty(before.numel(), np.uint8)
    singles = [*map(_floats, (before, after, without_decay, without_step))]
    old, new, no_decay, no_step = map(tags.pointer_to, singles)
    doubles = [tags.array_of(item).reshape(-1) for item in (start, step, decayed)]

    def part(i: int, j: int) -> None:
        of = 4 * i
        kernels.mark_parts(old + of, new + of, *(item[i:j] for item in doubles), no_decay + of, no_step + of, marks[i:j])

    _in_parts(marks.size, part)
    return marks


def _meant(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The elements that the operation's exact result differs from."""
    wide, others, named = _wide((target, rest, kwargs))
    in_place = getattr(torch.Tensor, f"{name}_")
    adds = name in _ADDITIONS and kwargs.get("beta", 1) == 1
    if name == "index_put":
        adds = bool(rest[2] if len(rest) > 2 else kwargs.get("accumulate"))
    return in_place(torch.zeros_like(wide), *others, **named) != 0 if adds else in_place(wide.clone(), *others, **named) != wide


def _condition_of(
    name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[int, torch.Tensor, torch.Tensor] | None:
    """What tells the same of two tensors in float32, for what is done most: a condition of `find_moved`, and its operands."""
    first = rest[0]
    few = None
    if not isinstance(first, torch.Tensor):
        if name == "mul" and isinstance(first, float) and first != 1 and 0 < first <= 2:
            few = kernels.SCALED, target, target
    elif name in ("add", "sub") and len(rest) == 1 and kwargs.get("alpha", 1) != 0:
        few = kernels.NOT_ZERO, first, first
    elif name == "addcdiv" and len(rest) == 2 and kwargs.get("value", 1) != 0:
        few = kernels.QUOTIENT, first, rest[1]
    elif name == "copy":
        few = kernels.DIFFERENT, target, first
    if few is None or few[1].shape != target.shape or few[2].shape != target.shape:
        return None
    return few if few[1].dtype in _HELD_BY_FLOAT32 and few[2].dtype in _HELD_BY_FLOAT32 else None


def _marks_of(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> np.ndarray:
    few = _condition_of(name, target, rest, kwargs)
    if few is None:
        return _moved(_meant(name, target, rest, kwargs))
    marks = np.zeros(target.numel(), np.uint8)
    _find(*few, target, _NOTHING, marks)
    return marks


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wide, value))
    return {key: _wide(item) for key, item in value.items()} if isinstance(value, dict) else value


def _parts(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """(target, other arguments, keywords) of each element of an operation in place on lists."""
    targets, rest = args[0], args[1:]
    shared = {key: value for key, value in kwargs.items() if key != "scalars"}
    if "scalars" in kwargs:
        rest = (*rest, kwargs["scalars"])
    for index, target in enumerate(targets):
        values = [item[index] if isinstance(item, (list, tuple)) else item for item in rest]
        named = dict(shared)
        if name in ("addcmul", "addcdiv") and len(values) > 2:
            factor = values.pop()
            named["value"] = factor[index].item() if isinstance(factor, torch.Tensor) else factor
        yield target, tuple(values), named


#: The kind of each operation that is observed.
KINDS = dict(_kinds())
