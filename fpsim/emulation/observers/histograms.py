"""How many numbers have which exponent: weights, activations and gradients of each module."""

from __future__ import annotations

import numpy as np
import torch

from fpsim.backend.numba import magnitudes
from fpsim.emulation.machine import marks
from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.observers.tensors import codes_of
from fpsim.emulation.report import Draft
from fpsim.report.counts import Histogram
from fpsim.report.records import Distribution

_ROLES = {"forward": "activation", "backward": "gradient"}


@observer_named("histograms")
class Histograms(Observer):
    """Activations are what forward passes make, gradients what backward passes make, over all steps.

    The weights of a module are looked at when a forward pass first reads them in a training step.
    """

    looks_at_counts = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._counts: dict[tuple[str, str, str], np.ndarray] = {}
        self._seen: set[str] = set()

    def after(self, call: Call) -> None:
        role = _ROLES.get(call.phase)
        if role is None or call.is_composed:
            return
        if role == "activation":
            for tensor in call.operands:
                name = marks.name_of_parameter(tensor)
                if name and name not in self._seen:
                    self._seen.add(name)
                    self._add((marks.module_of((tensor,)) or "", "weight", call.system_of(tensor).name), tensor)
        for tensor in call.emulated:
            self._add((call.module, role, call.system_of(tensor).name), tensor)

    def _add(self, key: tuple[str, str, str], tensor: torch.Tensor) -> None:
        counts = self._counts.get(key)
        if counts is None:
            counts = self._counts[key] = np.zeros(magnitudes.EXPONENTS + 3, np.int64)
        magnitudes.count_exponents(codes_of(tensor), counts)

    def after_step(self, step: int) -> None:
        self._seen.clear()

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("histograms")
        draft.distributions += [Distribution(*key, histogram_of(counts)) for key, counts in self._counts.items()]


def histogram_of(counts: np.ndarray) -> Histogram:
    """What `count_exponents` counted, from the smallest exponent that was seen to the largest."""
    exponents, specials = counts[: magnitudes.EXPONENTS], counts[magnitudes.EXPONENTS :].tolist()
    seen = np.flatnonzero(exponents)
    if not seen.size:
        return Histogram(0, (), *specials)
    first, last = int(seen[0]), int(seen[-1])
    return Histogram(magnitudes.LOWEST + first, tuple(exponents[first : last + 1].tolist()), *specials)
