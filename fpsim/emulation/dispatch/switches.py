"""Process-wide switches of torch that hide operations from a dispatch mode: off on entry, restored on the last exit."""

from __future__ import annotations

import functools
import operator
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch

_lock = threading.Lock()
_entered = 0
_saved: tuple[bool, ...] = ()
#: Functions of torch that are replaced while anything is emulated, by name, that of a module in it dotted.
replacements: dict[str, Callable[..., Any]] = {}
_replaced: dict[str, Callable[..., Any]] = {}
_stances: list[Any] = []  # that torch.compile had, where it was there


def _run_compiled_as_written() -> None:
    """Let what torch.compile made call what it was made of: it refuses code that a mode keeps it from compiling, for good."""
    frames: Any = sys.modules.get("torch._dynamo.eval_frame")
    if frames is not None and not _stances:
        _stances.append(frames._stance)
        frames._stance = frames.DynamoStance("force_eager")


def _compile(*args: Any, **kwargs: Any) -> Any:
    """torch.compile, which loads the compiler the first time."""
    compiled = _replaced["compile"](*args, **kwargs)
    with _lock:
        if _entered:
            _run_compiled_as_written()
    return compiled


replacements["compile"] = _compile


def _read() -> tuple[bool, ...]:
    return (
        torch.backends.mha.get_fastpath_enabled(),
        torch._C._get_mkldnn_enabled(),
    )


def _write(values: tuple[bool, ...]) -> None:
    fastpath, mkldnn = values
    torch.backends.mha.set_fastpath_enabled(fastpath)
    torch._C._set_mkldnn_enabled(mkldnn)


def enter() -> None:
    """Switch the fused path of attention modules, oneDNN and compiled code off, and put the `replacements` in their places.

    The first entry remembers what they were.
    """
    global _entered, _saved
    with _lock:
        if _entered == 0:
            _saved = _read()
            _write((False, False))
            _run_compiled_as_written()
            for name, function in replacements.items():
                _replaced[name] = getattr(*_place_of(name))
                _put(name, function)
        _entered += 1


def leave() -> None:
    """Undo one `enter`; the last one restores what the first one found."""
    global _entered
    with _lock:
        _entered -= 1
        if _entered == 0:
            _restore()


def _restore() -> None:
    _write(_saved)
    while _stances:
        sys.modules["torch._dynamo.eval_frame"]._stance = _stances.pop()  # type: ignore[attr-defined]
    for name, function in _replaced.items():
        _put(name, function)


@functools.cache
def _place_of(name: str) -> tuple[Any, str]:
    """(what holds a function of torch, its name there)."""
    module, _, last = name.rpartition(".")
    return operator.attrgetter(module)(torch) if module else torch, last


def _put(name: str, function: Callable[..., Any]) -> None:
    setattr(*_place_of(name), function)


def reset() -> None:
    """In a forked child, where nothing is emulated: restore at once."""
    global _entered, _lock
    _lock = threading.Lock()  # another thread of the parent may have held the old one
    if _entered:
        _entered = 0
        _restore()
