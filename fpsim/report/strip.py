"""The depth of a network from left to right: exponents of each layer against the format's, and errors below."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

from fpsim.report.counts import Error, Range
from fpsim.report.data import ReportData
from fpsim.report.layout import Scale, exponent, spread
from fpsim.report.records import Limits, Row
from fpsim.report.verdict import number

_MOST_COLUMNS = 300  # in deeper networks neighbors share one
_LABELS = 5

_Span = tuple[float, float]  # where it begins, and its extent


@dataclass(frozen=True)
class Column:
    """One module, or a few neighbors.

    bars : (phase, top, height); underflowed : more than 1 % of the results of an operation; local, cumulative : heights of
    the error's marks; text : all of it in words
    """

    module: str
    x: float
    width: float
    bars: tuple[tuple[str, float, float], ...]
    overflowed: bool
    underflowed: bool
    local: float | None
    cumulative: float | None
    text: str


@dataclass(frozen=True)
class Strip:
    """All columns, and the lines behind them: ticks are (height, label), labels (x, label)."""

    limits: Limits | None
    columns: tuple[Column, ...]
    normal: _Span
    subnormal: _Span
    ticks: tuple[tuple[float, str], ...]
    error_ticks: tuple[tuple[float, str], ...]
    labels: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class _Layer:
    """What the strip shows of one module, or of several."""

    modules: tuple[str, ...]
    ranges: dict[str, Range]
    local: float
    cumulative: float
    overflowed: bool
    underflowed: bool

    def __or__(self, other: _Layer) -> _Layer:
        phases = dict.fromkeys([*self.ranges, *other.ranges])
        return _Layer(
            self.modules + other.modules,
            {phase: self.ranges.get(phase, Range()) | other.ranges.get(phase, Range()) for phase in phases},
            max(self.local, other.local),
            max(self.cumulative, other.cumulative),
            self.overflowed or other.overflowed,
            self.underflowed or other.underflowed,
        )


def strip(report: ReportData) -> Strip | None:
    """The strip of a report; None where neither ranges nor errors were seen.

    Of the model's passes alone: what an optimizer keeps of a gradient says nothing of the layer.
    """
    rows = [[row for row in report.by_path[path] if row.phase != "optimizer"] for path in report.paths]
    layers = [layer for group in rows if group for layer in [reduce(_Layer.__or__, map(_layer, group))] if _shows(layer)]
    if not layers:
        return None
    size = -(-len(layers) // _MOST_COLUMNS)
    groups = [reduce(_Layer.__or__, layers[i : i + size]) for i in range(0, len(layers), size)]
    limits = report.limits[0] if report.limits else None
    tall, deep = _exponents(groups, limits), _errors(groups)
    width = 100 / len(groups)
    columns = tuple(_column(group, i * width, width, tall, deep) for i, group in enumerate(groups))
    has_errors = any(group.local or group.cumulative for group in groups)
    return Strip(
        limits,
        columns,
        tall.span(limits.emin, limits.emax + 1) if limits else (0, 0),
        tall.span(exponent(limits.smallest_subnormal), limits.emin) if limits else (0, 0),
        tuple((tall(tick), f"2^{tick}") for tick in _ticks(tall, limits)),
        tuple((deep(tick), f"1e{tick}") for tick in spread(int(deep.low), int(deep.high))) if has_errors else (),
        tuple(
            (round(column.x + width / 2, 2), column.module or "(outside)")
            for column in columns[:: max(1, -(-len(columns) // _LABELS))]
        ),
    )


def _layer(row: Row) -> _Layer:
    ranges = {row.phase: row.range} if row.range else {}
    counts, errors = row.counts, (_size(row.local), _size(row.cumulative))
    return _Layer((row.module,), ranges, *errors, bool(counts.overflows), 100 * counts.underflows > counts.elements)


def _size(error: Error | None) -> float:
    return error.relative if error is not None and math.isfinite(error.relative) else 0.0


def _shows(layer: _Layer) -> bool:
    return bool(layer.ranges or layer.local or layer.cumulative)


def _exponents(groups: list[_Layer], limits: Limits | None) -> Scale:
    ranges = [seen for group in groups for seen in group.ranges.values()]
    exponents = [exponent(end) for seen in ranges for end in (seen.smallest, seen.largest)]
    if limits is not None:
        exponents += [exponent(limits.smallest_subnormal), limits.emax]
    return Scale(min(exponents, default=0) - 1, max(exponents, default=1) + 2, down=True)


def _errors(groups: list[_Layer]) -> Scale:
    logarithms = [math.log10(error) for group in groups for error in (group.local, group.cumulative) if error]
    lowest = math.floor(min(logarithms, default=-1))
    return Scale(lowest, max(math.ceil(max(logarithms, default=0)), lowest + 1), down=True)


def _column(group: _Layer, x: float, width: float, tall: Scale, deep: Scale) -> Column:
    ranges = group.ranges.items()
    words = [f"{phase or 'results'}: {number(seen.smallest)} to {number(seen.largest)}" for phase, seen in ranges]
    errors = ("local", group.local), ("cumulative", group.cumulative)
    words += [f"{name} error {error:.2g}" for name, error in errors if error]
    name = group.modules[0] or "outside any module"
    several = dict.fromkeys(group.modules)
    return Column(
        group.modules[0],
        round(x, 3),
        round(width, 3),
        tuple((phase, *tall.span(exponent(seen.smallest), exponent(seen.largest) + 1)) for phase, seen in ranges),
        group.overflowed,
        group.underflowed,
        deep(math.log10(group.local)) if group.local else None,
        deep(math.log10(group.cumulative)) if group.cumulative else None,
        "; ".join([name if len(several) == 1 else f"{name} to {group.modules[-1]}", *words]),
    )


def _ticks(scale: Scale, limits: Limits | None) -> Iterable[int]:
    if limits is None:
        return spread(math.ceil(scale.low), math.floor(scale.high))
    return limits.emax + 1, 0, limits.emin, exponent(limits.smallest_subnormal)
