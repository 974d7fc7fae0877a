"""How long what is left will take, from how long what is finished took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from experiments.runs import Record, Run


def seconds_left(
    finished: Iterable[Record], left: Sequence[Run], expected: Callable[[Run], float | None] | None = None
) -> float | None:
    """Processor seconds: the mean of finished runs of the same arm, else what the claim expects, else the mean of its runs.

    None where nothing is known of a run.
    """
    arms: dict[tuple[str, str], list[float]] = defaultdict(list)
    claims: dict[str, list[float]] = defaultdict(list)
    for record in finished:
        arms[record.run.claim, record.run.arm].append(record.seconds)
        claims[record.run.claim].append(record.seconds)
    total = 0.0
    for run in left:
        seconds = arms.get((run.claim, run.arm)) or _expected(run, expected) or claims.get(run.claim)
        if seconds is None:
            return None
        total += fmean(seconds)
    return total


def _expected(run: Run, expected: Callable[[Run], float | None] | None) -> list[float] | None:
    found = expected(run) if expected is not None else None
    return None if found is None else [found]


def duration(seconds: float | None) -> str:
    """A time for people; "?" for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"
