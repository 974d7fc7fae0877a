"""Timing that a noisy machine cannot bend: cases take turns, and medians of many turns are compared."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved_medians(
    cases: dict[str, Callable[[], object]], repetitions: int = 15, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median seconds of each case over `repetitions` turns, after one turn that compiles and warms up."""
    for call in cases.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repetitions):
        for name, call in cases.items():
            start = clock()
            call()
            seconds[name].append(clock() - start)
    return {name: statistics.median(measured) for name, measured in seconds.items()}
