"""The demo's arithmetics, several at a time, each in a process of its own: `python -m fpsim.cli.arms` trains one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from functools import partial

from fpsim.cli import digits
from fpsim.cli.digits import Digits, Outcome
from fpsim.report.report import Report

Done = Callable[[int, float], None]  # the number of an arithmetic, and the loss of its next step


def train_all(
    arms: Sequence[tuple[str, str]], data: Digits, epochs: int, seed: int, jobs: int, done: Done
) -> tuple[list[Outcome], bool]:
    """What became of each (format, accumulator) that took a step, in their order, and whether Ctrl-C ended it.

    With one job all are trained here. Raises RuntimeError where another process fails, with what it said.
    """
    if jobs == 1:
        return _in_turn(arms, data, epochs, seed, done)
    processes = [_Process(arm, epochs, seed, max(1, (os.cpu_count() or 1) // jobs)) for arm in arms]
    interrupted = False
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(process.run, partial(done, number)) for number, process in enumerate(processes)]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            interrupted = True
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.stop()
    outcomes = [future.result() for future in futures if not future.cancelled()]
    return [outcome for outcome in outcomes if outcome is not None and outcome.losses], interrupted


def _in_turn(
    arms: Sequence[tuple[str, str]], data: Digits, epochs: int, seed: int, done: Done
) -> tuple[list[Outcome], bool]:
    outcomes: list[Outcome] = []
    for number, arm in enumerate(arms):
        outcomes.append(Outcome())
        try:
            digits.train(outcomes[-1], data, *arm, epochs, seed, partial(done, number))
        except KeyboardInterrupt:
            return outcomes, True
    return outcomes, False


class _Process:
    """One arithmetic in a process that no Ctrl-C reaches but through `stop`, and that ends when nobody reads what it says."""

    def __init__(self, arm: tuple[str, str], epochs: int, seed: int, threads: int):
        self._command = [sys.executable, "-m", "fpsim.cli.arms", *arm, str(epochs), str(seed)]
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, done: Callable[[float], None]) -> Outcome | None:
        """What became of it; None where it was stopped before it began."""
        if self._stopped:
            return None
        outcome = None
        with tempfile.TemporaryFile("w+") as said:
            self._running = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=said, text=True, env=self._environment, start_new_session=True
            )
            with self._running as process:
                assert process.stdout is not None
                for line in process.stdout:
                    value = json.loads(line)
                    if isinstance(value, float):
                        done(value)
                    else:
                        outcome = replace(Outcome(**value), report=Report.from_json(value["report"]))
            if outcome is None and not self._stopped:
                said.seek(0)
                raise RuntimeError(f"{' '.join(self._command)} failed: {said.read()[-2000:]}")
        return outcome

    def stop(self) -> None:
        """End it at its next step; what it came to is kept."""
        self._stopped = True
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)


def main() -> None:
    """Train the arithmetic of the command's arguments: a loss a line, then the outcome as JSON."""
    fmt, accumulate, epochs, seed = sys.argv[1:]
    outcome = Outcome()
    with suppress(KeyboardInterrupt):  # the outcome says so: nothing was tested
        digits.train(outcome, Digits.load(), fmt, accumulate, int(epochs), int(seed), lambda loss: print(loss, flush=True))
    if outcome.report is not None:
        print(json.dumps({**vars(outcome), "report": outcome.report.to_json()}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    main()
