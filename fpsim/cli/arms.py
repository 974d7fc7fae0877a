"""The demo's arithmetics, several at a time, in processes of their own: `python -m fpsim.cli.arms` is one."""

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
from queue import Empty, Queue

from fpsim.cli import digits
from fpsim.cli.digits import Digits, Outcome
from fpsim.report.report import Report

Done = Callable[[int, float], None]  # the number of an arithmetic, and the loss of its next step


def train_all(
    arms: Sequence[tuple[str, str]], epochs: int, seed: int, jobs: int, done: Done
) -> tuple[list[Outcome], bool]:
    """What became of each (format, accumulator) that took a step, in their order, and whether Ctrl-C ended it.

    With one job all are trained here. Raises RuntimeError where another process fails, with what it said.
    """
    if jobs == 1:
        return _in_turn(arms, epochs, seed, done)
    pending: Queue[tuple[int, tuple[str, str]]] = Queue()
    for numbered in enumerate(arms):
        pending.put(numbered)
    workers = [_Worker(epochs, seed, max(1, (os.cpu_count() or 1) // jobs)) for _ in range(jobs)]
    interrupted = False
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(worker.run, pending, done) for worker in workers]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            interrupted = True
        for worker in workers:
            worker.stop()
    outcomes = {number: outcome for future in futures for number, outcome in future.result().items() if outcome.losses}
    return [outcomes[number] for number in sorted(outcomes)], interrupted


def _in_turn(arms: Sequence[tuple[str, str]], epochs: int, seed: int, done: Done) -> tuple[list[Outcome], bool]:
    data, outcomes = Digits.load(), list[Outcome]()
    for number, arm in enumerate(arms):
        outcomes.append(Outcome())
        try:
            digits.train(outcomes[-1], data, *arm, epochs, seed, partial(done, number))
        except KeyboardInterrupt:
            return outcomes, True
    return outcomes, False


class _Worker:
    """A process that trains one arithmetic after the other. No Ctrl-C reaches it but through `stop`, and it ends when nobody
    asks it for more, or reads what it says."""

    def __init__(self, epochs: int, seed: int, threads: int):
        self._rest = epochs, seed
        self._command = [sys.executable, "-m", "fpsim.cli.arms"]
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(self, pending: Queue[tuple[int, tuple[str, str]]], done: Done) -> dict[int, Outcome]:
        """What became of those that it took, by number."""
        found: dict[int, Outcome] = {}
        with tempfile.TemporaryFile("w+") as said:
            pipe = subprocess.PIPE
            with subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=self._environment, start_new_session=True
            ) as process:
                self._running = process
                with suppress(Empty):
                    while not self._stopped:
                        number, arm = pending.get_nowait()
                        outcome = self._ask(process, arm, partial(done, number))
                        if outcome is None and not self._stopped:
                            process.wait()
                            said.seek(0)
                            raise RuntimeError(f"training in {'/'.join(arm)} failed: {said.read()[-2000:]}")
                        if outcome is not None:
                            found[number] = outcome
        return found

    def _ask(self, process: subprocess.Popen[str], arm: tuple[str, str], done: Callable[[float], None]) -> Outcome | None:
        """What became of one; None where the process ended before it could say so."""
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([*arm, *self._rest]) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            value = json.loads(line)
            if isinstance(value, dict):
                return replace(Outcome(**value), report=Report.from_json(value["report"]))
            done(value)
        return None

    def stop(self) -> None:
        """End it at its next step; what it came to is kept."""
        self._stopped = True
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)


def main() -> None:
    """Train what each line of standard input says: a loss a line, then the outcome as JSON; Ctrl-C ends it all."""
    data = Digits.load()
    with suppress(KeyboardInterrupt):
        for line in sys.stdin:
            outcome, (fmt, accumulate, epochs, seed) = Outcome(), json.loads(line)
            try:
                digits.train(outcome, data, fmt, accumulate, epochs, seed, lambda loss: print(loss, flush=True))
            finally:
                if outcome.report is not None:
                    print(json.dumps({**vars(outcome), "report": outcome.report.to_json()}), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    main()
