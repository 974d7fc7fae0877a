"""The largest and the smallest magnitude of results, subnormal ones, and those that are not finite though operands were."""

from __future__ import annotations

from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.observers.tensors import Survey
from fpsim.emulation.report import Draft, Key
from fpsim.report.counts import Counts, Range


@observer_named("range")
class Ranges(Observer):
    """By module, operation, pass and format."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._surveys: dict[Key, Survey] = {}
        self._made: dict[Key, int] = {}

    def after(self, call: Call) -> None:
        if call.is_composed:
            return
        for tensor in call.emulated:
            fmt = call.format_of(tensor)
            key = (call.module, call.name, call.phase, fmt.name)
            survey = self._surveys.get(key)
            if survey is None:
                survey = self._surveys[key] = Survey(fmt.min_normal)
            nonfinite = survey.add(tensor)
            if nonfinite and call.is_of_finite:
                self._made[key] = self._made.get(key, 0) + nonfinite

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("range")
        for key, survey in self._surveys.items():
            draft.add(key, Counts(subnormals=survey.subnormals, made=self._made.get(key, 0)), Range(*survey.extremes))
