"""What a sweep is: a function that counts cases and mismatches over tasks handed to worker processes."""

import contextlib
import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """Counts of a sweep or a part of it. `nearest` is the least distance to a midpoint where one is measured."""

    cases: int
    mismatches: int
    nearest: float = float("inf")

    def __add__(self, other: "Result") -> "Result":
        return Result(
            self.cases + other.cases, self.mismatches + other.mismatches, min(self.nearest, other.nearest)
        )


@dataclass(frozen=True)
class Sweep:
    """One line of the conformance page."""

    section: str
    what: str
    oracle: str
    run: Callable[[], Result]

    def __str__(self) -> str:
        return self.what


SWEEPS: list[Sweep] = []


def sweep(section: str, what: str, oracle: str) -> Callable[[Callable[[], Result]], Callable[[], Result]]:
    """Register the decorated function as a sweep."""

    def register(run: Callable[[], Result]) -> Callable[[], Result]:
        assert what not in {found.what for found in SWEEPS}, what
        SWEEPS.append(Sweep(section, what, oracle, run))
        return run

    return register


def _one_thread() -> None:
    import torch

    from fpsim.backend import threads

    torch.set_num_threads(1)
    threads.set_num_threads(1)


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    import torch

    from fpsim.backend import threads

    count = torch.get_num_threads()
    _one_thread()
    try:
        yield
    finally:
        torch.set_num_threads(count)
        threads.set_num_threads(None)


@functools.cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), initializer=_one_thread)


def total(function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Result:
    """The sum of `function(*task)` over all tasks, on every processor; where pytest has workers on them, on the worker's."""
    if int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > 1:
        with _alone():
            return sum((function(*task) for task in tasks), Result(0, 0))
    waiting = [_pool().submit(function, *task) for task in tasks]
    return sum((future.result() for future in waiting), Result(0, 0))
