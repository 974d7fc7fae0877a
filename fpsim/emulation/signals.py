"""SIGTERM, by which schedulers and containers end processes, and what ends those whose parent is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def at_sigterm(treat: Callable[[int, Any], Any]) -> Iterator[None]:
    """Inside, this treats SIGTERM, unless somebody does already or this is not the main thread, which alone can say so."""
    is_free = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if is_free:
        signal.signal(signal.SIGTERM, treat)
    try:
        yield
    finally:
        if is_free and signal.getsignal(signal.SIGTERM) is treat:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


#: In the environment of a process whose standard input is a pipe that its parent holds, and writes nothing to.
ATTENDED = "FPSIM_ATTENDED"


def end_with_parent() -> None:
    """From now on this process gets SIGTERM once its parent is gone, however that ended, if `ATTENDED` says that it can tell.

    What it and its children read from standard input is empty.
    """
    if os.environ.pop(ATTENDED, None) is None:
        return
    pipe, nothing = os.dup(0), os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="fpsim-parent").start()
