"""The numbers that counters are."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import ClassVar

_lock = threading.Lock()


@dataclass
class Tally:
    """What happened in sums so far: `counters.Counters` says what each number is."""

    #: Whether all of it is asked for; else `additions` and `swamped` alone, and the rest is not looked for.
    is_whole: ClassVar[bool] = True

    additions: int = 0
    swamped: int = 0
    overflows: int = 0
    underflows: int = 0
    largest: float = 0.0

    def add(self, other: Tally) -> None:
        """Add what another object has counted."""
        with _lock:  # parts of a product are computed by several threads at once
            self.additions += other.additions
            self.swamped += other.swamped
            self.overflows += other.overflows
            self.underflows += other.underflows
            self.largest = max(self.largest, other.largest)

    def clear(self) -> None:
        """Start again from nothing."""
        self.additions = self.swamped = self.overflows = self.underflows = 0
        self.largest = 0.0
