"""The line of the user's that a call belongs to: the one that runs, or the one whose forward call a backward pass is of."""

from __future__ import annotations

import threading
from typing import Any

import torch

from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.source import Line, line_in_backward, running_line

_sequence = torch._C._autograd._get_sequence_nr  # type: ignore[attr-defined]
_KEPT = 50_000  # nodes


class Lines:
    """The lines of forward calls, by the autograd nodes that they made; those of the last two steps."""

    def __init__(self) -> None:
        self._now: dict[tuple[int, int], Line | None] = {}
        self._before: dict[tuple[int, int], Line | None] = {}

    def of(self, call: Call) -> Line | None:
        """The line of a call that is being computed."""
        node: Any = torch._C._current_autograd_node() if call.phase == "backward" else None
        if node is not None:
            own = line_in_backward()
            if own is not None:
                return own
            key = (threading.get_ident(), node._sequence_nr())
            if key in self._now or key in self._before:
                return self._now.get(key, self._before.get(key))
            return running_line()  # of the backward pass itself
        line = running_line()
        if call.phase == "forward":  # autograd numbers a node before the operation is computed
            self._now.setdefault((threading.get_ident(), _sequence() - 1), line)
            if len(self._now) > _KEPT:
                self.age()
        return line

    def age(self) -> None:
        """A step has ended."""
        self._before, self._now = self._now, {}
