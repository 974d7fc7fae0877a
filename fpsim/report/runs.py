"""Several arithmetics: what became of each, and where they part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fpsim.report.report import Report


def mean_of_last(losses: Sequence[float]) -> float:
    """The mean of the last 20 losses; NaN without any."""
    last = losses[-20:]
    return sum(last) / len(last) if last else math.nan


@dataclass(frozen=True)
class Run:
    """What became of one arithmetic.

    agreement   the share of each step's predictions that are the first run's; () where outputs were not kept
    seconds     how long it took; the machine's load is in it
    """

    name: str
    report: Report
    agreement: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def losses(self) -> tuple[float, ...]:
        """Those of the report."""
        return self.report.losses

    @property
    def final_loss(self) -> float:
        """As `mean_of_last`."""
        return mean_of_last(self.losses)


@dataclass(frozen=True)
class Runs:
    """Runs from the same state on the same batches; the others are compared with the first. Iterates over them."""

    runs: tuple[Run, ...]

    def differs(self, run: Run) -> int | None:
        """The first step whose loss is another number than the first run's; None where there is none."""
        return self._first(run, lambda ours, theirs: ours != theirs and not (math.isnan(ours) and math.isnan(theirs)))

    def parts(self, run: Run, by: float = 0.05) -> int | None:
        """The first step whose loss is farther from the first run's than a share `by` of it; None where there is none."""
        return self._first(run, lambda ours, theirs: not abs(ours - theirs) <= by * abs(theirs) and ours is not theirs)

    def _first(self, run: Run, differ: Any) -> int | None:
        pairs = enumerate(zip(run.losses, self.runs[0].losses, strict=False))
        return next((step for step, (ours, theirs) in pairs if differ(ours, theirs)), None)

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __str__(self) -> str:
        lines = []
        for run in self.runs:
            parts = self.parts(run)
            where = "" if run is self.runs[0] else f", parts at step {parts}" if parts is not None else ", never parts"
            lines.append(f"{run.name}: loss {run.final_loss:.4g}{where}. {run.report.verdict}")
        return "\n".join(lines)
