"""`Report`: what happened to the numbers, where, when and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fpsim.report import texts
from fpsim.report.counts import Counts
from fpsim.report.records import Distribution, Event, Fix, Limits, Measurement, Module, Row, Treatment
from fpsim.report.verdict import Verdict, verdict_of


@dataclass(frozen=True)
class Report:
    """What was seen of an emulation: rows by module, operation and phase in the order of the network, events in theirs.

    policy      the arithmetic, as text
    limits      those of every format that results have
    observed    which of `records.PARTS` were looked at
    steps       optimizer steps, begun ones included
    ending      "" where all went well, or the one line that says what ended the run early
    measurement how well the whole did, where that is known

    Iterates over (module, operation, counts); `str` is a table.
    """

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
    ending: str = ""

    @cached_property
    def total(self) -> Counts:
        """The sum over all rows."""
        return sum((row.counts for row in self.rows), Counts())

    def by_module(self) -> dict[str, Counts]:
        """Counts summed over the operations of each module."""
        found: dict[str, Counts] = {}
        for module, _, counts in self:
            found[module] = found.get(module, Counts()) + counts
        return found

    def by_operation(self) -> dict[str, Counts]:
        """Counts summed over the modules, for each operation."""
        found: dict[str, Counts] = {}
        for _, operation, counts in self:
            found[operation] = found.get(operation, Counts()) + counts
        return found

    @cached_property
    def by_path(self) -> dict[str, list[Row]]:
        """The rows of each module, those without any included."""
        found: dict[str, list[Row]] = {path: [] for path in self.paths}
        for row in self.rows:
            found[row.module].append(row)
        return found

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The path of every module that anything is said of, in the order of the network."""
        known = [module.path for module in self.modules]
        named = [entry.module for entries in (self.rows, self.distributions, self.events) for entry in entries]
        return tuple(dict.fromkeys([*known, *named]))

    @property
    def first(self) -> Event | None:
        """What broke first: the first event, or None."""
        return self.events[0] if self.events else None

    @property
    def verdict(self) -> Verdict:
        """Whether the model survives this arithmetic, in a sentence."""
        return verdict_of(self)

    def limits_of(self, name: str) -> Limits | None:
        """The limits of a format by its name; None where the report has none of that name."""
        return next((limits for limits in self.limits if limits.name == name), None)

    def to_json(self) -> str:
        """The whole report as JSON text, from which `from_json` makes an equal one."""
        return texts.encode(self)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote. Raises ValueError for any other text."""
        return texts.decode(cls, text)

    def to_html(self, path: Any) -> None:
        """Write one self-contained page that asks no network for anything. Raises ImportError without Jinja2."""
        from fpsim.report.pages import write_page

        write_page(self, path)

    def save(self, path: Any) -> None:
        """Write it as the path's suffix says: .html or .json. Raises ValueError for others, and what writing raises."""
        match Path(path).suffix:
            case ".html":
                self.to_html(path)
            case ".json":
                Path(path).write_text(self.to_json(), encoding="utf-8")
            case suffix:
                raise ValueError(f"a report is saved as .html or as .json, not as {suffix!r}")

    def _repr_html_(self) -> str:
        from fpsim.report.pages import fragment

        return fragment(self)

    def to_dataframe(self) -> Any:
        """The rows as a `pandas.DataFrame`; what was not observed is NaN. Raises ImportError without pandas."""
        from fpsim.report.frames import to_dataframe

        return to_dataframe(self)

    def __iter__(self) -> Iterator[tuple[str, str, Counts]]:
        return ((row.module, row.operation, row.counts) for row in self.rows)

    def __str__(self) -> str:
        from fpsim.report.terminal import as_text

        return as_text(self)

    def __rich__(self) -> Any:
        from fpsim.report.terminal import rendered

        return rendered(self)
