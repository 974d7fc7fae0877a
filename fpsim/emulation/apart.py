"""Arithmetics in processes of their own, several at a time: what is finished is kept, and not run again."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from fpsim.emulation.signals import ATTENDED, at_sigterm
from fpsim.report.report import Report
from fpsim.report.runs import Run


@dataclass(frozen=True)
class Task:
    """A process that leaves one arithmetic's report.

    place : where it leaves it, in a name that says all that it depends on. Beside it lie what it prints, ".out", and, once it
        is finished, how long it took, ".seconds".
    """

    name: str
    place: Path
    command: tuple[str, ...]

    @property
    def output(self) -> Path:
        return self.place.with_suffix(".out")


class Processes:
    """Those that run now. No Ctrl-C of a terminal reaches them but through `interrupt`, and none outlives this process."""

    def __init__(self, jobs: int):
        self._environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs)), **os.environ, ATTENDED: "1"}
        self._running: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()
        self._is_interrupted = False

    def run(self, task: Task) -> None:
        """Start a task's process and wait for it; nothing once there was an interrupt."""
        with open(task.output, "wb") as output:
            with self._lock:
                if self._is_interrupted:
                    return
                process = subprocess.Popen(
                    task.command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT, env=self._environment,
                    start_new_session=True,
                )  # fmt: skip
                self._running.add(process)
            process.wait()
        assert process.stdin is not None
        process.stdin.close()
        with self._lock:
            self._running.discard(process)

    def interrupt(self) -> None:
        """Ctrl-C for all that run, which then leave the reports of what they did."""
        with self._lock:
            self._is_interrupted = True
            for process in self._running:
                process.send_signal(signal.SIGINT)


def run_all(tasks: Sequence[Task], jobs: int) -> tuple[list[Run | None], bool]:
    """What became of each task, `jobs` at a time: None where no report was left; and whether Ctrl-C or SIGTERM ended it.

    A task that is finished is not run again; one that an interrupt ended is.
    """
    processes, interrupted = Processes(jobs), False
    with ThreadPoolExecutor(jobs) as pool, at_sigterm(signal.default_int_handler):  # else what runs would be left behind
        futures = [pool.submit(_run_of, task, processes) for task in tasks]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            interrupted = True
            processes.interrupt()
        pool.shutdown(cancel_futures=True)
    errors = [None if future.cancelled() else future.exception() for future in futures]
    for error in errors:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            raise error
    runs = [
        future.result() if error is None and not future.cancelled() else None
        for future, error in zip(futures, errors, strict=True)
    ]
    return runs, interrupted or any(error is not None for error in errors)


def _run_of(task: Task, processes: Processes) -> Run | None:
    """The run, made now or before."""
    finished = task.place.with_suffix(".seconds")
    if not finished.exists():
        task.place.unlink(missing_ok=True)  # what an interrupt left
        start = time.perf_counter()
        processes.run(task)
        seconds = time.perf_counter() - start
        if not task.place.exists():
            return None
        report = Report.from_json(task.place.read_text(encoding="utf-8"))
        if report.ending.startswith(("KeyboardInterrupt", "Terminated")):
            return Run(task.name, report, seconds=seconds)
        finished.write_text(repr(seconds))
    report = Report.from_json(task.place.read_text(encoding="utf-8"))
    return Run(task.name, report, seconds=float(finished.read_text()))
