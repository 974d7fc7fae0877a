"""A report's rows as a data frame."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fpsim.report.data import ReportData
from fpsim.report.extra import needed


def to_dataframe(report: ReportData) -> Any:
    """A `pandas.DataFrame` with a line for each row of the report, in their order; what was not observed is NaN."""
    pandas = needed("pandas")
    lines = []
    for row in report.rows:
        line: dict[str, Any] = {"module": row.module, "operation": row.operation, "phase": row.phase, "format": row.format}
        line |= asdict(row.counts)
        line |= {"largest": row.range.largest if row.range else None, "smallest": row.range.smallest if row.range else None}
        for name, error in (("local", row.local), ("cumulative", row.cumulative)):
            line |= {f"{name}_relative": error and error.relative, f"{name}_ulps": error and error.ulps}
        lines.append({**line, "place": str(row.place) if row.place is not None else ""})
    frame = pandas.DataFrame(lines, columns=None if lines else _columns())
    return frame.astype({name: float for name in frame.columns if name in _FLOATS})


_FLOATS = ("largest", "smallest", "local_relative", "local_ulps", "cumulative_relative", "cumulative_ulps")


def _columns() -> list[str]:
    from fpsim.report.counts import Counts

    return ["module", "operation", "phase", "format", *asdict(Counts()), *_FLOATS, "place"]
