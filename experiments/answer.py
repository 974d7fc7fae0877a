"""What a claim's results come to: findings with a verdict each, tables, a picture."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    REFUTED = "refuted"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Finding:
    """One statement, what became of it, the statistic that says so and the conditions under which it was had.

    An inconclusive one says in `statistic` how many seeds and hours would settle it.
    """

    statement: str
    verdict: Verdict
    statistic: str
    conditions: str


@dataclass(frozen=True)
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Answer:
    """`summary` is one sentence for the first table of the page; `draw` fills a figure."""

    summary: str
    findings: Sequence[Finding]
    tables: Sequence[Table] = ()
    draw: Callable[[Figure], None] | None = None
    notes: Sequence[str] = field(default=())


def number(value: float) -> float | str:
    """A number as JSON can hold it: NaN and infinities in words."""
    value = float(value)
    return value if math.isfinite(value) else str(value)


def text(value: Any) -> str:
    """A cell of a table: four significant digits of a float, the rest as it is."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
