"""Where a result was made, and the counters of each such place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fpsim.backend.numba import counting
from fpsim.numbers.system import NumberSystem
from fpsim.report.counts import Counts

#: Every number system that results were rounded to, by its name.
FORMATS_MET: dict[str, NumberSystem] = {}


class Where(NamedTuple):
    """What a row of counters is of: a module's path, a pass of `report.records.PHASES`, an operation and a format by name.

    saturates : whether the format has its largest number in the place of what overflows
    """

    module: str
    phase: str
    operation: Any
    format: str
    saturates: bool


#: By the identity of a row: whether its format saturates, the row, and a copy of what it was before an operation.
Touched = dict[int, tuple[bool, np.ndarray, np.ndarray]]


def add_rows(rows: dict[Where, np.ndarray], total: dict[Where, np.ndarray]) -> None:
    """total += rows."""
    for where, row in list(rows.items()):
        if where in total:
            total[where] += row
        else:
            total[where] = row.copy()


def counts_of(saturates: bool, row: np.ndarray) -> Counts:
    """A row of counters as numbers with names; `saturates` as `Where` has it."""
    overflows, infinite = int(row[counting.OVERFLOWS]), int(row[counting.INFINITE])
    nonfinite = int(row[counting.NAN]) + (0 if saturates else overflows + infinite)
    underflows, updates, lost = (int(row[column]) for column in (counting.UNDERFLOWS, counting.UPDATES, counting.LOST))
    return Counts(int(row[counting.ELEMENTS]), overflows, underflows, nonfinite, updates, lost)
