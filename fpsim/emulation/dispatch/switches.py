"""Process-wide switches of torch that hide operations from a dispatch mode: off on entry, restored on the last exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

_lock = threading.Lock()
_entered = 0
_saved: tuple[bool, ...] = ()
#: Functions of torch that are replaced while anything is emulated, by name.
replacements: dict[str, Callable[..., Any]] = {}
_replaced: dict[str, Callable[..., Any]] = {}


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
    """Switch the fused path of attention modules and oneDNN off, and put the `replacements` in their places.

    The first entry remembers what they were.
    """
    global _entered, _saved
    with _lock:
        if _entered == 0:
            _saved = _read()
            _write((False, False))
            for name, function in replacements.items():
                _replaced[name] = getattr(torch, name)
                setattr(torch, name, function)
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
    for name, function in _replaced.items():
        setattr(torch, name, function)


def reset() -> None:
    """In a forked child, where nothing is emulated: restore at once."""
    global _entered, _lock
    _lock = threading.Lock()  # another thread of the parent may have held the old one
    if _entered:
        _entered = 0
        _restore()
