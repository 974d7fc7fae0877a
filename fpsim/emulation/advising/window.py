"""The few steps that trials are of: those around what broke first, from the state that the run had there."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from fpsim.emulation.advising.recipe import Recipe
from fpsim.emulation.advising.trial import Subject, Trial, run_recipe

#: What takes many steps to show.
STANDING = ("stopped", "decay-lost", "stale-statistic")

_BEFORE, _LENGTH = 1, 4  # steps


def window_of(subject: Subject, recipe: Recipe, trial: Trial) -> tuple[Subject, int]:
    """The steps to try changes on, and the number of the first: all, or a few around the first event.

    Over many steps two runs part whatever their rounding errors are, as all do whose small differences grow. What stalls needs
    them all. Without an optimizer, what a step computes depends on no other step.
    """
    event = trial.report.first
    if not recipe.call.trains or (event is not None and event.kind in STANDING):
        return subject, 0
    first = 0 if event is None else max(0, min(event.step, len(subject.batches) - 1) - _BEFORE)
    batches = subject.batches[first : first + _LENGTH]
    if not first:
        return replace(subject, batches=batches), 0
    before = run_recipe(replace(subject, batches=subject.batches[:first]), recipe, ())
    assert before.optimizer is not None and subject.optimizer is not None
    make = _resuming(subject.optimizer, copy.deepcopy(before.optimizer.state_dict()))
    model = copy.deepcopy(before.sim.model)
    return replace(subject, model=model, batches=batches, optimizer=make, generator=before.generator), first


def _resuming(make: Callable[..., torch.optim.Optimizer], state: dict[str, Any]) -> Callable[..., torch.optim.Optimizer]:
    def resumed(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        optimizer.load_state_dict(state)
        return optimizer

    return resumed
