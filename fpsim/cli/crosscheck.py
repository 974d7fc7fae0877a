"""`fpsim crosscheck`: what another machine recorded, computed again and compared bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Any

import click

from fpsim.cli.parameters import ACCUMULATOR, InputError
from fpsim.report.console import console, progress
from fpsim.report.plain import plain

if TYPE_CHECKING:
    from rich.table import Table

_COMMAND = "import sys; from fpsim.cli.replaying import main; main(sys.argv[1], sys.argv[2] or None)"
_HEADINGS = ("operation", "dtype", "bits", "differ", "fits best", "first difference: recorded -> emulated")


@click.command()
@click.argument("bundle", type=click.Path(dir_okay=False))
@click.option("--accumulate", type=ACCUMULATOR, help="Compare with this accumulator; left out, with the one that fits best.")
@click.option("--differing", is_flag=True, help="Only the operations whose bits differ.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=60, show_default=True, help="The most it may take.")
def crosscheck(bundle: str, accumulate: str | None, differing: bool, minutes: float) -> None:
    """Compare a bundle that `fpsim record` made, on this machine or another, with emulation.

    Lists every operation: whether all its bits are equal, how many elements differ, the first of them with both values, and the
    unit, order or revealed tree whose bits fit best. For a model's bundle it then names the first operation that differs.
    The exit code is 0 whether or not bits differ. A process of its own replays the bundle, in 8 GB of memory.
    """
    outcome = _replayed(bundle, accumulate, minutes)
    screen = console()
    for line in outcome["before"]:
        screen.print(plain(line))
    screen.print(_table([row["cells"] for row in outcome["rows"] if row["equal"] is False or not differing]))
    for line in [*outcome["after"], *(outcome["model"] or "").splitlines()]:
        screen.print(plain(line))


def _table(rows: list[list[str]]) -> Table:
    from rich.table import Table

    table = Table(*_HEADINGS)
    for cells in rows:
        table.add_row(*map(plain, cells))
    return table


def _replayed(bundle: str, accumulate: str | None, minutes: float) -> Any:
    """What the other process found. Raises InputError, one sentence, for what it refuses and for all that may end it."""
    command = [sys.executable, "-P", "-c", _COMMAND, bundle, accumulate or ""]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    at: list[Any] = [0, 0, ""]
    message: dict[str, Any] = {}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, env=env, text=True)
        late = threading.Event()

        def end() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(60 * minutes, end)
        timer.start()
        try:
            with process, progress() as bar:
                task = bar.add_task("reading", total=None)
                assert process.stdout is not None
                for line in process.stdout:
                    message = json.loads(line)
                    if "at" in message:
                        at = message["at"]
                        bar.update(task, completed=at[0], total=at[1], description=plain(at[2]) or "done")
        except BaseException:
            process.kill()
            raise
        finally:
            timer.cancel()
        errors.seek(0)
        told = errors.read().decode(errors="replace").strip()
    if "found" in message and process.returncode == 0:
        if told:
            click.echo(told, err=True)
        return message["found"]
    if "error" in message:
        raise InputError(message["error"])
    where = f"operation {at[0] + 1} of {at[1]} ({at[2]})" if at[2] else f"reading {bundle}"
    if late.is_set():
        raise InputError(f"{where} was not done after {minutes:g} minutes; --minutes gives it longer")
    if process.returncode < 0:
        reason = signal.Signals(-process.returncode).name
    else:
        reason = (told.splitlines() or ["no reason given"])[-1]
    raise InputError(f"{where} ended the process that replayed it: {reason}")
