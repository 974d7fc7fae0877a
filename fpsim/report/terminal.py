"""A report in a terminal: the verdict, what broke first, what to change, the rows."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from fpsim.report.counts import Counts, Error
from fpsim.report.data import ReportData
from fpsim.report.plain import plain
from fpsim.report.records import DTYPE_ADVICE, DTYPE_LINES, Row
from fpsim.report.verdict import beside, number, subject, verdict_of

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, Group


_STYLES = {
    "breaks": "bold red",
    "degrades": "bold yellow",
    "survives": "bold green",
    "stopped": "bold yellow",
    "nothing ran": "bold",
}
#: Counts that a table has even where they are all zero.
_ALWAYS = 6


def rendered(report: ReportData) -> Group:
    """What rich prints of a report; brackets and control codes in names mean nothing to it or to the terminal."""
    from rich.console import Group

    return Group(heading(report), _Table(report))


def heading(report: ReportData, verdict: bool = True) -> Group:
    """What stands above the table: the verdict, what broke first, what to change, lines that look at dtypes."""
    from rich.console import Group
    from rich.text import Text

    lines: list[Text] = [Text(plain(report.policy))]
    if report.ending:
        lines.append(Text(f"ended early: {plain(report.ending)}", style="bold"))
    if verdict and (report.modules or report.events or report.measurement):  # else there is nothing to judge by
        judged = verdict_of(report)
        lines.append(Text(plain(str(judged)), style=_STYLES[judged.word]))
    if (first := report.first) is not None:
        numbers = ", ".join(f"{name} {number(value)}" for name, value in beside(first, report.limits_of(first.format)))
        lines += [Text(f"first: {first.kind}, {plain(subject(first))}"), Text(f"  {plain(first.text)}")]
        lines += [Text(f"  {plain(numbers)}")] if numbers else []
    for fix in report.fixes[:3]:
        state = f"verified, error {number(fix.error)} remains" if fix.verified else "not verified"
        lines.append(Text(f"try: {plain(fix.title)} ({state})"))
        lines += [Text(f"  {plain(line)}", style="dim") for line in fix.code.splitlines()]
    for line in report.dtype_lines:
        lines.append(Text(f"{plain(str(line.place))} {DTYPE_LINES[line.meaning]}: {plain(line.place.text)}", style="dim"))
    if report.dtype_lines:
        lines.append(Text(DTYPE_ADVICE, style="dim"))
    return Group(*lines)


def as_text(shown: Any) -> str:
    """What rich prints, as text, however wide."""
    from rich.console import Console

    output = io.StringIO()
    Console(file=output, width=10_000, color_system=None, force_terminal=False).print(shown)
    return "\n".join(line.rstrip() for line in output.getvalue().splitlines())


def _relative(error: Error | None) -> str:
    return "-" if error is None or math.isnan(error.relative) else f"{error.relative:.2g}"


_FURTHER: dict[str, Callable[[Row], str]] = {
    "largest": lambda row: number(row.range.largest) if row.range else "-",
    "smallest": lambda row: number(row.range.smallest) if row.range else "-",
    "local error": lambda row: _relative(row.local),
    "error": lambda row: _relative(row.cumulative),
    "ulps": lambda row: number(row.cumulative.ulps) if row.cumulative else "-",
}
#: What a narrow terminal does without, the first first.
_LESS_URGENT = (
    "additions",
    "subnormals",
    "updates",
    "ulps",
    "smallest",
    "elements",
    "local error",
    "largest",
    "nonfinite",
    "pass",
)


def _columns(report: ReportData) -> dict[str, list[str]]:
    """The cells of each column, the total the last."""
    rows, total = report.rows, report.total
    columns = {"module": [*(plain(row.module) or "-" for row in rows), "total"]}
    columns["operation"] = [*(plain(row.operation) for row in rows), ""]
    if any(row.phase for row in rows):
        columns["pass"] = [*(row.phase for row in rows), ""]
    for i, field in enumerate(fields(Counts)):
        if i < _ALWAYS or getattr(total, field.name):
            columns[field.name] = [str(getattr(counts, field.name)) for counts in (*(row.counts for row in rows), total)]
    for name, text in _FURTHER.items():
        cells = [text(row) for row in rows]
        if any(cell != "-" for cell in cells):
            columns[name] = [*cells, ""]
    return columns


class _Table:
    """The rows, with as many columns as the console is wide for."""

    def __init__(self, report: ReportData):
        self.report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.table import Table
        from rich.text import Text

        columns = _columns(self.report)
        widths = {name: 2 + max(map(len, (name, *cells))) for name, cells in columns.items()}
        left_out = []
        for name in _LESS_URGENT:
            if sum(widths.values()) - widths["module"] + min(widths["module"], 24) > options.max_width and name in columns:
                left_out.append(name)
                del columns[name], widths[name]
        table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
        for name in columns:
            is_word = name in ("module", "operation", "pass")
            table.add_column(name, justify="left" if is_word else "right", no_wrap=name != "module", overflow="fold")
        for cells in zip(*columns.values(), strict=True):
            table.add_row(*map(Text, cells))
        yield table
        if left_out:
            yield Text(f"A wider terminal shows {', '.join(left_out)} as well.", style="dim")
