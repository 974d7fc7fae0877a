"""Changes of parameters: what operations and optimizers' steps mean to change, and what they leave as it was.

A parameter is what an optimizer steps, what belongs to a module that is called, and any other leaf that requires a gradient.
What an operation means is its exact result, here computed in float64; sums are computed as what they add, so that no change is
too small. Within a step, changes count together, whichever operations an implementation makes them of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fpsim._kernels import counting
from fpsim.emulation import tags
from fpsim.emulation.table import is_out, names, overloads, tensors_in

_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]

#: Operations that add to what they write to: what they would make of zeros is the change.
_ADDITIONS = frozenset(
    names("add sub addcmul addcdiv addmm addmv addr addbmm baddbmm index_add scatter_add index_put")
)
_OTHERS = frozenset(names("mul div lerp copy"))
_FUSED = names("_fused_adam _fused_adamw _fused_sgd _fused_adagrad")
_FUNCTIONAL = names("add sub mul div addcmul addcdiv lerp")


def _forms(name: str, suffix: str) -> Iterator[Any]:
    yield from (op for op in overloads(name + suffix).values() if not is_out(op))


#: Operations in place, with results that go to a tensor, and with fresh results, by the name of what they do.
_IN_PLACE = {
    op: name
    for name in (*_ADDITIONS, *_OTHERS)
    for form in (name, f"_foreach_{name}")
    for op in _forms(form, "_")
}
_INTO = {op: name for name in _FUNCTIONAL for op in overloads(name).values() if is_out(op)}
_FRESH = {op: name for name in _FUNCTIONAL for op in _forms(name, "")}
_TOLD = frozenset(op for name in _FUSED for op in _forms(name, "_"))
_DETACH = torch.ops.aten.detach.default

#: What `Updates.before` is to be asked about.
OBSERVED = frozenset((*_IN_PLACE, *_INTO, *_FRESH, *_TOLD, _DETACH))


@dataclass
class Change:
    """What is to become of one tensor: its elements before, those that are meant to change, and whether they only decay."""

    target: torch.Tensor
    before: torch.Tensor
    meant: torch.Tensor | None = None
    decays: bool = False


@dataclass
class _Step:
    """What an optimizer's step has done to one tensor so far; `base` holds the elements before all but decay."""

    target: torch.Tensor
    row: np.ndarray
    meant: torch.Tensor
    lost: torch.Tensor | None = None
    moved: torch.Tensor | None = None
    base: torch.Tensor | None = None


class Updates:
    """One machine's observer of changes; counts go to the row of the operation that made them, in a step of the first one."""

    def __init__(self, machine: Any):
        self._machine = machine
        self._busy = False
        self._fused: Any = None  # the fused operation that runs
        self._optimizer: Any = None
        self._steps: dict[tuple[Any, ...], _Step] | None = None
        #: By a fused operation, for each parameter: the elements it means to change, and those where a part left no trace.
        self.told: list[tuple[torch.Tensor, torch.Tensor]] = []

    def before(self, op: Any, args: Any, kwargs: dict[str, Any]) -> list[Change]:
        """The changes of parameters that an operation is about to make, or to compute; none for most."""
        if self._busy or op is self._fused or not args:
            return []
        first = args[0]
        if op in _FRESH:
            if not isinstance(first, torch.Tensor) or (first.requires_grad and torch.is_grad_enabled()):
                return []
        elif op in _INTO:
            first = kwargs["out"]
        if not any(map(self._is_counted, first if isinstance(first, (list, tuple)) else (first,))) or op is _DETACH:
            return []
        with _without_dispatch(), torch.no_grad():
            if op in _TOLD:
                self.told = []
                return [Change(item, item.clone()) for item in first]
            if any(item.layout is not torch.strided for item in tensors_in((*args, *kwargs.values()))):
                return []  # the rule refuses it
            if op in _INTO:
                others = {key: value for key, value in kwargs.items() if key != "out"}
                return [_change_into(_INTO[op], first, args, others)]
            if op in _FRESH:
                shapes = [item.shape for item in tensors_in(args)]
                wider = any(len(shape) > first.dim() for shape in shapes) or torch.broadcast_shapes(*shapes) != first.shape
                return [] if wider else [_change(_FRESH[op], first, args[1:], kwargs)]
            name = _IN_PLACE[op]
            return [_change(name, *part) for part in _parts(name, args, kwargs) if self._is_counted(part[0])]

    def _is_counted(self, tensor: Any) -> bool:
        if not isinstance(tensor, torch.Tensor):
            return False
        if not tags.is_parameter(tensor):
            if not (tensor.requires_grad and tensor.is_leaf):
                return False
            tags.set_parameter(tensor)  # and so of what `.data` shares with it
        return tensor.device.type == "cpu" and bool(self._machine.emulates(tensor.dtype))

    def observe(self, op: Any, changes: list[Change], compute: Callable[[], Any]) -> Any:
        """The operation's result; what it did is compared with what it meant."""
        if op in _TOLD:
            self._fused = op
        else:
            self._busy = True  # a fused operation may be made of others, which are observed
        try:
            result = compute()
        finally:
            self._busy, self._fused = False, None
        if op in _FRESH:
            if isinstance(result, torch.Tensor) and result.shape == changes[0].target.shape:
                tags.set_change(result, changes[0].target, changes[0].meant)
            return result
        self._machine.op = op
        with _without_dispatch(), torch.no_grad():
            if op in _TOLD:
                for change, (meant, lost) in zip(changes, self.told, strict=False):  # where gradients are infinite, none
                    change.meant = meant
                    self._count(change, lost)
                self.told = []
            else:
                for change in changes:
                    self._count(change)
        return result

    def _count(self, change: Change, traceless: torch.Tensor | None = None) -> None:
        target, meant, row = change.target, change.meant, self._machine.row()
        assert meant is not None
        lost = None
        if self._steps is None or change.decays or traceless is not None:
            lost = meant & (target == change.before)
            if traceless is not None:
                lost |= traceless
        if self._steps is None:
            _add(row, meant, lost)
            return
        key = (tags.pointer_to(target), target.shape, target.stride())
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _Step(target, row, meant)
        else:
            step.meant = step.meant | meant
        if lost is not None:
            step.lost = lost if step.lost is None else step.lost | lost
        elif step.moved is None:
            step.moved, step.base = meant, change.before
        else:
            step.moved = step.moved | meant

    def begin_step(self, optimizer: Any) -> None:
        """From now on the changes of an element are one update; a step within another one's is part of that."""
        if self._optimizer is optimizer:  # its last step raised
            self.end_step(optimizer)
        if self._optimizer is None:
            self._optimizer, self._steps = optimizer, {}

    def end_step(self, optimizer: Any = None) -> None:
        """Count what the optimizer's step did, or any optimizer's."""
        if self._optimizer is None or optimizer not in (None, self._optimizer):
            return
        steps, self._steps, self._optimizer = self._steps, None, None
        with _without_dispatch(), torch.no_grad():
            for step in (steps or {}).values():
                lost = step.lost
                if step.moved is not None:
                    unmoved = step.moved & (step.target == step.base)
                    lost = unmoved if lost is None else lost | unmoved
                _add(step.row, step.meant, lost)


