"""Arms of trainings against fp32."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.answer import Answer, Verdict
from experiments.comparison import Comparison, compare
from experiments.runs import Record
from experiments.training import train as measure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["against_fp32", "judge", "measure"]

REFERENCE, NULL, MARGIN = "fp32", "fp32, one ulp off", 0.5


def judge(records: Sequence[Record]) -> Answer:
    return against_fp32(records, "digits, 64-64-10 with batch norm, SGD .05")


def against_fp32(records: Sequence[Record], setting: str, *more: str) -> Answer:
    """A finding for every arm: does it end at the accuracy of fp32? `more` are further notes."""
    found = compare(records, REFERENCE, NULL, MARGIN)
    seeds = len(found.arms[REFERENCE].records)
    conditions = f"{setting}, {seeds} seeds, margin {MARGIN} points"
    findings = [found.finding(name, f"{name}: the accuracy of fp32", conditions) for name in found.paired]
    counts = {verdict: sum(finding.verdict is verdict for finding in findings) for verdict in Verdict}
    pure = [name for name in ("fp16 sums fp16", "bf16 sums bf16") if name in found.paired]
    summary = f"{counts[Verdict.CONFIRMED]} of {len(findings)} arms within {MARGIN} points of fp32; " + ", ".join(
        f"{name} {found.paired[name].mean:+.2f}" for name in pure
    )
    notes = [f"TOST over {len(findings)} arms at once, Holm's correction; 'apart' is the mean |difference| over seeds.", *more]
    return Answer(summary, findings, (found.table(),), lambda figure: draw(figure, found), notes)


def draw(figure: Figure, found: Comparison) -> None:
    """Mean differences and their intervals beside the margin."""
    axes = figure.subplots()
    names = list(found.paired)[::-1]
    for place, name in enumerate(names):
        row = found.paired[name]
        color = "0.5" if name == found.null else "#2166ac" if row.low > -row.margin and row.high < row.margin else "#b2182b"
        axes.plot([row.low, row.high], [place, place], color=color)
        axes.plot([row.mean], [place], "o", color=color, ms=4)
    axes.axvspan(-MARGIN, MARGIN, color="0.92")
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_xlabel(f"accuracy minus {found.reference}'s, points, 95 %")
