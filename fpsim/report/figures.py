"""A report as matplotlib figures."""

from __future__ import annotations

import math
from typing import Any

from fpsim.report.data import ReportData
from fpsim.report.extra import needed
from fpsim.report.plain import plain
from fpsim.report.records import ROLES, Distribution, Limits

KINDS = ("range", *ROLES, "losses")
_COLORS = {"forward": "C0", "backward": "C1", "optimizer": "C2"}


def figure(report: ReportData, kind: str) -> Any:
    """A `matplotlib.figure.Figure` of one kind: `report.Report.plot` says which. What shows it is matplotlib's own choice."""
    if kind not in KINDS:
        raise ValueError(f"there is no figure {kind!r}; there are {', '.join(KINDS)}")
    drawn = needed("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    axes = drawn.add_subplot()
    limits = report.limits[0] if report.limits else None
    if kind == "losses":
        _draw_losses(axes, report)
    elif kind == "range":
        _draw_ranges(axes, report, limits)
    else:
        _draw_exponents(drawn, axes, [item for item in report.distributions if item.role == kind], kind, limits)
    axes.set_title(plain(report.policy), fontsize=9)
    return drawn


def _draw_losses(axes: Any, report: ReportData) -> None:
    if not report.losses:
        raise ValueError("this report has no losses: those of `fpsim compare`, and of `fpsim run --losses`, have")
    axes.plot(report.losses)
    axes.set(xlabel="step", ylabel="loss")


def _draw_ranges(axes: Any, report: ReportData, limits: Limits | None) -> None:
    """For each module and pass a bar from the smallest nonzero magnitude to the largest."""
    rows = [row for row in report.rows if row.range]
    if not rows:
        raise ValueError('no magnitudes were looked at: observe="range"')
    places = {path: place for place, path in enumerate(dict.fromkeys(row.module for row in rows))}
    phases = list(dict.fromkeys(row.phase for row in rows))
    width = 0.8 / len(phases)
    for number, phase in enumerate(phases):
        of_phase = [row for row in rows if row.phase == phase]
        low, high = [math.log2(row.range.smallest) for row in of_phase], [math.log2(row.range.largest) for row in of_phase]
        axes.bar(
            [places[row.module] + (number - (len(phases) - 1) / 2) * width for row in of_phase],
            [max(top - bottom, 0.2) for bottom, top in zip(low, high, strict=True)],
            width, low, label=phase or "results", color=_COLORS.get(phase, "C3"),
        )  # fmt: skip
    _draw_limits(axes.axhline, limits)
    axes.set_xticks(list(places.values()), [plain(path) or "(outside)" for path in places], rotation=90, fontsize=7)
    axes.set(ylabel="log2 of magnitudes")
    axes.legend(fontsize=8)


def _draw_exponents(drawn: Any, axes: Any, distributions: list[Distribution], role: str, limits: Limits | None) -> None:
    """The share of each binade, a line of the picture for each module."""
    shown = [item for item in distributions if item.histogram.counts]
    if not shown:
        raise ValueError(f'no exponents of {role}s were counted: observe="histograms"')
    first = min(item.histogram.first for item in shown)
    last = max(item.histogram.first + len(item.histogram.counts) for item in shown)
    shares = [[item.histogram.share(exponent) for exponent in range(first, last)] for item in shown]
    image = axes.imshow(
        shares, aspect="auto", interpolation="nearest", extent=(first, last, len(shown) - 0.5, -0.5), cmap="magma_r", vmin=0
    )
    drawn.colorbar(image, label="share of the numbers")
    _draw_limits(axes.axvline, limits)
    axes.set_yticks(range(len(shown)), [plain(item.module) or "(outside)" for item in shown], fontsize=7)
    axes.set(xlabel=f"exponents of {role}s")


def _draw_limits(line: Any, limits: Limits | None) -> None:
    """Where the format's largest, smallest normal and smallest positive number are."""
    if limits is not None:
        for value, style in ((limits.largest, "-"), (limits.smallest_normal, "--"), (limits.smallest_subnormal, ":")):
            line(math.log2(value), color="0.4", linewidth=0.8, linestyle=style)
