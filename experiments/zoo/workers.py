"""Processes that try models, each one at a time and with a limit: that one dies or takes too long is a finding too."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from experiments.threads import one_thread

_spawn = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
Finding = dict[str, Any]


class _Worker:
    """A process that is there when it is needed."""

    def __init__(self, task: Callable[[str], Finding], limit: float):
        self._task, self._limit = task, limit
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None

    def __call__(self, key: str) -> Finding:
        """What the task finds of the key; `stopped`, why it found nothing."""
        connection = self._ready()
        try:
            connection.send(key)
            if connection.poll(self._limit):
                return connection.recv()
            reason = f"no end within {self._limit:g} s"
        except (EOFError, OSError):
            reason = "the process died"
        self.close()
        return {"stopped": reason}

    def _ready(self) -> Connection:
        if self._process is None or self._connection is None:
            self._connection, theirs = _spawn.Pipe()
            self._process = _spawn.Process(target=_serve, args=(theirs, self._task), daemon=True)
            self._process.start()
            theirs.close()
            self._connection.recv()  # once its imports are made, which no model is charged for
        return self._connection

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(connection: Connection, task: Callable[[str], Finding]) -> None:
    warnings.simplefilter("ignore")
    one_thread()
    connection.send(None)
    while True:
        connection.send(task(connection.recv()))


def findings(
    task: Callable[[str], Finding], keys: Sequence[str], jobs: int, limit: float
) -> Iterator[tuple[str, Finding]]:
    """Each key and what the task finds of it, as they end. `limit` is seconds for a key."""
    waiting = iter(keys)
    workers = [_Worker(task, limit) for _ in range(jobs)]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            running = {pool.submit(worker, key): (worker, key) for worker, key in zip(workers, waiting, strict=False)}
            while running:
                done = next(as_completed(running))
                worker, key = running.pop(done)
                yield key, done.result()
                following = next(waiting, None)
                if following is not None:
                    running[pool.submit(worker, following)] = worker, following
        finally:
            for worker in workers:
                worker.close()
