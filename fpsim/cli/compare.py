"""`fpsim compare`: a script under several arithmetics, side by side."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fpsim import __version__
from fpsim.cli.parameters import ACCUMULATOR, POLICY_FORMAT, REPORT, InputError, Parsed
from fpsim.cli.run import ScriptCommand
from fpsim.report.plain import plain

if TYPE_CHECKING:
    from fpsim.report.runs import Run


def _arithmetic(text: str) -> str:
    """As it stands, "fp16", "fp16/fp16" or "native": a format and, after a slash, its accumulator."""
    from fpsim.emulation.machine.policy import make_policy

    fmt, _, accumulate = text.partition("/")
    try:
        make_policy(POLICY_FORMAT.convert(fmt, None, None), ACCUMULATOR.convert(accumulate or "fp32", None, None))
    except (NotImplementedError, InputError) as error:
        raise ValueError(str(error)) from None
    return text


@click.command(cls=ScriptCommand, options_metavar="SCRIPT [OPTIONS] [SCRIPT ARGUMENTS]...", add_help_option=True)
@click.argument("script", metavar="")
@click.option(
    "--fmt", "arithmetics", type=Parsed("arithmetic", _arithmetic), multiple=True, required=True,
    help="FORMAT or FORMAT/ACCUMULATOR; once for each. The others are compared with the first.",
)  # fmt: skip
@click.option("--report", "page", type=REPORT, default="fpsim-compare.html", show_default=True, help="Where the page goes.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="How many run at a time.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where finished runs are kept, to go on from.  [default: none]")
@click.pass_context
def compare(ctx: click.Context, script: str, arithmetics: tuple[str, ...], page: Path, jobs: int, folder: Path | None) -> None:
    """Run a script under several arithmetics, each in a process of its own, and write one page.

    The page has what `fpsim run --report` keeps of each, and the losses: what the script's backward passes start from.
    What the script prints goes to a file for each arithmetic in the folder, and nowhere without one. A run that is
    finished is not made again while the folder, the script and its arguments are the same. Ctrl-C writes what is
    finished.
    """
    if "is_module" in ctx.meta:
        raise InputError(f"compare takes a script, not a module: one line, `import runpy; runpy.run_module({script!r}, "
                         "run_name='__main__', alter_sys=True)`, makes one")
    if not os.path.isfile(script):
        raise InputError(f"there is no script {script!r}")
    from tempfile import TemporaryDirectory

    from fpsim.report.comparison import Comparison

    with TemporaryDirectory() as scratch:
        kept = folder if folder is not None else Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        tasks = [_Task(text, script, tuple(ctx.meta["script_words"]), kept, jobs) for text in dict.fromkeys(arithmetics)]
        runs, interrupted = _run_all(tasks, jobs)
    if interrupted and not runs:
        raise SystemExit(130)
    if not runs:
        raise InputError(f"no run left a report; {script!r} fails under each arithmetic as it does in `fpsim run`")
    comparison = Comparison(tuple(runs))
    comparison.save(page)
    for line in str(comparison).splitlines():
        click.echo(plain(line))
    click.echo(f"Report: {plain(str(page))}")
    if interrupted:
        raise SystemExit(130)


def _run_all(tasks: list[_Task], jobs: int) -> tuple[list[Run], bool]:
    """The runs that left a report, in their order; whether Ctrl-C, which the processes have been sent as well, ended it."""
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task.run) for task in tasks]
        interrupted = False
        try:
            wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            interrupted = True
        pool.shutdown(cancel_futures=True)
    results = [future for future in futures if not future.cancelled()]
    failed = [error for future in results if (error := future.exception()) is not None]
    for error in failed:
        if not isinstance(error, KeyboardInterrupt):
            raise error
    finished = [future.result() for future in results if future.exception() is None]
    return [run for run in finished if run is not None], interrupted or bool(failed)


@dataclass(frozen=True)
class _Task:
    """One arithmetic in a process of its own."""

    text: str
    script: str
    words: tuple[str, ...]
    folder: Path
    jobs: int

    @property
    def place(self) -> Path:
        """Where its report is kept: a name that says the arithmetic, the script and its arguments."""
        parts = (__version__, self.text, Path(self.script).read_text(encoding="utf-8", errors="replace"), *self.words)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
        name = "".join(letter if letter.isalnum() else "-" for letter in self.text)
        return self.folder / f"{name}.{key}.json"

    def run(self) -> Run | None:
        """The finished run, made now or before; None where the process left no report."""
        from fpsim.report.report import Report
        from fpsim.report.runs import Run

        finished = self.place.with_suffix(".seconds")
        if not finished.exists():
            seconds = self._make()
            if not self.place.exists():
                return None
            report = Report.from_json(self.place.read_text(encoding="utf-8"))
            if report.ending.startswith("KeyboardInterrupt"):
                return Run(self.text, report, seconds=seconds)
            finished.write_text(repr(seconds))
        report = Report.from_json(self.place.read_text(encoding="utf-8"))
        return Run(self.text, report, seconds=float(finished.read_text()))

    def _make(self) -> float:
        fmt, _, accumulate = self.text.partition("/")
        options = ["--fmt", fmt, "--accumulate", accumulate or "fp32", "--report", str(self.place), "--losses"]
        command = [sys.executable, "-m", "fpsim.cli", "run", self.script, *options, "--", *self.words]
        environment: dict[str, Any] = {**os.environ}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // self.jobs)))
        start = time.perf_counter()
        with open(self.place.with_suffix(".out"), "wb") as output:
            subprocess.run(command, stdout=output, stderr=subprocess.STDOUT, env=environment, check=False)
        return time.perf_counter() - start
