"""Reports of what emulations have counted."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba import counting
from fpsim.emulation.machine.policy import Policy
from fpsim.report.counts import Counts
from fpsim.report.records import Row
from fpsim.report.report import Report


def make_report(policy: Policy, rows: dict[tuple[str, Any, bool], np.ndarray]) -> Report:
    """The report of raw counters."""
    named: dict[tuple[str, str], Counts] = {}
    for (module, operation, saturates), row in rows.items():
        key = (module, str(operation).removeprefix("aten.").removesuffix(".default"))
        named[key] = named.get(key, Counts()) + _counts(row, saturates)
    return Report(str(policy), tuple(Row(*key, counts=named[key]) for key in sorted(named)))


def _counts(row: np.ndarray, saturates: bool) -> Counts:
    overflows, infinite = int(row[counting.OVERFLOWS]), int(row[counting.INFINITE])
    nonfinite = int(row[counting.NAN]) + (0 if saturates else overflows + infinite)
    return Counts(
        int(row[counting.ELEMENTS]),
        overflows,
        int(row[counting.UNDERFLOWS]),
        nonfinite,
        int(row[counting.UPDATES]),
        int(row[counting.LOST]),
    )
