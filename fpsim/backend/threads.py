"""The threads that kernels run on: serial kernels without the GIL; torch's own threads, or a pool, split rows among them.

How many threads there are never changes a result: each writes rows of its own, and stochastic draws are a function of the
element.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from fpsim.backend import team
from fpsim.backend.subnormals import refuse_flush_to_zero

SPLIT_ABOVE = 1_000_000  # multiply-adds: below, handing out work costs more than it gains

_PREFIX = "fpsim-kernels"

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_chosen: int | None = None
_inside = threading.local()


def set_num_threads(count: int | None) -> None:
    """Use `count` threads; None follows torch (`torch.get_num_threads()`), or the processors where torch is absent.

    Raises
    ------
    ValueError, TypeError : for anything but None or an int of at least 1.
    """
    global _chosen
    if count is not None:
        if not isinstance(count, int) or isinstance(count, bool):
            raise TypeError(f"count must be an int or None, got {count!r}")
        if count < 1:
            raise ValueError(f"count must be at least 1, got {count}")
    _chosen = count


def get_num_threads() -> int:
    """How many threads a large product runs on."""
    if _chosen is not None:
        return _chosen
    torch = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "get_num_threads"):
        return int(torch.get_num_threads())
    return os.cpu_count() or 1


def _executor(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            if _pool is not None:
                _pool.shutdown(wait=False)
            _pool = ThreadPoolExecutor(size, thread_name_prefix=_PREFIX)
            _pool_size = size
        return _pool


def serves_kernels(thread: threading.Thread) -> bool:
    """Whether this is a thread of the pool, which runs kernels and nothing else."""
    return thread.name.startswith(_PREFIX)


def _forget_pool() -> None:
    """After a fork the child has none of the parent's threads, and the lock may be held by one of them."""
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()
    team.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)


def parts(length: int, work: int, granule: int = 1) -> list[tuple[int, int]]:
    """Ranges that cover 0 ... length, one for each thread worth using for `work` multiply-adds.

    Every range but the last starts and ends at a multiple of `granule`.
    """
    if work < SPLIT_ABOVE or getattr(_inside, "worker", False):
        return [(0, length)] if length else []
    count = get_num_threads()
    granules = -(-length // granule)
    count = max(1, min(count, granules))
    edges = [min(length, granule * (granules * i // count)) for i in range(count + 1)]
    return [(start, stop) for start, stop in itertools.pairwise(edges) if stop > start]


def _work(task: Callable[[int, int], None], start: int, stop: int) -> None:
    outer = getattr(_inside, "worker", False)
    _inside.worker = True  # what a task splits would wait behind the others' parts, or for ever in a pool that waits for it
    try:
        refuse_flush_to_zero()
        task(start, stop)
    finally:
        _inside.worker = outer


def run(task: Callable[[int, int], None], ranges: list[tuple[int, int]]) -> None:
    """`task(start, stop)` for every range, one on the calling thread; returns when all are done.

    Raises what a task raised, the first range's before the others'. A thread in flush-to-zero mode raises ValueError.
    """
    if not ranges:
        return
    if len(ranges) == 1:
        task(*ranges[0])
        return
    parts = [functools.partial(_work, task, start, stop) for start, stop in ranges]
    if team.is_there():
        team.run(parts)
        return
    waiting: list[Future[None]] = [_executor(len(parts) - 1).submit(part) for part in parts[1:]]
    errors: list[BaseException | None] = []
    try:
        parts[0]()
    finally:
        errors += [future.exception() for future in waiting]
    for error in errors:
        if error is not None:
            raise error
