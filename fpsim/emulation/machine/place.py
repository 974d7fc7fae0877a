"""Where in a model a thread is, and what is counted and drawn there."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from fpsim.backend.numba import counting
from fpsim.emulation.errors import UnsupportedOp
from fpsim.emulation.machine.arithmetic import Arithmetic
from fpsim.emulation.machine.limits import hash_of
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.machine.results import Results, Time
from fpsim.emulation.machine.rows import FORMATS_MET, Touched, Where
from fpsim.emulation.machine.settings import ModuleSettings
from fpsim.numbers import rounding as roundings

_graph_task = torch._C._current_graph_task_id  # -1 outside a backward pass


class Surroundings(Protocol):
    """What a machine asks of the emulation that it belongs to."""

    policy: Policy
    training_step: int
    settings: dict[str, ModuleSettings] | None

    def backward_path(self, strict: bool = False) -> str:
        """The module whose forward pass made the autograd node that is running."""

    def note_unscaled(self, gradients: list[torch.Tensor], factor: float) -> None:
        """A loss scaler has multiplied gradients by a factor, in place."""

    def skip_step(self) -> None:
        """A loss scaler has found gradients that are not finite."""


class Place:
    """The module and operation that a thread is in, with counters and draws."""

    def __init__(self, arithmetic: Arithmetic, emulation: Surroundings):
        self.arithmetic = arithmetic
        self.emulation = emulation
        self.op: Any = None
        self.rows: dict[Where, np.ndarray] = {}
        self.touched: Touched | None = None  # rows that were counted in, and what they were before; None while nobody asks
        self.updates_parameters = False  # whether an optimizer steps, or an operation that changes a parameter runs
        self.path = ""
        self.owner: str | None = None  # the module that an optimizer's operation is of, by its operands
        self.calls = 0
        self.places: list[tuple[str, int]] = []
        self.nodes: list[tuple[int, str, Time]] = []  # from which autograd node on nodes were made by which module, and when
        self.first_node = 0
        self.many_nodes = 0  # above which those of graphs that are gone are forgotten
        self.time = Time()
        self.results = Results()

    def row(self) -> np.ndarray:
        fmt = self.arithmetic.fmt
        if self.places or not (self.updates_parameters or _graph_task() != -1):  # as `place_and_phase` has it
            place, phase = self.path, "forward"
        else:
            place, phase = self.place_and_phase()
        try:  # by a tuple that equals a `Where`, and takes half as long to make
            row = self.rows[place, phase, self.op, fmt.name, fmt.saturate]  # type: ignore[index]
        except KeyError:
            return self.row_of(self.where())
        if self.touched is not None and id(row) not in self.touched:
            self.touched[id(row)] = fmt.saturate, row, row.copy()
        return row

    def row_of(self, where: Where) -> np.ndarray:
        """The counters of a place."""
        row = self.rows.get(where)
        if row is None:
            row = self.rows[where] = np.zeros(counting.LENGTH, dtype=np.int64)
        if self.touched is not None and id(row) not in self.touched:
            self.touched[id(row)] = where.saturates, row, row.copy()
        return row

    def where(self, module: str | None = None) -> Where:
        """The place of what is computed now, or that of the same in another module."""
        fmt = self.arithmetic.fmt
        FORMATS_MET.setdefault(fmt.name, fmt)
        place, phase = self.place_and_phase()
        return Where(place if module is None else module, phase, self.op, fmt.name, fmt.saturate)

    def phase(self) -> str:
        """The pass that is running: "forward", "backward" or "optimizer", to which updates by hand belong."""
        return self.place_and_phase()[1]

    def place_and_phase(self) -> tuple[str, str]:
        """Those of `place` and `phase`."""
        if self.places:
            return self.path, "forward"  # a recomputed one too, and a closure's
        if _graph_task() != -1:
            return self.emulation.backward_path(), "backward"
        if not self.updates_parameters or torch.is_grad_enabled():
            return self.path, "forward"
        return self.path if self.owner is None else self.owner, "optimizer"

    def place(self) -> str:
        """The path of the module whose forward pass, or whose part of the backward pass, is running."""
        if self.places or _graph_task() == -1:  # a recomputed forward pass has places too
            return self.path
        return self.emulation.backward_path()

    def key(self) -> int:
        """The key of one rounding's draws: a hash of seed, training step, module path and op number in its call."""
        self.calls += 1
        path = self.path if self.places or _graph_task() == -1 else "<backward>"
        assert self.arithmetic.policy.seed is not None
        return roundings.draw_key(self.arithmetic.policy.seed, hash_of(self.emulation.training_step, path, self.calls))

    def draws(self) -> int:
        return self.key() if self.arithmetic.stochastic else 0

    def message(self, reason: str) -> str:
        place = self.path or "no module"
        return f"{self.op} (called from {place}): {reason}"

    def refuse(self, reason: str) -> UnsupportedOp:
        return UnsupportedOp(self.message(reason))
