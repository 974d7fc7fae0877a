"""`fpsim crosscheck`: what another machine recorded, computed again and compared bit for bit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from fpsim.cli.parameters import ACCUMULATOR, InputError

if TYPE_CHECKING:
    from rich.table import Table

    from fpsim.emulation.replay import CrossCheck, Row


@click.command()
@click.argument("bundle", type=click.Path(dir_okay=False))
@click.option("--accumulate", type=ACCUMULATOR, help="Compare with this accumulator; left out, with the one that fits best.")
@click.option("--differing", is_flag=True, help="Only the operations whose bits differ.")
def crosscheck(bundle: str, accumulate: str | None, differing: bool) -> None:
    """Compare a bundle that `fpsim record` made, on this machine or another, with emulation.

    Lists every operation: whether all its bits are equal, how many elements differ, the first of them with both values, and the
    unit, order or revealed tree whose bits fit best. For a model's bundle it then names the first operation that differs.
    The exit code is 0 whether or not bits differ.
    """
    import warnings

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from fpsim.emulation.policy import make_policy
    from fpsim.emulation.replay import crosscheck as check, crosscheck_model
    from fpsim.hardware import UnconfirmedUnit
    from fpsim.recorder.bundle import BundleError, load

    try:
        read = load(bundle)
    except (BundleError, OSError) as error:
        raise InputError(str(error)) from None
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress, warnings.catch_warnings():
        warnings.simplefilter("ignore", UnconfirmedUnit)  # the search tries every unit
        task = progress.add_task("comparing", total=None)

        def show(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, description=name or "done")

        found = check(read, accumulate, show)
        own = None
        if any(record["section"] == "model" for record in read.records):
            own = crosscheck_model(read, make_policy("native", accumulate))
    console = Console(soft_wrap=False)
    for line in _machine(found):
        console.print(line, highlight=False)
    console.print(_table([row for row in found.rows if row.equal is False or not differing]))
    for line in _ending(found):
        console.print(line, highlight=False)
    if own is not None:
        console.print(str(own), highlight=False, markup=False)


def _machine(found: CrossCheck) -> list[str]:
    machine = found.environment
    gpu = machine.get("gpu")
    where = (
        f"{gpu['name']}, driver {gpu['driver']}" if gpu else f"{machine['processor']['name']}, {machine['vector_instructions']}"
    )
    return [f"recorded on {where}, torch {machine['torch']}", *([f"stopped {found.stopped}"] if found.stopped else [])]


def _table(rows: list[Row]) -> Table:
    from rich.table import Table

    table = Table("operation", "dtype", "bits", "differ", "fits best", "first difference: recorded -> emulated")
    for row in rows:
        verdict = {True: "equal", False: "differ", None: "-"}[row.equal]
        share = f"{row.differing} of {row.elements}" if row.elements else ""
        flags = "".join(f" {name}={value}" for name, value in row.flags.items())
        reason = "; ".join(f"not compared: {text}" for text in row.skipped)
        first = f"{row.where} {row.first}" if row.first is not None else ""
        name = f"{row.op.removeprefix('aten.')} {row.shape}".strip() + flags
        table.add_row(name, row.dtype, verdict, share, row.fit, "; ".join(part for part in (first, reason) if part))
    return table


def _ending(found: CrossCheck) -> list[str]:
    compared = [row for row in found.rows if row.equal is not None]
    equal = sum(bool(row.equal) for row in compared)
    lines = [f"{equal} of {len(compared)} operations have equal bits; {len(found.rows) - len(compared)} could not be compared"]
    if found.masks:
        lines.append(f"the orders of {len(found.masks)} products were revealed")
    return lines + found.without_tree
