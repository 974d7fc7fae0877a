"""Runs that are missing, computed here or elsewhere: an executor takes runs and gives records as they are finished."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path

from experiments.runs import Record, Run
from experiments.store import Store
from experiments.threads import one_thread

Measure = Callable[[Run], Record]
#: (the store, the runs, what computes one) -> records as they are finished, each of them in the store by then.
Executor = Callable[[Store, Sequence[Run], Measure], Iterator[Record]]


def missing(store: Store, runs: Sequence[Run]) -> list[Run]:
    """The runs that have no record yet."""
    kept = store.records()
    return [run for run in runs if run.key not in kept]


def in_this_process(store: Store, runs: Sequence[Run], measure: Measure) -> Iterator[Record]:
    """One after the other."""
    for run in runs:
        yield store.complete(run, measure)


def in_processes(jobs: int) -> Executor:
    """Local processes, each of which keeps its results itself: whoever is killed, what is finished is there."""

    def execute(store: Store, runs: Sequence[Run], measure: Measure) -> Iterator[Record]:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        with ProcessPoolExecutor(jobs, context, initializer=_begin_worker) as pool:
            futures = [pool.submit(_complete, store.path, run, measure) for run in runs]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(cancel_futures=True)

    return execute


def _complete(path: Path, run: Run, measure: Measure) -> Record:
    return Store(path).complete(run, measure)


def _begin_worker() -> None:
    """One thread of torch, and an end when the process that started this one ends, in whatever way."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=partial(_end_with, parent.sentinel), daemon=True).start()
    one_thread()


def _end_with(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def on_dask(address: str) -> Executor:
    """The workers of a Dask cluster: `dask://host:port`, or `dask://local` for two worker processes here.

    Results come to this process, which keeps them: workers need no disk in common. A run whose worker dies goes to another.
    Raises ImportError naming the extra where Dask is not installed.
    """

    def execute(store: Store, runs: Sequence[Run], measure: Measure) -> Iterator[Record]:
        try:
            from distributed import Client, LocalCluster, as_completed as as_finished

            from experiments.dask_workers import OneThread
        except ImportError as error:
            raise ImportError(f"--executor {address}: install the extra, pip install '.[cluster]' ({error})") from None
        with contextlib.ExitStack() as stack:
            target = address.removeprefix("dask://")
            if target == "local":
                target = stack.enter_context(LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None))
            client = stack.enter_context(Client(target))
            client.register_plugin(OneThread())
            futures = client.map(measure, runs, pure=False)
            for future in as_finished(futures):
                yield store.append(future.result())

    return execute


def make_executor(text: str, jobs: int) -> Executor:
    """What `--executor` and `--jobs` ask for. Raises ValueError for what is not known."""
    if text.startswith("dask://"):
        return on_dask(text)
    if text != "local":
        raise ValueError(f"--executor: {text!r} is not known; there are local and dask://HOST:PORT (or dask://local)")
    return in_this_process if jobs == 1 else in_processes(jobs)
