"""How long what is left will take, from how long what is finished took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from experiments.runs import Record, Run


def seconds_left(finished: Iterable[Record], left: Sequence[Run]) -> float | None:
    """Processor seconds: the mean of finished runs of the same arm, else of the claim; None where there are none."""
    arms, claims = defaultdict(list), defaultdict(list)
    for record in finished:
        arms[record.run.claim, record.run.arm].append(record.seconds)
        claims[record.run.claim].append(record.seconds)
    if any(run.claim not in claims for run in left):
        return None
    return sum(fmean(arms.get((run.claim, run.arm)) or claims[run.claim]) for run in left)


def duration(seconds: float | None) -> str:
    """A time for people; "?" for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
