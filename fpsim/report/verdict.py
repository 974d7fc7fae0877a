"""The verdict of a report: one word, and one sentence that can be read alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import PurePath

from fpsim.report.data import ReportData
from fpsim.report.records import EVENTS, Event, Limits, Measurement


@dataclass(frozen=True)
class Verdict:
    """word : "breaks", "degrades", "survives", "stopped" or "nothing ran"; measured : on the metric, "" without one."""

    word: str
    sentence: str
    measured: str = ""

    def __str__(self) -> str:
        return f"{self.sentence} {self.measured}".strip()


def verdict_of(report: ReportData) -> Verdict:
    """Breaks: an infinity or NaN was made. Degrades: an event says that something was lost, or the metric does.

    What only passes on (`passed-on`), or loses small numbers beside larger ones (`underflow`), is ordinary.
    """
    measured = _measured(report.measurement)
    total = report.total
    if not report.rows and not report.ending:
        return Verdict("nothing ran", "Nothing has been computed in this arithmetic yet.", measured)
    first = report.first
    if first is not None and first.breaks:
        return Verdict(
            "breaks",
            f"Breaks {_when(first, report.steps)}: {subject(first)} made {_how_many(first)} infinite or NaN.",
            measured,
        )
    made = sum(row.counts.made for row in report.rows if row.phase != "backward" or not report.skipped)
    if made and "events" not in report.observed:  # which know of those that had no consequence
        return Verdict("breaks", f"Breaks: {counted(made, 'infinity or NaN')} made of finite operands.", measured)
    if first is not None:
        what = EVENTS.get(first.kind, first.kind)
        return Verdict("degrades", f"Degrades {_when(first, report.steps)}: {what}, {subject(first)}.", measured)
    if report.skipped and report.skipped >= report.steps:
        what = f"a loss scaler skipped {counted(report.skipped, 'step')}, whose gradients were not finite"
        return Verdict("degrades", f"Degrades: {what}, and {counted(report.steps, 'step')} began.", measured)
    if report.measurement is not None and report.measurement.degraded:
        return Verdict("degrades", "Degrades, though no single operation failed.", measured)
    if report.ending:
        return Verdict("stopped", f"Stopped early: {report.ending}", measured)
    seen = f"{total.elements:,} results, {counted(total.overflows, 'overflow')}, {total.nonfinite or 'no'} infinities or NaN"
    steps = f" {counted(report.steps, 'step')}" if report.steps else ""
    seen += f"; a loss scaler skipped {counted(report.skipped, 'step')}" if report.skipped else ""
    looked = "" if "events" in report.observed else "; events were not observed"
    return Verdict("survives", f"Survives{steps}: {seen}{looked}.", measured)


def subject(event: Event) -> str:
    """Which operation of which module, and the line of the source without its folders."""
    inside = f"{event.operation} in {event.module}" if event.module else f"{event.operation} outside any module"
    return f"{inside} ({PurePath(event.place.file).name}:{event.place.line})" if event.place is not None else inside


def beside(event: Event, limits: Limits | None) -> list[tuple[str, float]]:
    """The numbers of an event and the limit of its format that they met, each with its name."""
    numbers = [("exact result", event.exact), ("rounded", event.rounded)]
    shown = [(name, value) for name, value in numbers if value is not None]
    if limits is None:
        return shown
    if event.kind in ("overflow", "nonfinite"):
        shown.append((f"largest number of {limits.name}", limits.largest))
    elif event.kind in ("underflow", "loss-underflow", "zero-gradient"):
        shown.append((f"smallest positive number of {limits.name}", limits.smallest_subnormal))
    elif event.kind in ("stopped", "swamped", "stale-statistic"):
        shown.append((f"unit roundoff of {limits.name}", limits.unit_roundoff))
    return shown


def counted(number: int, noun: str) -> str:
    """As in "no overflows", "1 overflow", "1,234 overflows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}" if number else f"no {noun}s"


def number(value: float | None) -> str:
    """A number in at most six significant digits, an integer in full; "-" for none."""
    if value is None:
        return "-"
    if math.isfinite(value) and value == int(value) and abs(value) < 1e7:
        return str(int(value))
    return f"{value:.6g}"


def _when(event: Event, steps: int) -> str:
    return f"at step {event.step} of {steps}" if steps else "before the first step"


def _how_many(event: Event) -> str:
    return f"{event.count:,} of {event.elements:,} results" if event.elements else "results"


def _measured(measurement: Measurement | None) -> str:
    if measurement is None:
        return ""
    interval = "" if math.isnan(measurement.low) else f" (95 % interval {measurement.low:.3g} to {measurement.high:.3g})"
    over = f"{counted(measurement.samples, 'sample')} and {counted(measurement.steps, 'step')}"
    return f"{measurement.metric.capitalize()}: {measurement.value:.3g}{interval}, over {over}."
