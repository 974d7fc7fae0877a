"""The demo's arithmetics, several at a time, in processes of their own: `python -m fpsim.cli.arms` is one.

This process asks by lines of JSON, a request each: "check", "compile" or "train", and its words. The other answers a line, an
object, after the loss of each step.
"""

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
from functools import cache, partial
from queue import Empty, Queue
from typing import Any

from fpsim.cli.outcome import PARTS, Outcome
from fpsim.report.report import Report

Arm = tuple[str, str]  # a format and an accumulator
Done = Callable[[int, float], None]  # the number of an arithmetic, and the loss of its next step


def train_all(
    arms: Sequence[Arm], epochs: int, seed: int, jobs: int, begun: Callable[[], None], done: Done
) -> tuple[list[Outcome], bool]:
    """What became of each arithmetic that took a step, in their order, and whether Ctrl-C ended it.

    With one job all are trained here. `begun` is called, by several threads, once nothing is refused. Raises ValueError, before
    any training, where one cannot be emulated, and RuntimeError where another process fails, with what it said.
    """
    if jobs == 1:
        return _in_turn(arms, epochs, seed, begun, done)
    pending: Queue[tuple[int, tuple[Any, ...]]] = Queue()
    for arm in arms[:jobs]:
        for part in range(PARTS):  # or else each would compile what the others do at the same time
            pending.put((-1, ("compile", part, *arm)))
    for number, arm in enumerate(arms):
        pending.put((number, ("train", *arm, epochs, seed)))
    workers = [_Worker(arms, max(1, (os.cpu_count() or 1) // jobs)) for _ in range(jobs)]
    interrupted = False
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(worker.run, pending, begun, done) for worker in workers]
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            interrupted = True
        for worker in workers:
            worker.stop()
    outcomes = {number: outcome for future in futures for number, outcome in future.result().items() if outcome.losses}
    return [outcomes[number] for number in sorted(outcomes)], interrupted


def _in_turn(
    arms: Sequence[Arm], epochs: int, seed: int, begun: Callable[[], None], done: Done
) -> tuple[list[Outcome], bool]:
    from fpsim.cli import digits

    digits.check(arms)
    begun()
    data, outcomes = digits.Digits.load(), list[Outcome]()
    for number, arm in enumerate(arms):
        outcomes.append(Outcome())
        try:
            digits.train(outcomes[-1], data, *arm, epochs, seed, partial(done, number))
        except KeyboardInterrupt:
            return outcomes, True
    return outcomes, False


class _Worker:
    """A process that does one thing after the other. No Ctrl-C reaches it but through `stop`, and it ends when nobody asks it
    for more, or reads what it says."""

    def __init__(self, arms: Sequence[Arm], threads: int):
        self._arms = arms
        self._command = [sys.executable, "-m", "fpsim.cli.arms"]
        self._environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self._running: subprocess.Popen[str] | None = None
        self._stopped = False

    def run(
        self, pending: Queue[tuple[int, tuple[Any, ...]]], begun: Callable[[], None], done: Done
    ) -> dict[int, Outcome]:
        """What became of those that it took, by number."""
        outcomes: dict[int, Outcome] = {}
        with tempfile.TemporaryFile("w+") as said:
            pipe = subprocess.PIPE
            with subprocess.Popen(
                self._command, stdin=pipe, stdout=pipe, stderr=said, text=True, env=self._environment, start_new_session=True
            ) as process:
                self._running = process
                number, request = -1, ("check", *self._arms)
                with suppress(Empty):
                    while not self._stopped:
                        answer = self._ask(process, request, partial(done, number))
                        if answer is None and not self._stopped:
                            process.wait()
                            said.seek(0)
                            raise RuntimeError(f"{' '.join(map(str, request))} failed: {said.read()[-2000:]}")
                        if answer and "refused" in answer:
                            raise ValueError(answer["refused"])
                        if answer is not None and request[0] == "check":
                            begun()
                        if answer and "report" in answer:
                            outcomes[number] = Outcome(**{**answer, "report": Report.from_json(answer["report"])})
                        number, request = pending.get_nowait()
        return outcomes

    def _ask(self, process: subprocess.Popen[str], request: Sequence[Any], done: Callable[[float], None]) -> Any:
        """The answer; None where the process ended before it could say so."""
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            value = json.loads(line)
            if isinstance(value, dict):
                return value
            done(value)
        return None

    def stop(self) -> None:
        """End it at its next step; what it came to is kept."""
        self._stopped = True
        if self._running is not None and self._running.poll() is None:
            self._running.send_signal(signal.SIGINT)


def main() -> None:
    """Do what each line of standard input says; Ctrl-C ends it all, and what a training came to by then is told."""
    from fpsim.cli import digits

    data = cache(digits.Digits.load)

    def train(fmt: str, accumulate: str, epochs: int, seed: int) -> None:
        outcome = Outcome()
        try:
            digits.train(outcome, data(), fmt, accumulate, epochs, seed, lambda loss: print(loss, flush=True))
        finally:
            if outcome.report is not None:
                print(json.dumps({**vars(outcome), "report": outcome.report.to_json()}), flush=True)

    def compile_part(*words: Any) -> None:
        digits.compile_part(*words)
        print("{}", flush=True)

    def check(*arms: Arm) -> None:
        try:
            digits.check(arms)
        except ValueError as error:
            print(json.dumps({"refused": str(error)}), flush=True)
        else:
            print("{}", flush=True)

    requests: dict[str, Callable[..., None]] = {"check": check, "compile": compile_part, "train": train}
    with suppress(KeyboardInterrupt):
        for line in sys.stdin:
            request, *words = json.loads(line)
            requests[request](*words)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    main()
