"""Named sets of work whose kernels `fpsim warm` has compiled, and the processes that do it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any


@dataclass(frozen=True)
class Work:
    """A function of a module, `kernels_of_arrays` or `kernels_of_models`, and its keywords: what one process does at a time."""

    module: str
    function: str
    policy: dict[str, Any] = field(default_factory=dict)


def _training(**policy: str) -> tuple[Work, ...]:
    return tuple(Work("kernels_of_models", name, policy) for name in ("train_cnn", "train_transformer"))


def _arrays(*functions: str) -> tuple[Work, ...]:
    return tuple(Work("kernels_of_arrays", name) for name in functions)


SETS: dict[str, tuple[Work, ...]] = {
    "training-fp16": (*_training(fmt="fp16", accumulate="fp16"), *_training(fmt="fp16")),
    "training-bf16": _training(fmt="bf16"),
    "training-primitive": _training(fmt="fp16", granularity="primitive"),
    "arrays": _arrays("products", "sums", "convolutions", "operations", "roundings", "codes", "bounds"),
    "functions": _arrays("functions"),
    "hardware": _arrays("units", "hardware"),
    "certificates": (Work("kernels_of_models", "certificates"),),
}
EVERYTHING = "everything"


def work_of(names: tuple[str, ...]) -> list[Work]:
    """What these sets need, each piece once; all of `SETS` for "everything"."""
    chosen = SETS if EVERYTHING in names else names
    works: list[Work] = []
    for name in chosen:
        works.extend(work for work in SETS[name] if work not in works)
    return works


def do(work: Work) -> int:
    """How many functions were compiled for it."""
    from numba.core import event

    import fpsim

    fpsim.set_num_threads(1)  # the other cores have work of their own
    warnings.simplefilter("ignore")  # of numbers that overflow: nobody reads the results
    with event.install_recorder("numba:compile") as recorded:
        getattr(import_module(f"fpsim.cli.{work.module}"), work.function)(**work.policy)
    return sum(one.is_start for _, one in recorded.buffer)


def do_each(pieces: list[Work], processes: int) -> Iterator[int]:
    """`do` in fresh processes, so many at a time; results as they come."""
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    with ProcessPoolExecutor(min(processes, len(pieces)), get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(do, piece) for piece in pieces]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
