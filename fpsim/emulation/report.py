"""What happened to the numbers, by module and operation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from fpsim.backend.numba import counting
from fpsim.emulation.machine.policy import Policy


@dataclass(frozen=True)
class Counts:
    """Counts of results: how many there were and what rounding did to them.

    overflows: finite before rounding, beyond the format's range; underflows: nonzero before, zero after; nonfinite:
    results that are infinite or NaN; updates, lost: elements of parameters that a step, or an operation outside of one,
    was meant to change, and those that it left as they were, or whose decay left no trace.
    """

    elements: int = 0
    overflows: int = 0
    underflows: int = 0
    nonfinite: int = 0
    updates: int = 0
    lost: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))


@dataclass(frozen=True)
class Report:
    """Counts by (module path, operation). Iterates over (module, operation, counts); `str` is a table."""

    policy: Policy
    rows: tuple[tuple[str, str, Counts], ...]

    @property
    def total(self) -> Counts:
        """The sum over all rows."""
        total = Counts()
        for _, _, counts in self.rows:
            total = total + counts
        return total

    def by_module(self) -> dict[str, Counts]:
        """Counts summed over the operations of each module."""
        found: dict[str, Counts] = {}
        for module, _, counts in self.rows:
            found[module] = found.get(module, Counts()) + counts
        return found

    def by_operation(self) -> dict[str, Counts]:
        """Counts summed over the modules, for each operation."""
        found: dict[str, Counts] = {}
        for _, operation, counts in self.rows:
            found[operation] = found.get(operation, Counts()) + counts
        return found

    def __iter__(self) -> Iterator[tuple[str, str, Counts]]:
        return iter(self.rows)

    def __str__(self) -> str:
        names = [field.name for field in fields(Counts)]
        lines = [("module", "operation", *names)]
        lines += [
            (module or "-", operation, *(str(getattr(counts, name)) for name in names))
            for module, operation, counts in self.rows
        ]
        lines.append(("total", "", *(str(getattr(self.total, name)) for name in names)))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        text = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([str(self.policy), *(line.rstrip() for line in text)])


def make_report(policy: Policy, rows: dict[tuple[str, Any, bool], np.ndarray]) -> Report:
    """The report of raw counters."""
    named: dict[tuple[str, str], Counts] = {}
    for (module, operation, saturates), row in rows.items():
        key = (module, str(operation).removeprefix("aten.").removesuffix(".default"))
        named[key] = named.get(key, Counts()) + _counts(row, saturates)
    return Report(policy, tuple((*key, named[key]) for key in sorted(named)))


def _counts(row: np.ndarray, saturates: bool) -> Counts:
    overflows, infinite = int(row[counting.OVERFLOWS]), int(row[counting.INFINITE])
    nonfinite = int(row[counting.NAN]) + (0 if saturates else overflows + infinite)
    return Counts(
        int(row[counting.ELEMENTS]),
        overflows,
        int(row[counting.UNDERFLOWS]),
        nonfinite,
        int(row[counting.UPDATES]),
        int(row[counting.LOST]),
    )
