"""`python -m experiments list | run | status | report`."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from experiments.claim import Claim, get_claim, measure, names
from experiments.estimate import duration, seconds_left
from experiments.execution import Executor, make_executor, missing
from experiments.runs import Run
from experiments.store import Store
from experiments.threads import one_thread

PAGE = Path(__file__).parents[1] / "docs" / "reproductions.md"
console = Console(highlight=False)


def claims_of(chosen: Sequence[str]) -> list[Claim]:
    try:
        return [get_claim(name) for name in chosen or names()]
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def use_root(context: click.Context, option: click.Parameter, root: str | None) -> None:
    """Where the files of standard data sets are, in this process and those that it starts."""
    if root is not None:
        os.environ["FPSIM_DATA"] = root


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What an experiment refuses is said without a traceback."""
    try:
        yield
    except (ValueError, ImportError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error


def which(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which runs are meant, and where their records are."""
    for option in (
        click.option("--store", type=click.Path(path_type=Path), help="A folder of your own instead of the committed results."),
        click.option(
            "--data", help="Another data set than the claim's: digits, shapes, topics, mnist, fashion-mnist, cifar10."
        ),
        click.option(
            "--root",
            type=click.Path(exists=True, file_okay=False),
            callback=use_root,
            expose_value=False,
            help="The folder of mnist, fashion-mnist or cifar10.",
        ),
        click.option("--seeds", type=click.IntRange(1), help="Seeds, instead of those of the protocol."),
        click.option("--quick", "size", flag_value="quick", help="A smaller form, kept apart from the results."),
        click.option("--smallest", "size", flag_value="smallest", help="The form that the tests run."),
        click.option("--full", "size", flag_value="full", default="full", hidden=True),
        click.argument("chosen", metavar="[NAME]...", nargs=-1),
    ):
        function = option(function)
    return function


@click.group(help="The claims of the papers, tested on a CPU: docs/reproductions.md has the answers.")
def main() -> None:
    pass


@main.command("list")
def list_claims() -> None:
    """The claims, and how many runs each has."""
    table = Table("name", "claim", "runs", box=None)
    for claim in claims_of(()):
        table.add_row(claim.name, claim.title, str(len(claim.runs())))
    console.print(table)


@main.command()
@which
def status(chosen: Sequence[str], size: str, seeds: int | None, data: str | None, store: Path | None) -> None:
    """How many runs are finished, and what the rest will take."""
    table = Table("name", "finished", "runs", "processor time", "left", box=None)
    for claim in claims_of(chosen):
        with refusals():
            records = claim.store(size, store).records()
            runs = claim.runs(size, seeds, data)
            done = [records[run.key] for run in runs if run.key in records]
            left = seconds_left(records.values(), [run for run in runs if run.key not in records], claim.expected)
        spent = sum(record.seconds for record in done)
        table.add_row(claim.name, str(len(done)), str(len(runs)), duration(spent), duration(left))
    console.print(table)


@main.command()
@which
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="Local processes.")
@click.option("--executor", default="local", show_default=True, help="local, or dask://HOST:PORT (dask://local: two workers).")
def run(
    chosen: Sequence[str], size: str, seeds: int | None, data: str | None, store: Path | None, jobs: int, executor: str,
) -> None:  # fmt: skip
    """Compute the runs that have no result yet; stopped at any moment, it continues where it was."""
    one_thread()
    for claim in claims_of(chosen):
        kept = claim.store(size, store)
        os.environ.pop("FPSIM_CHECKPOINTS", None)
        if claim.settings.get("on_request"):  # runs of hours
            os.environ["FPSIM_CHECKPOINTS"] = str(kept.path.parent / "checkpoints")
        with refusals():
            _run(claim, kept, claim.runs(size, seeds, data), make_executor(executor, jobs), jobs)


def _run(claim: Claim, store: Store, runs: list[Run], execute: Executor, jobs: int) -> None:
    left = missing(store, runs)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("left: {task.fields[left]}"), TimeElapsedColumn(),
    )  # fmt: skip
    start = time.perf_counter()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            claim.name, total=len(runs), completed=len(runs) - len(left), left=_left(claim, store, left, jobs)
        )
        waiting = {run.key: run for run in left}
        for record in execute(store, left, measure):
            waiting.pop(record.run.key, None)
            progress.update(task, advance=1, left=_left(claim, store, list(waiting.values()), jobs))
    if left:
        console.print(f"{claim.name}: {len(left)} runs in {duration(time.perf_counter() - start)}: {store.path.name}")


def _left(claim: Claim, store: Store, runs: Sequence[Run], jobs: int) -> str:
    seconds = seconds_left(store.records().values(), runs, claim.expected)
    return duration(None if seconds is None else seconds / jobs)


@main.command()
@which
@click.option("--output", type=click.Path(path_type=Path), default=PAGE, help="The page; pictures go into a folder beside it.")
def report(
    chosen: Sequence[str], size: str, seeds: int | None, data: str | None, store: Path | None, output: Path
) -> None:  # fmt: skip
    """Write docs/reproductions.md from the results: verdicts, tables, pictures."""
    from experiments.report import write

    with refusals():
        unfinished = write(claims_of(chosen), output, size, seeds, store, data)
    console.print(f"written: {output.name}" + (f"; not finished: {', '.join(unfinished)}" if unfinished else ""))
