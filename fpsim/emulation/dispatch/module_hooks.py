"""Torch's hooks of every module, while anything is emulated: they tell the emulation of their thread which module is called."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Told(Protocol):
    """What is told of modules."""

    guard_outputs: Callable[[Any], None] | None

    @property
    def machine(self) -> Any: ...

    def enter_module(self, module: torch.nn.Module) -> None: ...

    def leave_module(self) -> None: ...


class ModuleHooks:
    """The hooks, there as long as there are more calls of `install` than of `uninstall`; `current` says who is told."""

    def __init__(self, current: Callable[[], Told | None]):
        self._current = current
        self._handles: list[Any] = []
        self.reset()

    def reset(self) -> None:
        """In a forked child, where nothing is emulated: remove them at once."""
        self._lock = threading.Lock()  # another thread of the parent may have held the old one
        self._installed = 0
        self._remove()

    def install(self) -> None:
        with self._lock:
            if self._installed == 0:
                self._handles.append(register_module_forward_pre_hook(self._before))
                self._handles.append(register_module_forward_hook(self._after, always_call=True))
            self._installed += 1

    def uninstall(self) -> None:
        with self._lock:
            self._installed -= 1
            if self._installed == 0:
                self._remove()

    def _remove(self) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _before(self, module: torch.nn.Module, args: Any) -> None:
        emulation = self._current()
        if emulation is not None:
            if type(module).__name__ == "OptimizedModule":
                warn_of_compiled_code()
            emulation.enter_module(module)

    def _after(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        emulation = self._current()
        if emulation is not None:
            emulation.leave_module()
            if emulation.guard_outputs is not None and not emulation.machine.places:
                emulation.guard_outputs(output)


@functools.cache
def warn_of_compiled_code() -> None:
    """Once in a process."""
    warnings.warn(
        "torch.compile does nothing under emulation: a compiled model runs as written, operation by operation", stacklevel=2
    )
