"""The largest and the smallest magnitude of results, subnormal ones, and those that are not finite though operands were."""

from __future__ import annotations

from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.report import Draft, Key
from fpsim.report.counts import Counts, Range

_NOTHING = Range(), 0, 0


@observer_named("range")
class Ranges(Observer):
    """By module, operation, pass and format."""

    looks_at_counts = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._seen: dict[Key, tuple[Range, int, int]] = {}  # with subnormal results, and those that were made not finite

    def after(self, call: Call) -> None:
        if call.is_composed:
            return
        for tensor in call.emulated:
            key = (call.module_of(tensor), call.name, call.phase, call.system_of(tensor).name)
            found = call.magnitudes_of(tensor)
            extremes, subnormals, made = self._seen.get(key, _NOTHING)
            if found.largest > extremes.largest or found.smallest < extremes.smallest:
                extremes |= Range(found.largest, found.smallest)
            if found.nonfinite and call.is_of_finite:
                made += found.nonfinite
            self._seen[key] = extremes, subnormals + found.subnormals, made

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("range")
        for key, (extremes, subnormals, made) in self._seen.items():
            draft.add(key, Counts(subnormals=subnormals, made=made), extremes)
