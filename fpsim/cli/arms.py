"""The demo's arithmetics, several at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import wait as wait_for
from typing import Any

import torch

from fpsim.cli import digits
from fpsim.cli.digits import Digits, Outcome

_OFTEN = 0.1  # seconds between looks at what processes told

_digits: Digits
_told: Any  # a queue of (number of the arithmetic, loss)
_stop: Any  # an event


def train_all(
    arms: Sequence[tuple[str, str]], data: Digits, epochs: int, seed: int, jobs: int, done: Callable[[int, float], None]
) -> tuple[list[Outcome], bool]:
    """What became of each (format, accumulator) that was begun, in their order, and whether Ctrl-C ended it.

    `done(number, loss)` is called here after every step of an arithmetic, in whatever process it was made.
    """
    if jobs == 1:
        return _in_turn(arms, data, epochs, seed, done)
    context = multiprocessing.get_context("spawn")
    told, stop = context.SimpleQueue(), context.Event()
    arrays = [getattr(data, name).numpy() for name in Digits.__dataclass_fields__]
    begin = told, stop, arrays, max(1, torch.get_num_threads() // jobs)
    interrupted = False
    with ProcessPoolExecutor(jobs, context, _begin, begin) as pool:
        with _signal_kept():
            futures = [pool.submit(_train, number, *arm, epochs, seed) for number, arm in enumerate(arms)]
        try:
            _follow(futures, told, done)
        except KeyboardInterrupt:
            interrupted = True
            stop.set()
            for future in futures:
                future.cancel()
            _follow([future for future in futures if not future.cancelled()], told, lambda *step: None)
    return [future.result() for future in futures if not future.cancelled()], interrupted


@contextmanager
def _signal_kept() -> Iterator[None]:
    """Processes that start in here get no Ctrl-C, which this one gets afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _follow(futures: Sequence[Future[Outcome]], told: Any, done: Callable[[int, float], None]) -> None:
    """Pass on what is told until all have ended or one has failed."""
    running = True
    while running:
        running = bool(wait(futures, _OFTEN, FIRST_EXCEPTION).not_done) and not _has_failed(futures)
        while not told.empty():
            done(*told.get())


def _has_failed(futures: Sequence[Future[Outcome]]) -> bool:
    return any(future.done() and not future.cancelled() and future.exception() is not None for future in futures)


def _in_turn(
    arms: Sequence[tuple[str, str]], data: Digits, epochs: int, seed: int, done: Callable[[int, float], None]
) -> tuple[list[Outcome], bool]:
    outcomes: list[Outcome] = []
    for number, arm in enumerate(arms):
        outcomes.append(Outcome())
        try:
            digits.train(outcomes[-1], data, *arm, epochs, seed, partial(done, number))
        except KeyboardInterrupt:
            return outcomes, True
    return outcomes, False


# In a process of its own


def _begin(told: Any, stop: Any, arrays: list[Any], threads: int) -> None:
    global _told, _stop, _digits
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _told, _stop, _digits = told, stop, Digits(*map(torch.from_numpy, arrays))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait_for([parent.sentinel])
    os._exit(1)


def _train(number: int, fmt: str, accumulate: str, epochs: int, seed: int) -> Outcome:
    def done(loss: float) -> None:
        _told.put((number, loss))
        if _stop.is_set():
            raise KeyboardInterrupt

    outcome = Outcome()
    with suppress(KeyboardInterrupt):  # the outcome says so: nothing was tested
        digits.train(outcome, _digits, fmt, accumulate, epochs, seed, done)
    return outcome