def _add(row: np.ndarray, meant: torch.Tensor, lost: Any) -> None:
    row[counting.UPDATES] += np.count_nonzero(tags.array_of(meant))
    row[counting.LOST] += np.count_nonzero(tags.array_of(lost))


def _change(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Change:
    other = rest[0]
    is_number = not isinstance(other, torch.Tensor) or other.dim() == 0
    meant = _meant_by_few(name, target, rest, kwargs)
    if meant is None:
        meant = _meant(name, target, rest, kwargs)
    if name == "copy":  # of what was computed from the target: what was meant there
        earlier = tags.change_of(other, target)
        meant = meant if earlier is None else meant | earlier
    return Change(target, target.clone(), meant, name in ("mul", "div") and is_number)


def _meant(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The elements that the operation's exact result differs from."""
    wide, others, named = _wide((target, rest, kwargs))
    in_place = getattr(torch.Tensor, f"{name}_")
    adds = name in _ADDITIONS and kwargs.get("beta", 1) == 1
    if name == "index_put":
        adds = bool(rest[2] if len(rest) > 2 else kwargs.get("accumulate"))
    return in_place(torch.zeros_like(wide), *others, **named) != 0 if adds else in_place(wide.clone(), *others, **named) != wide


def _meant_by_few(name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """The same without float64, for what optimizers do most; None for everything else."""
    first = rest[0]
    if not isinstance(first, torch.Tensor) or first.shape != target.shape:
        if name == "mul" and isinstance(first, float) and first != 1 and abs(first) <= 2:
            return target * 0.5 != target  # all but zeros and infinities
        return None
    if name in ("add", "sub") and len(rest) == 1 and kwargs.get("alpha", 1) != 0:
        return first != 0
    if name == "addcdiv" and len(rest) == 2 and kwargs.get("value", 1) != 0:
        return first.sign() / rest[1] != 0  # which, unlike the quotient, does not underflow
    return None


def _change_into(name: str, target: torch.Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Change:
    first = args[0]
    if isinstance(first, torch.Tensor) and tags.pointer_to(first) == tags.pointer_to(target) and first.shape == target.shape:
        return _change(name, target, args[1:], kwargs)
    wide, others, named = _wide((target, args, kwargs))
    return Change(target, target.clone(), getattr(torch, name)(*others, **named) != wide)


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_wide, value))
    return {key: _wide(item) for key, item in value.items()} if isinstance(value, dict) else value


def _parts(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """(target, other arguments, keywords) of an operation in place; of one on lists, those of each element."""
    targets, rest = args[0], args[1:]
    if isinstance(targets, torch.Tensor):
        yield targets, rest, kwargs
        return
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
