"""Where the numbers in a tensor's memory come from: the operations that made them, and those that made their operands."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch

from fpsim.emulation.observers.call import ON_LISTS, Call
from fpsim.emulation.observers.source import Line, place_of
from fpsim.emulation.schemas import tensors_in
from fpsim.report.records import Link

_SPREAD = 4  # times what roundings come to
_KEPT = 10_000  # origins whose parents are known; what is older has none
_PARENTS = 4


class Origin:
    """One operation that made numbers. `cause` is the one that first made those that are not finite, if any are not.

    terms    : of how many of its parent's numbers each is the sum; 0 for what is no sum of numbers
    roundoff : the unit roundoff of its numbers' format
    held     : the event that made it a cause, as `Timeline.note` takes it, while it may have no consequence
    """

    __slots__ = (
        "cause", "held", "largest", "line", "module", "nonfinite", "operation", "parents", "phase", "roundoff", "step", "terms",
        "underflows",
    )  # fmt: skip

    def __init__(self, call: Call, line: Line | None, parents: tuple[Origin, ...], terms: int = 0):
        self.module, self.operation, self.phase, self.step = call.module, call.name, call.phase, call.step
        self.line, self.parents = line, parents
        self.largest, self.nonfinite, self.underflows, self.terms, self.roundoff = 0.0, 0, 0, terms, 0.0
        self.cause: Origin | None = None
        self.held: tuple[Any, ...] | None = None

    @property
    def is_of_errors(self) -> bool:
        """Whether these numbers are sums of others, and no larger than what roundings of those come to, as in a random walk.

        Several times as much, for what was rounded may have been larger (the parts of a normalization are), and so may one sum.
        """
        error = max((item.largest * max(item.roundoff, self.roundoff) for item in self.parents), default=0.0)
        return 0 < self.largest <= _SPREAD * math.sqrt(self.terms) * error

    def link(self) -> Link:
        """This operation as part of the chain behind an event."""
        notes = [f"largest {self.largest:.6g}"] if self.largest or not self.nonfinite else []
        if self.nonfinite:
            notes.append(f"{self.nonfinite} not finite" + (", made here" if self.cause is self else ""))
        if self.underflows:
            notes.append(f"{self.underflows} underflowed to 0")
        return Link(self.module, self.operation, self.phase, f"step {self.step}: {', '.join(notes)}", place_of(self.line))


class Origins:
    """The last operations, known by the memory that they wrote to."""

    def __init__(self) -> None:
        self._kept: deque[Origin] = deque()

    def of(self, tensor: torch.Tensor) -> Origin | None:
        """What last wrote to a tensor's memory; None for what comes from outside."""
        try:
            return getattr(tensor.untyped_storage(), "_fpsim_origin", None)
        except NotImplementedError:  # a sparse tensor
            return None

    def parents_of(self, call: Call, result: torch.Tensor) -> tuple[Origin, ...]:
        """The origins of what a result was computed from."""
        if call.family in ("constant", "random"):  # which read shapes alone
            return ()
        values: Any = call.args
        if _is_bias_of_convolution(call, result):
            values = call.args[:1]
        elif call.family in ON_LISTS:
            values = call.arguments_of(result).values()
        elif call.kwargs:
            values = (*values, *call.kwargs.values())
        found = {}
        for value in values:
            if isinstance(value, torch.Tensor):
                tensors: Any = (value,)
            else:
                tensors = tensors_in(value) if isinstance(value, (list, tuple)) else ()
            for tensor in tensors:
                if tensor.is_floating_point():
                    origin = self.of(tensor)
                    if origin is not None:
                        found[id(origin)] = origin
        return tuple(found.values() if len(found) <= _PARENTS else by_weight(found.values())[:_PARENTS])

    @staticmethod
    def terms_of(call: Call, result: torch.Tensor) -> int:
        """How many of its first argument's numbers each of a gradient's is the sum of; 0 where it is no such sum."""
        if call.phase != "backward" or not (call.name.startswith("sum") or _is_bias_of_convolution(call, result)):
            return 0
        return int(call.args[0].numel() // max(1, result.numel()))

    def keep(self, tensor: torch.Tensor, origin: Origin) -> None:
        """The origin is what made this tensor."""
        storage: Any = tensor.untyped_storage()
        storage._fpsim_origin = origin
        self._kept.append(origin)
        if len(self._kept) > _KEPT:
            self._kept.popleft().parents = ()


def _is_bias_of_convolution(call: Call, result: torch.Tensor) -> bool:
    return call.name == "convolution_backward" and result is call.result[2]


def _weight(origin: Origin) -> tuple[bool, float]:
    return origin.nonfinite > 0, origin.largest


def by_weight(origins: Iterable[Origin]) -> list[Origin]:
    """Those of numbers that are not finite first, then those of the largest ones."""
    return sorted(origins, key=_weight, reverse=True)


def chain_to(origin: Origin, most: int = 8, behind: int = 4) -> tuple[Link, ...]:
    """The operations from the cause to this one, and so many behind the cause: of several that with the largest number."""
    chain = _path(origin, origin.cause or origin, most)
    if chain[-1] is not (origin.cause or origin):
        chain.append(origin.cause or origin)  # further away
    chain += _path(chain[-1], None, behind + 1)[1:]
    return tuple(item.link() for item in reversed(chain))


def _path(start: Origin, end: Origin | None, most: int) -> list[Origin]:
    """From an operation back to another one, by what is not finite or else largest, at most so many."""
    path = [start]
    while len(path) < most and path[-1] is not end and path[-1].parents:
        parent = max(path[-1].parents, key=_weight)
        if parent in path:
            break
        path.append(parent)
    return path
