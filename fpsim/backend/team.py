"""Work on the threads of torch's own OpenMP team.

A team's threads spin for milliseconds after each parallel operation, waiting for the next; threads of a pool beside them
would have half a processor each for that time. What torch is asked for inside such work it does on the one thread.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from typing import Any

_Region = ctypes.CFUNCTYPE(None, ctypes.py_object)
_start: Any = None  # the library's way into a parallel region, once looked up; False where there is none


class _Work:
    """Tasks that threads take one after the other, and what these raised, by number."""

    def __init__(self, tasks: Sequence[Callable[[], None]]):
        self.tasks = enumerate(tasks)  # one step of it is one step of the interpreter: no task is taken twice
        self.errors: dict[int, BaseException] = {}

    def __call__(self) -> None:
        for number, task in self.tasks:
            try:
                task()
            except BaseException as error:  # noqa: BLE001 - nothing can pass through the library; `run` raises it
                self.errors[number] = error


@_Region
def _enter(work: _Work) -> None:
    work()


def is_there() -> bool:
    """Whether torch is loaded and its threads are a team that others can use."""
    global _start
    if _start is None and "torch" in sys.modules:
        _start = _look_up(sys.modules["torch"])
    return bool(_start)


def _look_up(torch: Any) -> Any:
    """Among what torch is linked to: another copy of the library would have other threads."""
    try:
        start = ctypes.CDLL(torch._C.__file__).GOMP_parallel  # GNU's and, on Linux, LLVM's and Intel's library have it
    except (OSError, AttributeError):
        return False
    start.argtypes, start.restype = [_Region, ctypes.py_object, ctypes.c_uint, ctypes.c_uint], None
    return start


def forget() -> None:
    """After a fork: the child has none of the threads, and the library would wait for them."""
    global _start
    _start = False


def run(tasks: Sequence[Callable[[], None]]) -> None:
    """Every task, on as many threads as there are tasks, the calling one among them. Raises the first of their errors."""
    work = _Work(tasks)
    _start(_enter, work, len(tasks), 0)
    if work.errors:
        raise work.errors[min(work.errors)]
