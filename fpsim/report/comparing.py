"""What the page of a comparison shows: the table of runs, and the layers of all of them side by side."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from fpsim.report.counts import Counts
from fpsim.report.data import ReportData
from fpsim.report.layout import curves
from fpsim.report.runs import Run, Runs

_LEAST_HEAT = 1e-6  # a share, or a relative error, from which on cells are coloured


def context(comparison: Runs) -> dict[str, Any]:
    """The template's names."""
    columns: dict[str, Callable[[Run], str]] = {
        "loss": lambda run: f"{run.final_loss:.4g}" if run.losses else "-",
        "steps": lambda run: f"{len(run.losses):,}",
        "differs": lambda run: _step(comparison.differs(run), run is comparison.runs[0]),
        "parts": lambda run: _step(comparison.parts(run), run is comparison.runs[0]),
        "agreement": lambda run: f"{sum(run.agreement) / len(run.agreement):.1%}" if run.agreement else "-",
        "overflows": lambda run: f"{run.report.total.overflows:,}",
        "underflows": lambda run: f"{run.report.total.underflows:,}",
        "not finite": lambda run: f"{run.report.total.nonfinite:,}",
        "updates lost": lambda run: _share(run.report.total.lost, run.report.total.updates),
        "seconds": lambda run: f"{run.seconds:.1f}",
    }
    return {
        "comparison": comparison,
        "curves": curves([run.losses for run in comparison]),
        "headings": list(columns),
        "cells": lambda run: [of(run) for of in columns.values()],
        "layers": _layers(comparison),
    }


def _step(step: int | None, is_first: bool) -> str:
    return "" if is_first else "never" if step is None else f"step {step}"


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _layers(comparison: Runs) -> dict[str, Any] | None:
    """The cumulative error of each module where there is one, or else its share of overflows and underflows."""
    errors = [_errors(run.report) for run in comparison]
    title, seen = "Relative error", errors
    if not any(errors):
        title, seen = "Overflows and underflows, as a share of the results", [_shares(run.report) for run in comparison]
    named = dict.fromkeys(path for run in comparison for path in run.report.paths)
    paths = [path for path in named if any(values.get(path) for values in seen)]
    if not paths:
        return None
    rows = [(path, [(_text(values.get(path)), _heat(values.get(path))) for values in seen]) for path in paths]
    return {"title": title, "rows": rows}


def _errors(report: ReportData) -> dict[str, float]:
    errors: dict[str, float] = {}
    for row in report.rows:
        if row.phase != "optimizer" and row.cumulative is not None and row.cumulative.relative > 0:
            errors[row.module] = max(errors.get(row.module, 0.0), row.cumulative.relative)
    return errors


def _shares(report: ReportData) -> dict[str, float]:
    def share(counts: Counts) -> float:
        return (counts.overflows + counts.underflows) / counts.elements if counts.elements else 0.0

    return {path: share(counts) for path, counts in report.by_module().items()}


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"


def _heat(value: float | None) -> float:
    if not value or value < _LEAST_HEAT:
        return 0.0
    return round(1 - math.log(min(value, 1.0)) / math.log(_LEAST_HEAT), 3)
