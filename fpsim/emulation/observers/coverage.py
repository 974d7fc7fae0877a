"""How each operation was computed, and how often."""

from __future__ import annotations

from collections import Counter

from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.report import Draft
from fpsim.report.records import Treatment

_MOVING = ("exact", "constant", "comparison")
_REASONS = {"library": "its results are of a dtype that means itself"}


@observer_named("coverage")
class Coverage(Observer):
    """By operation: emulated, exact (it moves numbers), or left to torch. Views are not counted."""

    looks_at_counts = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._calls: Counter[tuple[str, str]] = Counter()

    def after(self, call: Call) -> None:
        if call.is_composed or not call.results:
            return
        treatment = "exact" if call.family in _MOVING else "emulated" if call.emulated else "library"
        self._calls[call.name, treatment] += 1

    def contribute(self, draft: Draft) -> None:
        draft.coverage += [Treatment(*key, calls, _REASONS.get(key[1], "")) for key, calls in sorted(self._calls.items())]
