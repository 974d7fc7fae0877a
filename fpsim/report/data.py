"""What a report holds: rows, events and what they were seen of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from fpsim.report.counts import Counts, summed
from fpsim.report.records import (
    ORDINARY,
    Distribution,
    DtypeLine,
    Event,
    Fix,
    Limits,
    Measurement,
    Module,
    Row,
    Treatment,
)


@dataclass(frozen=True)
class ReportData:
    """The numbers of a report, which `report.Report` describes and shows."""

    policy: str
    rows: tuple[Row, ...] = ()
    limits: tuple[Limits, ...] = ()
    observed: tuple[str, ...] = ("counts",)
    steps: int = 0
    modules: tuple[Module, ...] = ()
    distributions: tuple[Distribution, ...] = ()
    events: tuple[Event, ...] = ()
    coverage: tuple[Treatment, ...] = ()
    measurement: Measurement | None = None
    fixes: tuple[Fix, ...] = ()
    losses: tuple[float, ...] = ()
    ending: str = ""
    dtype_lines: tuple[DtypeLine, ...] = ()
    skipped: int = 0

    @cached_property
    def total(self) -> Counts:
        """The sum over all rows."""
        return sum((row.counts for row in self.rows), Counts())

    def by_module(self) -> dict[str, Counts]:
        """Counts summed over the operations of each module."""
        return summed((module, counts) for module, _, counts in self)

    def by_operation(self) -> dict[str, Counts]:
        """Counts summed over the modules, for each operation."""
        return summed((operation, counts) for _, operation, counts in self)

    @cached_property
    def by_path(self) -> dict[str, list[Row]]:
        """The rows of each module, those without any included."""
        rows: dict[str, list[Row]] = {path: [] for path in self.paths}
        for row in self.rows:
            rows[row.module].append(row)
        return rows

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The path of every module that anything is said of, in the order of the network."""
        in_order = [module.path for module in self.modules]
        named = [entry.module for entries in (self.rows, self.distributions, self.events) for entry in entries]
        return tuple(dict.fromkeys([*in_order, *named]))

    @property
    def first(self) -> Event | None:
        """What broke first: the first event that made an infinity or NaN, else the first that is no `records.ORDINARY` one."""
        broken = (event for event in self.events if event.breaks)
        return next(broken, None) or next((event for event in self.events if event.kind not in ORDINARY), None)

    def limits_of(self, name: str) -> Limits | None:
        """The limits of a format by its name; None where the report has none of that name."""
        return next((limits for limits in self.limits if limits.name == name), None)

    def __iter__(self) -> Iterator[tuple[str, str, Counts]]:
        return ((row.module, row.operation, row.counts) for row in self.rows)
