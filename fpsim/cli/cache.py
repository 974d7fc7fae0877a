"""`fpsim cache`: the compiled kernels that are kept between processes."""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fpsim.backend.numba.folders import Stored


@click.command()
@click.option("--clear", "which", flag_value="all", help="Delete all compiled kernels.")
@click.option("--clear-old", "which", flag_value="old", help="Delete those of other versions of fpsim.")
def cache(which: str | None) -> None:
    """Show the compiled kernels that are kept between processes, or delete them.

    Every version of fpsim has a folder of its own there. Deleted kernels are compiled again when they are needed.
    """
    from fpsim.backend.numba import folders

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        folder = folders.choose()
    for warning in caught:
        click.echo(warning.message, err=True)
    if folder is None:
        return
    versions = folders.stored(folder.parent)
    if which is None:
        _show(versions, folder.parent, folders.source_digest())
        return
    chosen = [entry for entry in versions if which == "all" or entry.folder != folder]
    for entry in chosen:
        folders.remove(entry.folder)
    size = _megabytes(sum(entry.size for entry in chosen))
    click.echo(f"deleted {sum(entry.kernels for entry in chosen)} kernels ({size}) from {folder.parent}")


def _show(versions: list[Stored], root: object, current: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("version", no_wrap=True)
    for heading in ("kernels", "size", "last used"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in versions:
        name = entry.folder.name + (" (this one)" if entry.folder.name == current else "")
        used = time.strftime("%Y-%m-%d", time.localtime(entry.used))
        table.add_row(name, str(entry.kernels), _megabytes(entry.size), used)
    click.echo(f"{root}\n")  # by itself: rich would break a long path
    Console().print(table)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
