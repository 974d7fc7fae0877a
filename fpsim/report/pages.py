"""A report as HTML: one self-contained page, or the first screen of it for a notebook."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from fpsim.report import layout, strip
from fpsim.report.data import ReportData
from fpsim.report.extra import needed
from fpsim.report.payload import payload
from fpsim.report.plain import plain
from fpsim.report.records import DTYPE_ADVICE, DTYPE_LINES, EVENTS, TREATMENTS
from fpsim.report.verdict import beside, counted, number, verdict_of

_FOLDER = Path(__file__).parent / "page"
_MOST_EVENTS = 200
_MOST_BYTES = 2_000_000


def page(report: ReportData) -> str:
    """The whole page as text: styles, script and data inside it, so that it asks no network for anything.

    Rows in which nothing happened are left out where it would be larger than 2 MB; `to_json` has all.
    """
    most_rows = len(report.rows)
    while len((text := _page(report, most_rows)).encode()) > _MOST_BYTES and most_rows:
        most_rows //= 2
    return text


def _page(report: ReportData, most_rows: int) -> str:
    events = report.events[:_MOST_EVENTS]
    return template("page.html").render(
        **context(report),
        data=payload(report, most_rows),
        events=events,
        firsts=set({event.kind: index for index, event in reversed(list(enumerate(events)))}.values()),
        events_left_out=len(report.events) - len(events),
        timeline=layout.timeline(events, report.steps),
        meanings=EVENTS,
        style=text("page.css"),
        script=text("page.js"),
    )


def fragment(report: ReportData) -> str:
    """The first screen, for a notebook: no script, and nothing that meets a second one beside it."""
    return template("notebook.html").render(**context(report))


def context(report: ReportData) -> dict[str, Any]:
    """The names that `first_screen.html` reads."""
    first = report.first
    limits = report.limits_of(first.format) if first is not None else None
    calls = {kind: [entry for entry in report.coverage if entry.treatment == kind] for kind in TREATMENTS}
    return {
        "report": report,
        "verdict": verdict_of(report),
        "first": first,
        "numbers": beside(first, limits) if first is not None else [],
        "line": layout.number_line(first, limits) if first is not None else None,
        "strip": strip.strip(report),
        "coverage": {kind: (sum(entry.calls for entry in entries), entries) for kind, entries in calls.items()},
        "limits_of": report.limits_of,
        "beside": beside,
        "dtype_meanings": DTYPE_LINES,
        "dtype_advice": DTYPE_ADVICE,
        "first_style": text("first_screen.css"),
    }


@cache
def template(name: str) -> Any:
    """The Jinja2 template of that name. Raises ImportError without Jinja2."""
    jinja2 = needed("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FOLDER), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"plain": plain, "number": number, "counted": counted}
    return environment.get_template(name)


@cache
def text(name: str) -> str:
    """A file beside the templates."""
    return (_FOLDER / name).read_text(encoding="utf-8")
