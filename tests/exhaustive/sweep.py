"""What a sweep is: a function that counts cases and mismatches over tasks handed to worker processes."""

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable
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


def _start() -> None:
    import torch

    from fpsim.backend import threads

    torch.set_num_threads(1)
    threads.set_num_threads(1)


@functools.cache
def _pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"), initializer=_start)


def total(function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]]) -> Result:
    """The sum of `function(*task)` over all tasks, on every processor."""
    waiting = [_pool().submit(function, *task) for task in tasks]
    return sum((future.result() for future in waiting), Result(0, 0))
