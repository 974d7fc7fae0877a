"""Names of modules that belong to no simulated model: a script's own, by the outermost module through which they are called."""

from __future__ import annotations

import threading
import weakref
from collections import Counter

from torch import nn

_DISTINCT = 100  # models of one class that have names of their own; the others share the last one


class ModuleNames:
    """The path of each module: the class of the outermost module that was called, then its attributes: `Net.layers.0`.

    The second model of a class that has parameters or buffers is `Net#2`, in the order of their first calls; modules without
    share a name. A module that was called on its own before it was called through another keeps its name below that one's.
    """

    def __init__(self) -> None:
        self._names: dict[int, tuple[str, str]] = {}  # by identity: the outermost module's name, and the path below it
        self._roots: dict[str, weakref.ref[nn.Module]] = {}
        self._references: dict[int, weakref.ref[nn.Module]] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()

    def path_of(self, module: nn.Module, caller: str) -> tuple[str, bool]:
        """The path of a module that is called from the module at the path `caller`; whether it is seen for the first time."""
        named = self._names.get(id(module))
        fresh = named is None
        root, below = named if named is not None else self._name(module)
        start = f".{caller}.".rfind(f".{root}.")
        if start >= 0:  # through its outermost module
            return caller[:start] + root + below, fresh
        return (f"{caller}.{root}{below}" if caller else root + below), fresh

    def _name(self, module: nn.Module) -> tuple[str, str]:
        with self._lock:
            name = type(module).__name__
            if any(True for _ in module.parameters()) or any(True for _ in module.buffers()):
                self._look_again(module)
                if id(module) in self._names:
                    return self._names[id(module)]
                self._counts[name] += 1
                number = min(self._counts[name], _DISTINCT)
                name = f"{name}#{number}" if number > 1 else name
                self._roots[name] = weakref.ref(module)
            self._note(name, module)
            return self._names[id(module)]

    def _look_again(self, module: nn.Module) -> None:
        """Name a module that was put into another after the other's first call."""
        for name, reference in list(self._roots.items()):
            outermost = reference()
            if outermost is not None and any(module is part for part in outermost.modules()):
                self._note(name, outermost)

    def _note(self, name: str, outermost: nn.Module) -> None:
        for path, part in outermost.named_modules():
            key = id(part)
            if key not in self._names:
                self._names[key] = name, f".{path}" if path else ""
                self._references[key] = weakref.ref(part, lambda _, key=key: self._forget(key))  # type: ignore[misc]

    def _forget(self, key: int) -> None:
        self._names.pop(key, None)
        self._references.pop(key, None)
