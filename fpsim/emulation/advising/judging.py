"""What runs are measured against, and when they agree with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

from fpsim.emulation.advising.evidence import Evidence
from fpsim.emulation.advising.recipe import WIDE, Recipe
from fpsim.emulation.advising.taking import Taken, deviation, resolution
from fpsim.emulation.advising.trial import Subject, Trial, run_recipe
from fpsim.emulation.advising.window import STANDING
from fpsim.numbers.formats import Format
from fpsim.report.advised import Deviation
from fpsim.report.records import EVENTS
from fpsim.report.report import Report
from fpsim.report.verdict import subject as said

LEAST, MOST = 0.05, 0.5  # of the tolerances that are measured

_SMALL = ("zero-gradient", "decay-lost")  # what is lost may be little beside the rest
_SEEN = 0.25  # of a movement may be below the spacing of the format
_SPARE = 1.5  # times what precision alone costs


@dataclass
class Judge:
    """What runs are measured against, and by."""

    subject: Subject
    exact: Taken
    fmt: Format
    tolerance: float
    kind: str  # of what broke first
    groups: tuple[tuple[str, ...], ...] = ()  # of parameters and buffers that are looked at by themselves
    is_of_mask: bool = False  # whether what broke does so in any arithmetic, and the change is one of the model

    def deviation(self, trial: Trial) -> Deviation:
        if not trial.is_over:
            return Deviation(math.inf, math.inf, math.inf)
        return deviation(trial.of, self.exact, self.fmt, self.subject.optimizer is not None, self.groups)

    def agrees(self, deviation: Deviation, report: Report) -> bool:
        """Whether a run is within tolerance, made no infinity or NaN, and what errors do not show is gone."""
        return deviation.worst <= self.tolerance and not self.troubles(report)

    def troubles(self, report: Report) -> str:
        """What is wrong in a run beside its error; "" for nothing."""
        if not (self.is_of_mask or self.has_finite_results):
            return "float64 makes no finite result either: there is nothing to agree with"
        kinds: tuple[str, ...] = (self.kind,) if self.kind in _SMALL else ()
        if self.kind in STANDING and not self.sees_movement:
            kinds = STANDING  # one may have turned into another
        first = next((event for event in report.events if event.breaks or event.kind in kinds), None)
        return f"{EVENTS[first.kind]}: {said(first)}" if first is not None else ""

    @cached_property
    def has_finite_results(self) -> bool:
        """Whether there is anything to compare results with."""
        results = [item for result in self.exact.results for item in result]
        return not results or any(bool(item.isfinite().any()) for item in results)

    @cached_property
    def sees_movement(self) -> bool:
        """Whether the state moves so far that its format could hold most of that, and each group does."""
        return all(resolution(self.exact, self.fmt, names) <= _SEEN for names in self.groups or ((),))


def exact_run(subject: Subject, recipe: Recipe, is_native: bool) -> Taken:
    """The float64 shadow of an fp32 run; under "native", where no fp32 run is the same script, that of the run itself."""
    settings = recipe.settings if is_native else (("fmt", WIDE),)
    changed = replace(subject, settings=dict(settings))
    taken = run_recipe(changed, recipe.having(settings=settings), ("shadow",)).exact
    assert taken is not None
    return taken


def price_of_precision(judge: Judge, recipe: Recipe, evidence: Evidence) -> float:
    """The error of the format's precision alone: with the range, accumulators, weights and optimizer of fp32.

    0 under "native", whose precisions are the script's own.
    """
    if evidence.policy.is_native:
        return 0.0
    precise = f"e8m{judge.fmt.precision - 1}"
    formats = {"*": precise, "weight": WIDE, "optimizer": WIDE}
    subject = replace(judge.subject, settings={"fmt": formats})
    return judge.deviation(run_recipe(subject, recipe.having(settings=(("fmt", formats),)), ())).worst


def tolerance_of(price: float) -> float:
    """One and a half times what precision alone costs, but 5 to 50 %; 5 % where that breaks as well."""
    return min(MOST, max(LEAST, _SPARE * price)) if math.isfinite(price) else LEAST
