"""Memory that others can write: a storage that NumPy, a pointer or another process can reach is never marked again.

torch sees no write through such an alias, so what hands one out is watched, from the first emulation of a process on. Aliases
from before then show in the storage itself: torch resizes none that NumPy, DLPack, a buffer or a file shares with it.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, TypedStorage, UntypedStorage

from fpsim.emulation.machine import marks

#: Calls that hand out an alias, and whether torch's own callers of it keep that to themselves (they compare addresses).
_ALIASES: dict[Any, dict[str, bool]] = {
    Tensor: {"numpy": False, "__array__": False, "__dlpack__": False, "data_ptr": True, "const_data_ptr": True},
    TypedStorage: {"data_ptr": False},
    UntypedStorage: {"data_ptr": True, "_share_fd_cpu_": False, "_share_filename_cpu_": False},
    torch.utils.dlpack: {"to_dlpack": False},
    torch: {"to_dlpack": False},
}

#: Calls that write by themselves, past the dispatcher.
_WRITERS: dict[Any, tuple[str, ...]] = {
    Tensor: ("apply_", "map_", "map2_"),
    UntypedStorage: ("__setitem__", "byteswap", "_byteswap", "_set_from_file"),
}


class _Looking(threading.local):
    """How deep this thread is in what only looks at memory: what hands out an alias there writes nothing through it, ever."""

    depth = 0


looking = _Looking()


def _handing_out(original: Callable[..., Any], silent: tuple[str, ...]) -> Callable[..., Any]:
    """The call, after which the storage is shared, unless a module of these packages made it."""

    @functools.wraps(original)
    def hand_out(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if not looking.depth and not sys._getframe(1).f_globals.get("__name__", "").startswith(silent):
            marks.share(self)
        return result

    return hand_out


def _writing(original: Callable[..., Any]) -> Callable[..., Any]:
    """The call, after which the storage holds anything."""

    @functools.wraps(original)
    def write(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        marks.unmark(self)
        return result

    return write


def _taking(original: Callable[..., Any]) -> Callable[..., Any]:
    """Indexing of a storage: a slice is another storage in the same memory."""

    @functools.wraps(original)
    def take(self: Any, index: Any) -> Any:
        if isinstance(index, slice):
            marks.share(self)
        return original(self, index)

    return take


@functools.cache
def watch() -> None:
    """Put the wrappers on, once in a process."""
    for owner, names in _ALIASES.items():
        for name, torch_too in names.items():
            if hasattr(owner, name):  # another torch may not have it
                silent = ("fpsim.", "torch.") if torch_too else ("fpsim.",)
                setattr(owner, name, _handing_out(getattr(owner, name), silent))
    for owner, writers in _WRITERS.items():
        for name in writers:
            if hasattr(owner, name):
                setattr(owner, name, _writing(getattr(owner, name)))
    UntypedStorage.__getitem__ = _taking(UntypedStorage.__getitem__)  # type: ignore[method-assign, assignment]
