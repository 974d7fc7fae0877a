"""Operations that may change parameters, and what each is about to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from fpsim.emulation.machine import marks as tags
from fpsim.emulation.machine.meaning import ADDITIONS, NOTHING, marks_of, moved, widened
from fpsim.emulation.registry import is_out, names, overloads, tensors_in

_is_grad_enabled = torch.is_grad_enabled
_FLOAT32 = torch.float32

_OTHERS = frozenset(names("mul div lerp copy"))
_FUSED = names("_fused_adam _fused_adamw _fused_sgd _fused_adagrad")
_FUNCTIONAL = names("add sub mul div addcmul addcdiv lerp")


@dataclass(slots=True)
class Change:
    """What is to become of one tensor: marks of what is meant, whether it only decays, and the elements before if needed."""

    target: torch.Tensor
    marks: np.ndarray
    decays: bool
    base: np.ndarray


class Counting(Protocol):
    """What kinds ask of `updates.Updates`."""

    def counts(self, tensor: torch.Tensor) -> bool:
        """Whether changes of this tensor are counted."""

    def change(self, name: str, target: torch.Tensor, rest: tuple[Any, ...], kwargs: dict[str, Any]) -> Change:
        """What an operation in place means."""


def _may_be_parameter(tensor: torch.Tensor) -> bool:
    """Whether this is a parameter, or a leaf that requires a gradient."""
    return (tensor.requires_grad and tensor.is_leaf) or tags.is_parameter(tensor)


def scales_only(name: str, other: Any) -> bool:
    """Whether an operation of that name multiplies by one number."""
    return name in ("mul", "div") and (not isinstance(other, torch.Tensor) or other.dim() == 0)


class Kind:
    """A kind of operations that may change parameters. `concerns` is what every operation of these pays for."""

    def __init__(self, name: str):
        self.name = name

    def concerns(self, args: Any, kwargs: Any) -> bool:
        """Whether `Updates.before` is to be asked about a call with these arguments."""
        return _may_be_parameter(args[0])

    def changes(self, updates: Counting, args: Any, kwargs: Any) -> list[Change]:
        """What a call means to change."""
        raise NotImplementedError


class _InPlace(Kind):
    def changes(self, updates: Counting, args: Any, kwargs: Any) -> list[Change]:
        if not updates.counts(args[0]):
            return []
        plain = _are_plain(args)
        if not plain and self.name in ("add", "sub"):
            args = tuple(map(_densely, args))
            plain = _are_plain(args)
        if not plain or (kwargs and not _are_plain(kwargs.values())):
            return []
        return [updates.change(self.name, args[0], args[1:], kwargs)]


class _ForEach(Kind):
    def concerns(self, args: Any, kwargs: Any) -> bool:
        return any(map(_may_be_parameter, args[0]))

    def changes(self, updates: Counting, args: Any, kwargs: Any) -> list[Change]:
        if not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        parts = _parts(self.name, args, kwargs)
        return [updates.change(self.name, *part) for part in parts if updates.counts(part[0])]


class _Into(Kind):
    """Results go to `out`."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        return _may_be_parameter(kwargs["out"])

    def changes(self, updates: Counting, args: Any, kwargs: Any) -> list[Change]:
        out = kwargs["out"]
        if not updates.counts(out) or not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        others = {key: value for key, value in kwargs.items() if key != "out"}
        first = args[0]
        if isinstance(first, torch.Tensor) and tags.pointer_to(first) == tags.pointer_to(out) and first.shape == out.shape:
            return [updates.change(self.name, out, args[1:], others)]
        wide, arguments, named = widened((out, args, others))
        marks = moved(getattr(torch, self.name)(*arguments, **named) != wide)
        return [Change(out, marks, False, tags.array_of(out.detach().to(_FLOAT32, copy=True)).reshape(-1))]


class Fresh(Kind):
    """Results are fresh, and may be copied to the parameter that they were computed from."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        first = args[0]
        if not isinstance(first, torch.Tensor):
            return False
        return not _is_grad_enabled() if first.requires_grad else tags.is_parameter(first)

    def changes(self, updates: Counting, args: Any, kwargs: Any) -> list[Change]:
        first = args[0]
        if not updates.counts(first) or not _are_plain(args) or not _are_plain(kwargs.values()):
            return []
        shapes = [item.shape for item in tensors_in(args)]
        wider = any(len(shape) > first.dim() for shape in shapes) or torch.broadcast_shapes(*shapes) != first.shape
        scales = scales_only(self.name, args[1])
        return [] if wider else [Change(first, marks_of(self.name, first, args[1:], kwargs), scales, NOTHING)]


class Told(Kind):
    """Fused steps, whose rules tell what they do."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        return True

    def changes(self, updates: Counting, args: Any, kwargs: Any) -> list[Change]:
        return [Change(item, NOTHING, False, NOTHING) for item in args[0]] if any(map(updates.counts, args[0])) else []


class _Detach(Kind):
    """A leaf that requires a gradient is a parameter, and so is what `.data` shares with it."""

    def concerns(self, args: Any, kwargs: Any) -> bool:
        if args[0].requires_grad and args[0].is_leaf:
            tags.set_parameter(args[0])
        return False


def _densely(value: Any) -> Any:
    """A sparse tensor of float32 numbers as a dense one that holds their sums."""
    if isinstance(value, torch.Tensor) and value.layout is torch.sparse_coo and value.dtype is _FLOAT32 and value.is_cpu:
        return value.to(torch.float64).to_dense()
    return value


def _are_plain(values: Any) -> bool:
    """Whether the tensors among values are dense, on the CPU, and no subclass: else a rule refuses them."""
    for item in values:
        if type(item) in tags.PLAIN_TYPES:
            if not item.is_cpu or item.layout is not torch.strided:
                return False
        elif isinstance(item, torch.Tensor) or (isinstance(item, (list, tuple)) and not _are_plain(item)):
            return False
    return True


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


def _forms(name: str, suffix: str) -> Iterator[Any]:
    yield from (op for op in overloads(name + suffix).values() if not is_out(op))


def _kinds() -> Iterator[tuple[Any, Kind]]:
    for name in (*ADDITIONS, *_OTHERS):
        yield from ((op, _InPlace(name)) for op in _forms(name, "_"))
        yield from ((op, _ForEach(name)) for op in _forms(f"_foreach_{name}", "_"))
    for name in _FUNCTIONAL:
        yield from ((op, (_Into if is_out(op) else Fresh)(name)) for op in overloads(name).values())
    for name in _FUSED:
        yield from ((op, Told(name)) for op in _forms(name, "_"))
    yield torch.ops.aten.detach.default, _Detach("detach")


#: The kind of each operation that is observed, by its identity: torch lets none go, and hashes them by a function in Python.
KINDS = {id(op): kind for op, kind in _kinds()}
