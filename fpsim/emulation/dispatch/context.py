"""Entering and leaving emulation: per thread, counted, with torch's switches and hooks."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.emulation.dispatch import switches
from fpsim.emulation.dispatch.mixed import MixedMode
from fpsim.emulation.dispatch.mode import EmulationMode
from fpsim.emulation.dispatch.module_hooks import ModuleHooks
from fpsim.emulation.dispatch.native import NativeMode
from fpsim.emulation.dispatch.observing import Audience, choose_kind
from fpsim.emulation.dispatch.paths import ModulePaths
from fpsim.emulation.dispatch.small import OtherTensors
from fpsim.emulation.machine import memory
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.mixed import MixedMachine
from fpsim.emulation.machine.native import NativeMachine
from fpsim.emulation.machine.policy import MixedPolicy, NativePolicy, Policy
from fpsim.emulation.machine.rows import Where, add_rows
from fpsim.emulation.machine.settings import ModuleSettings
from fpsim.emulation.observers.observer import Observer, get_observers
from fpsim.emulation.report import make_report
from fpsim.report.report import Report

_modes_left = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]

#: What emulates a policy: a machine for each thread, and the mode that hands it operations.
_KINDS: dict[type[Policy], tuple[Any, Any]] = {
    Policy: (FormatMachine, EmulationMode),
    NativePolicy: (NativeMachine, NativeMode),
    MixedPolicy: (MixedMachine, MixedMode),
}

#: fp32 in the library's own order is torch itself: no mode is entered, for under one torch takes other paths (the gradients
#: of `prod`, the shapes inside `matmul`). Tests set this, to see the rules run their whole path with an identity rounding.
rules_of_the_identity = False

_lock = threading.Lock()


class _Thread(threading.local):
    """What this thread is inside of: emulations from the outermost to the innermost."""

    def __init__(self) -> None:
        self.stack: list[Emulation] = []


_thread = _Thread()
_everything: weakref.WeakSet[Emulation] = weakref.WeakSet()


def current() -> Emulation | None:
    """The innermost emulation that this thread is inside of.

    Autograd's own threads, in which deeply nested checkpoints are differentiated, are inside of what the thread is inside of
    that waits for them: torch hands them its modes.
    """
    if _thread.stack:
        return _thread.stack[-1]
    if _modes_left() == 0:
        return None
    modes = [mode for mode in _get_current_dispatch_mode_stack() if isinstance(mode, EmulationMode)]
    if not modes:
        return None
    emulation = modes[-1].machine.emulation
    assert isinstance(emulation, Emulation)
    emulation._local.machine = modes[-1].machine
    return emulation


def is_innermost(reference: weakref.ref[Emulation]) -> bool:
    """Whether the last emulation that this thread entered is the one referred to."""
    stack = _thread.stack
    return bool(stack) and stack[-1] is reference()


class _Local(threading.local):
    """One emulation in one thread."""

    def __init__(self) -> None:
        self.depth = 0
        self.lent = False  # by a thread that waits for this one
        self.machine: FormatMachine | None = None
        self.mode: EmulationMode | None = None


class Emulation(ModulePaths):
    """A policy in force: `with emulation:` emulates everything that this thread does with torch.

    Re-entry is counted. Counters add up over threads and entries until `reset`.
    """

    def __init__(self, policy: Policy, settings: dict[str, ModuleSettings] | None = None):
        super().__init__(settings)
        self.policy = policy
        self.training_step = self.skipped = 0
        self.guard: Callable[[Any], None] | None = None  # of gradients that arrive outside
        self.guard_outputs: Callable[[Any], None] | None = None  # what it does with outputs of models that are not its own
        self.audience = Audience(())
        self._local = _Local()
        self._machines: list[FormatMachine] = []
        self._retired: dict[Where, np.ndarray] = {}  # counts of threads that have ended
        _everything.add(self)
        memory.watch()

    @property
    def active(self) -> bool:
        """Whether this thread is inside."""
        return self._local.depth > 0 or current() is self

    @property
    def is_entered(self) -> bool:
        return self._local.depth > 0 and not self._local.lent

    @property
    def observers(self) -> tuple[Observer, ...]:
        """What is told of every operation."""
        return self.audience.observers

    @property
    def machine(self) -> FormatMachine:
        local = self._local
        if local.machine is None:
            local.machine = _KINDS[type(self.policy)][0](self.policy, self)
            if not self.policy.is_native:
                local.machine.others = OtherTensors(local.machine)
            self._machines.append(local.machine)
        return local.machine

    def __enter__(self) -> Emulation:
        local = self._local
        if local.depth == 0 or current() is not self:
            refuse_flush_to_zero()
            if current() not in (None, self) and current().policy != self.policy:  # type: ignore[union-attr]
                raise RuntimeError(f"already emulating {current().policy} in this thread; leave that context first")  # type: ignore[union-attr]
        if local.depth == 0:
            local.lent = current() is self
        if local.depth == 0 and not local.lent:
            machine = self.machine
            _hooks.install()
            if rules_of_the_identity or not self.policy.is_identity:
                mode = machine.mode = _KINDS[type(self.policy)][1](machine)
                choose_kind(mode, bool(self.observers))
                switches.enter()
                mode.__enter__()
                local.mode = mode
        local.depth += 1
        _thread.stack.append(self)
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        local = self._local
        if local.depth == 0:  # a forked child unwinds a block that its parent entered
            return
        local.depth -= 1
        _thread.stack.pop()
        if local.depth == 0 and not local.lent:
            mode, local.mode = local.mode, None
            if mode is not None:
                mode.__exit__(kind, value, traceback)
                switches.leave()
            _hooks.uninstall()
            machine = self.machine
            machine.path, machine.places, machine.optimizer, machine.mode = "", [], None, None
            machine.outer_optimizers.clear()
            machine.updates.end_step()
            machine.time.leads_into = machine.results.guard(self.guard)
            self.forget_nodes()
            machine.forget_marks()  # outside, anyone may write other numbers there

    def finish_step(self) -> None:
        """Count a training step."""
        self.training_step += 1
        for observer in self.observers:
            observer.after_step(self.training_step - 1)
        self.forget_backward()

    def note_unscaled(self, gradients: list[torch.Tensor], factor: float) -> None:
        """A loss scaler has multiplied gradients by a factor, in place."""
        for observer in self.observers:
            observer.after_unscaling(gradients, factor)

    def skip_step(self) -> None:
        """A loss scaler has found gradients that are not finite."""
        self.skipped += 1
        for observer in self.observers:
            observer.after_skip(self.training_step)

    # Observers

    def observe(self, observe: Any) -> None:
        """Tell observers (one, its name, or several of these) of every operation from now on.

        Raises TypeError and ValueError for what is no observer, and ValueError where nothing is emulated.
        """
        observers = get_observers(observe)
        if observers and self.policy.is_identity and not rules_of_the_identity:
            raise ValueError(f"nothing can be observed under {self.policy}, which is torch itself: use accumulate='fp32'")
        self._tell(self.observers + tuple(item for item in observers if item not in self.observers))

    def unobserve(self, observer: Observer) -> None:
        """Tell this observer no more. Raises ValueError if it is told nothing."""
        if observer not in self.observers:
            raise ValueError(f"{type(observer).__name__} does not observe here")
        self._tell(tuple(item for item in self.observers if item is not observer))

    def _tell(self, observers: tuple[Observer, ...]) -> None:
        with _lock:
            self.audience = Audience(observers)
            for machine in self._machines:
                if machine.mode is not None:
                    choose_kind(machine.mode, bool(observers))

    # Counters

    def report(self) -> Report:
        """What happened to the numbers since the start or `reset`, in the order of the network."""
        return make_report(self)

    def rows(self) -> dict[Where, np.ndarray]:
        """Counters by where results were made, summed over threads."""
        with _lock:
            total = {key: row.copy() for key, row in self._retired.items()}
            for machine in self._machines:
                add_rows(machine.rows, total)
        return total

    def retire_thread(self) -> None:
        """Keep the counts of this thread, which is about to end, and let its machine go."""
        with _lock:
            machine, self._local.machine = self._local.machine, None
            if machine in self._machines:
                self._machines.remove(machine)
                add_rows(machine.rows, self._retired)

    def reset(self) -> None:
        """Forget all counts, and what observers have seen."""
        for observer in self.observers:
            observer.reset()
        with _lock:
            self._retired.clear()
            for machine in self._machines:
                machine.rows.clear()


_hooks = ModuleHooks(current)


def _start_child_without_emulation() -> None:
    """A forked child emulates nothing: take the modes off its thread's stack."""
    global _lock
    _lock = threading.Lock()
    switches.reset()
    if not _thread.stack:
        return
    others = []
    while _get_current_dispatch_mode_stack():
        mode = torch.utils._python_dispatch._pop_mode()
        if not isinstance(mode, EmulationMode):
            others.append(mode)
    for mode in reversed(others):
        torch.utils._python_dispatch._push_mode(mode)
    for emulation in _everything:
        emulation._local.depth, emulation._local.mode = 0, None
    _thread.stack.clear()
    _hooks.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_child_without_emulation)
