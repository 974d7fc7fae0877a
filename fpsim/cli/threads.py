"""Threads that a script starts under `fpsim run` are inside the emulation for as long as they run."""

from __future__ import annotations

import _thread
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fpsim.backend.threads import serves_kernels

#: How threads start without `threading`, in one version of Python or another.
_RAW = ("start_new_thread", "start_new", "start_joinable_thread")


@contextmanager
def emulated_threads(emulation: Any) -> Iterator[None]:
    """Inside, threads start within the emulation, those of pools and of `_thread` too; their counts add to the others'.

    A thread in which the emulation cannot be entered ends with what that raises. Processes that are forked are outside, and so
    are their threads.
    """
    start, raw = threading.Thread.start, {name: getattr(_thread, name) for name in _RAW if hasattr(_thread, name)}
    process = os.getpid()

    def within(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if os.getpid() != process:
            return function(*args, **kwargs)
        try:
            with emulation:
                return function(*args, **kwargs)
        finally:
            emulation.retire_thread()

    @functools.wraps(start)
    def start_within(thread: threading.Thread) -> None:
        if not serves_kernels(thread):
            thread.run = functools.partial(within, thread.run)  # type: ignore[method-assign]
        start(thread)

    def raw_within(start: Callable[..., Any], function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return start(functools.partial(within, function), *args, **kwargs)

    threading.Thread.start = start_within  # type: ignore[method-assign, assignment]
    for name, function in raw.items():
        setattr(_thread, name, functools.partial(raw_within, function))
    try:
        yield
    finally:
        threading.Thread.start = start  # type: ignore[method-assign]
        for name, function in raw.items():
            setattr(_thread, name, function)
