"""Where commands, and functions that take long, print."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


def console(**options: Any) -> Console:
    """A console on which brackets, colons and numbers in a text mean themselves."""
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False, **options)


def progress() -> Progress:
    """A bar on standard error with a task's description and count; nothing where that is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty())
