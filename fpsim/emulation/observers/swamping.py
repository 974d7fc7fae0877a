"""Additions inside products and sums that lost an addend."""

from __future__ import annotations

from fpsim.emulation.machine import marks
from fpsim.emulation.observers.call import Call, Operation
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.report import Draft, Key
from fpsim.report.counts import Counts

#: Families of operations that add nothing in an accumulator.
_WITHOUT_SUMS = ("elementwise", "formula", "elementary", "exact", "comparison", "constant", "random", "optimizer")


@observer_named("swamping")
class Swamping(Observer):
    """By module, operation, pass and format; of sums that are trees of rounded additions."""

    looks_for_swamping = True
    looks_at_counts = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._counts: dict[Key, list[int]] = {}  # additions, and those swamped

    def wants(self, operation: Operation) -> bool:
        is_sum = operation.name == "clone"  # of a sparse gradient, whose entries of one place are added
        return is_sum or operation.family not in _WITHOUT_SUMS

    def after(self, call: Call) -> None:
        sums = call.sums
        results = call.emulated or call.results
        if sums is not None and sums.additions and not call.is_composed and results:
            key = (call.module, call.name, call.phase, call.system_of(marks.stored(results[0])).name)
            counts = self._counts.setdefault(key, [0, 0])
            counts[0] += sums.additions
            counts[1] += sums.swamped

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("swamping")
        for key, (additions, swamped) in self._counts.items():
            draft.add(key, Counts(additions=additions, swamped=swamped))
