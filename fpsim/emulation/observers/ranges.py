"""The largest and the smallest magnitude of results, subnormal ones, and those that are not finite though operands were."""

from __future__ import annotations

from collections import Counter

from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.observers.tensors import Survey
from fpsim.emulation.report import Draft, Key
from fpsim.report.counts import Counts, Range


@observer_named("range")
class Ranges(Observer):
    """By module, operation, pass and format."""

    looks_at_counts = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seen: dict[Key, Survey] = {}
        self._made: Counter[Key] = Counter()  # not finite

    def after(self, call: Call) -> None:
        if call.is_composed:
            return
        for tensor in call.emulated:
            key = (call.module_of(tensor), call.name, call.phase, call.system_of(tensor).name)
            seen = self._seen.get(key)
            if seen is None:
                seen = self._seen[key] = Survey(call.format_of(tensor).min_normal)
            nonfinite = seen.add(tensor)
            if nonfinite and call.is_of_finite:
                self._made[key] += nonfinite

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("range")
        for key, seen in self._seen.items():
            found = seen.magnitudes
            draft.add(key, Counts(subnormals=found.subnormals, made=self._made[key]), Range(found.largest, found.smallest))
