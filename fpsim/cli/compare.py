"""`fpsim compare`: a script under several arithmetics, side by side."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fpsim import __version__
from fpsim.cli.parameters import ACCUMULATOR, POLICY_FORMAT, REPORT, InputError, Parsed
from fpsim.cli.run import ScriptCommand
from fpsim.report.plain import plain

if TYPE_CHECKING:
    from fpsim.emulation.apart import Task


def _arithmetic(text: str) -> str:
    """As it stands, "fp16", "fp16/fp16" or "native": a format and, after a slash, its accumulator."""
    from fpsim.emulation.machine.policy import make_policy

    fmt, _, accumulate = text.partition("/")
    try:
        make_policy(POLICY_FORMAT.convert(fmt, None, None), ACCUMULATOR.convert(accumulate or "fp32", None, None))
    except (NotImplementedError, InputError) as error:
        raise ValueError(str(error)) from None
    return text


@click.command(cls=ScriptCommand, options_metavar="SCRIPT [OPTIONS] [SCRIPT ARGUMENTS]...")
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
    finished is not made again while the folder, the script and its arguments are the same. Ctrl-C, or SIGTERM, writes
    what is finished.
    """
    if "is_module" in ctx.meta:
        raise InputError(f"compare takes a script, not a module: one line, `import runpy; runpy.run_module({script!r}, "
                         "run_name='__main__', alter_sys=True)`, makes one")
    if not os.path.isfile(script):
        raise InputError(f"there is no script {script!r}")
    from tempfile import TemporaryDirectory

    from fpsim.emulation.apart import run_all
    from fpsim.report.comparison import Comparison

    with TemporaryDirectory() as scratch:
        kept = folder if folder is not None else Path(scratch)
        kept.mkdir(parents=True, exist_ok=True)
        tasks = [_task(text, script, tuple(ctx.meta["script_words"]), kept) for text in dict.fromkeys(arithmetics)]
        found, interrupted = run_all(tasks, jobs)
    runs = tuple(run for run in found if run is not None)
    if interrupted and not runs:
        raise SystemExit(130)
    if not runs:
        raise InputError(f"no run left a report; {script!r} fails under each arithmetic as it does in `fpsim run`")
    comparison = Comparison(runs)
    comparison.save(page)
    for line in str(comparison).splitlines():
        click.echo(plain(line))
    click.echo(f"Report: {plain(str(page))}")
    if interrupted:
        raise SystemExit(130)


def _task(text: str, script: str, words: tuple[str, ...], folder: Path) -> Task:
    """One arithmetic; its report has a name that says the arithmetic, the script and its arguments."""
    from fpsim.emulation.apart import Task

    parts = (__version__, text, Path(script).read_text(encoding="utf-8", errors="replace"), *words)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
    place = folder / f"{''.join(letter if letter.isalnum() else '-' for letter in text)}.{key}.json"
    fmt, _, accumulate = text.partition("/")
    options = ("--fmt", fmt, "--accumulate", accumulate or "fp32", "--report", str(place), "--losses")
    return Task(text, place, (sys.executable, "-m", "fpsim.cli", "run", script, *options, "--", *words))
