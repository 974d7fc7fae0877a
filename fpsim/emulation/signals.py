"""SIGTERM, by which schedulers and containers end processes."""

from __future__ import annotations

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
