"""What the page's script reads: a report's rows and histograms as lists, texts that come again named by their numbers."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from fpsim.report.counts import Counts, Error
from fpsim.report.data import ReportData
from fpsim.report.layout import exponent
from fpsim.report.plain import plain
from fpsim.report.records import Distribution, Limits, Row

_COUNTS = tuple(field.name for field in fields(Counts))


class _Names:
    """Texts, each once."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(plain(text), len(self.numbers))

    @property
    def texts(self) -> list[str]:
        return list(self.numbers)


def payload(report: ReportData, most_rows: int) -> dict[str, Any]:
    """Plain lists, numbers and texts; numbers that JSON lacks as the texts that JavaScript's Number() reads.

    Of more rows, those in which something happened come first; of the modules of the others, nothing is said.
    """
    kept = _kept(report, most_rows)
    shown = {row.module for row in kept} | {event.module for event in report.events}
    everything = len(kept) == len(report.rows)
    modules = {path: i for i, path in enumerate(path for path in report.paths if everything or path in shown)}
    kinds = {module.path: module for module in report.modules}
    operations, places = _Names(), _Names()
    rows = [[modules[row.module], *_cells(row, operations, places)] for row in kept]
    return {
        "modules": [[plain(path), plain(kinds[path].kind) if path in kinds else ""] for path in modules],
        "operations": operations.texts,
        "places": places.texts,
        "counts": _COUNTS,
        "rows": rows,
        "left_out": len(report.rows) - len(kept),
        "formats": [_limits(limits) for limits in report.limits],
        "histograms": [
            _histogram(distribution, modules[distribution.module])
            for distribution in report.distributions
            if distribution.module in modules
        ],
        "events": [[modules[event.module], operations(event.operation), event.phase] for event in report.events],
    }


def _kept(report: ReportData, most: int) -> list[Row]:
    """At most so many rows, in their order."""
    if len(report.rows) <= most:
        return list(report.rows)

    def quietness(index: int) -> tuple[bool, int]:
        counts = report.rows[index].counts
        return not (counts.overflows or counts.made or counts.nonfinite or counts.lost or counts.swamped), index

    chosen = sorted(sorted(range(len(report.rows)), key=quietness)[:most])
    return [report.rows[index] for index in chosen]


def _cells(row: Row, operations: _Names, places: _Names) -> list[Any]:
    ends = [_number(row.range.largest), _number(row.range.smallest)] if row.range else [None, None]
    return [
        operations(row.operation),
        row.phase,
        plain(row.format),
        [getattr(row.counts, name) for name in _COUNTS],
        *ends,
        *_error(row.local),
        *_error(row.cumulative),
        places(str(row.place)) if row.place is not None else None,
    ]


def _error(error: Error | None) -> list[Any]:
    return [None, None] if error is None else [_number(error.relative), _number(error.ulps)]


def _limits(limits: Limits) -> dict[str, Any]:
    return {
        "name": plain(limits.name),
        "roundoff": limits.unit_roundoff,
        "emin": limits.emin,
        "emax": limits.emax,
        "least": exponent(limits.smallest_subnormal),
    }


def _histogram(distribution: Distribution, module: int) -> list[Any]:
    seen = distribution.histogram
    specials = [seen.zeros, seen.infinite, seen.nan]
    return [module, distribution.role, plain(distribution.format), seen.first, seen.counts, specials]


def _number(value: float) -> float | str:
    """A few digits of it: a page shows no more."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return float(f"{value:.6g}")
