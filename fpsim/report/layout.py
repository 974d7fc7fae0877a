"""Where things of a report stand in its drawings: in percent of the drawing's width and height, measured from the top left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fpsim.report.records import Event, Limits
from fpsim.report.verdict import number


@dataclass(frozen=True)
class Scale:
    """A straight map of [low, high] to percent; `down` where low stands at the bottom."""

    low: float
    high: float
    down: bool = False

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(100 * (1 - share if self.down else share), 2)

    def span(self, low: float, high: float) -> tuple[float, float]:
        """Where the interval begins, and its extent."""
        start, end = sorted((self(low), self(high)))
        return start, round(end - start, 2)


@dataclass(frozen=True)
class Line:
    """Magnitudes on one logarithmic line, the format's range in it: marks are (x, anchor, label, whether it is a limit)."""

    normal: tuple[float, float]
    subnormal: tuple[float, float]
    marks: tuple[tuple[float, str, str, bool], ...]


def number_line(event: Event, limits: Limits | None) -> Line | None:
    """The numbers of an event beside the range of its format; None where there is no number to draw."""
    if limits is None:
        return None
    numbers = [(name, value) for name, value in (*event.operands, ("exact result", event.exact)) if value is not None]
    shown = [(name, value) for name, value in numbers if value and math.isfinite(value)][-3:]
    if not shown:
        return None
    smallest, largest = math.log2(limits.smallest_subnormal), math.log2(limits.largest)
    places = [smallest, largest, *(math.log2(abs(value)) for _, value in shown)]
    margin = (max(places) - min(places)) / 12
    scale = Scale(min(places) - margin, max(places) + margin)
    ends = [(f"smallest of {limits.name}", limits.smallest_subnormal), (f"largest of {limits.name}", limits.largest)]
    marks = [
        (scale(math.log2(abs(value))), f"{name} {number(value)}", is_limit)
        for is_limit, group in ((True, ends), (False, shown))
        for name, value in group
    ]
    anchored = tuple((x, "start" if x < 30 else "end" if x > 70 else "middle", text, is_limit) for x, text, is_limit in marks)
    normal_start = math.log2(limits.smallest_normal)
    return Line(scale.span(normal_start, largest), scale.span(smallest, normal_start), anchored)


@dataclass(frozen=True)
class Timeline:
    """Events by kind and step: lanes are (kind, ((x, index of the event), ...)); ticks are (x, step)."""

    lanes: tuple[tuple[str, tuple[tuple[float, int], ...]], ...]
    ticks: tuple[tuple[float, int], ...]


def timeline(events: Sequence[Event], steps: int) -> Timeline | None:
    """Where events stand among the steps; None without any."""
    if not events:
        return None
    last = max(steps - 1, *(event.step for event in events), 1)
    scale = Scale(-0.03 * last, 1.03 * last)
    lanes: dict[str, list[tuple[float, int]]] = {}
    for index, event in enumerate(events):
        lanes.setdefault(event.kind, []).append((scale(event.step), index))
    ticks = tuple((scale(step), step) for step in spread(0, last))
    return Timeline(tuple((kind, tuple(marks)) for kind, marks in lanes.items()), ticks)


def spread(low: int, high: int) -> range:
    """At most five or six integers between the two, evenly apart."""
    return range(low, high + 1, max(1, -(-(high - low) // 5)))


def exponent(value: float) -> int:
    """floor(log2 |value|) of a finite number other than zero."""
    return math.frexp(value)[1] - 1


@dataclass(frozen=True)
class Curves:
    """Losses over steps: points of SVG polylines in a square of 100 units; ticks are (y, label), steps (x, step)."""

    points: tuple[str, ...]
    ticks: tuple[tuple[float, str], ...]
    steps: tuple[tuple[float, int], ...]


_MOST_POINTS = 400


def curves(series: Sequence[Sequence[float]]) -> Curves | None:
    """Finite losses, on a logarithmic scale where all are positive; of many steps, means of neighbors. None without any."""
    means = [_means(losses) for losses in series]
    finite = [loss for points in means for _, loss in points]
    if not finite:
        return None
    logarithmic = min(finite) > 0
    heights = [math.log10(loss) if logarithmic else loss for loss in finite]
    low, high = min(heights), max(heights)
    margin = (high - low) / 20 or 0.5
    tall = Scale(low - margin, high + margin, down=True)
    wide = Scale(0, max(max(map(len, series)) - 1, 1))
    drawn = tuple(
        " ".join(f"{wide(step)},{tall(math.log10(loss) if logarithmic else loss)}" for step, loss in points) for points in means
    )
    levels = [low + (high - low) * i / 4 for i in range(5)]
    ticks = tuple((tall(level), f"{10**level if logarithmic else level:.3g}") for level in dict.fromkeys(levels))
    return Curves(drawn, ticks, tuple((wide(step), step) for step in spread(0, int(wide.high))))


def _means(losses: Sequence[float]) -> list[tuple[float, float]]:
    """(step, mean) of neighboring finite losses."""
    size = max(1, -(-len(losses) // _MOST_POINTS))
    points = []
    for start in range(0, len(losses), size):
        group = [(step, loss) for step, loss in enumerate(losses[start : start + size], start) if math.isfinite(loss)]
        if group:
            points.append((sum(step for step, _ in group) / len(group), sum(loss for _, loss in group) / len(group)))
    return points
