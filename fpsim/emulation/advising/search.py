"""Which remedies are tried, in which order, and what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations
from typing import Any

from torch import nn

from fpsim.emulation.advising.evidence import Evidence
from fpsim.emulation.advising.recipe import Recipe
from fpsim.emulation.advising.remedies import REMEDIES, Remedy
from fpsim.emulation.advising.rewriting import CannotTry
from fpsim.emulation.advising.taking import Taken, deviation, resolution
from fpsim.emulation.advising.trial import Subject, Trial, run_recipe
from fpsim.numbers.formats import Format
from fpsim.report.advised import Attempt, Deviation
from fpsim.report.records import EVENTS
from fpsim.report.report import Report
from fpsim.report.verdict import subject

#: What a few steps cannot show in errors: an event of these kinds has to be gone.
LASTING = ("stopped", "decay-lost", "stale-statistic", "zero-gradient")
#: Those of them that the movement shows after all, if the steps were enough for that.
_STANDING = ("stopped", "decay-lost", "stale-statistic")

_SEEN = 0.25  # of a movement may be below the spacing of the format
_NEVER = 1000
_DEEPEST = 4  # remedies together
_WIDEST = 3  # combinations that are followed
_FAR = 0.5  # of the error has to go for a remedy to help


@dataclass
class Judge:
    """What runs are measured against, and by."""

    subject: Subject
    exact: Taken
    fmt: Format
    tolerance: float
    names: tuple[str, ...] = ()  # parameters that are looked at by themselves

    def deviation(self, trial: Trial) -> Deviation:
        return deviation(trial.of, self.exact, self.fmt, self.subject.optimizer is not None, self.names)

    def agrees(self, found: Deviation, report: Report) -> bool:
        """Whether a run is within tolerance, made no infinity or NaN, and lost nothing that shows later only."""
        return found.worst <= self.tolerance and not self.troubles(report)

    def troubles(self, report: Report) -> str:
        """What is wrong in a run beside its error; "" for nothing."""
        kinds = set(LASTING) - set(_STANDING) if self.sees_movement else LASTING
        first = next((event for event in report.events if event.breaks or event.kind in kinds), None)
        return f"{EVENTS[first.kind]}: {subject(first)}" if first is not None else ""

    @cached_property
    def sees_movement(self) -> bool:
        """Whether the state moves so far that its format could hold most of that."""
        return resolution(self.exact, self.fmt, self.names) <= _SEEN


@dataclass
class Tried:
    """An attempt with what it consists of, and the evidence that it left."""

    attempt: Attempt
    remedies: tuple[Remedy, ...] = ()
    recipe: Recipe | None = None
    evidence: Evidence | None = None


@dataclass
class Search:
    """Tries remedies one by one, then together, and keeps every attempt."""

    judge: Judge
    model: nn.Module
    given: Any
    baseline: Deviation
    most: int
    progress: Callable[[int, str], None]
    tried: list[Tried] = field(default_factory=list)
    _codes: set[str] = field(default_factory=set)

    def search(self, recipe: Recipe, evidence: Evidence) -> list[Attempt]:
        """All attempts: what answers the evidence alone, then combinations that are cheaper than what restores agreement."""
        self._codes.add(recipe.code())
        start = Tried(Attempt((), ""), (), recipe, evidence)
        self._extend(start, REMEDIES)
        alone = [item for item in self.tried if item.evidence is not None]
        for one, other in combinations(alone, 2):  # two that do nothing alone may do it together
            if one.remedies[0] is not other.remedies[0]:
                self._extend(one, other.remedies, evidence)
        for depth in range(1, _DEEPEST):  # more on top of the best ones, by what broke first in them
            deepest = [item for item in self.tried if len(item.remedies) == depth and item.evidence is not None]
            for item in sorted(deepest, key=self._rank)[:_WIDEST]:
                self._extend(item, REMEDIES)
        return [item.attempt for item in self.tried]

    @property
    def _best(self) -> int:
        """The cost of the cheapest that restores agreement."""
        return min((item.attempt.cost for item in self.tried if item.attempt.outcome == "restores"), default=_NEVER)

    def _rank(self, item: Tried) -> tuple[Any, ...]:
        assert item.evidence is not None
        first = item.evidence.event
        return item.attempt.error, -(first.step if first is not None else 0), item.attempt.cost

    @staticmethod
    def _cost(item: Tried, remedy: Remedy) -> int:
        """That of the dearest, and one for each further one."""
        return max([remedy.cost, *(done.cost for done in item.remedies)]) + len(item.remedies)

    def _extend(self, item: Tried, remedies: Any, evidence: Evidence | None = None) -> None:
        """Try each remedy that answers the evidence on top of what was tried."""
        assert item.recipe is not None and item.evidence is not None
        evidence = evidence or item.evidence
        for remedy in remedies:
            if not remedy.answers(evidence) or (item.remedies and self._cost(item, remedy) >= self._best):
                continue
            try:
                changes = list(remedy.changes(evidence, item.recipe))
            except CannotTry as reason:
                if not item.remedies:
                    self.tried.append(Tried(Attempt((remedy.name,), "not tried", remedy.cost, reason=str(reason))))
                continue
            for title, recipe in changes:
                if recipe.code() in self._codes:
                    continue
                if len(self._codes) > self.most:
                    return
                self._codes.add(recipe.code())
                self.tried.append(self._try(item, remedy, title, recipe))
                if self.tried[-1].attempt.outcome == "restores":
                    break

    def _try(self, item: Tried, remedy: Remedy, title: str, recipe: Recipe) -> Tried:
        titles = (*item.attempt.remedies, title)
        cost = self._cost(item, remedy)
        self.progress(len(self._codes), " and ".join(titles))
        try:
            trial = run_recipe(self.judge.subject, recipe)
        except Exception as error:  # noqa: BLE001 - the advice says it
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
            return Tried(Attempt(titles, "not tried", cost, reason=reason))
        found = self.judge.deviation(trial)
        troubles = self.judge.troubles(trial.report)
        if self.judge.agrees(found, trial.report):
            outcome = "restores"
        else:
            outcome = "helps" if found.worst < _FAR * self.baseline.worst else "does not help"
        attempt = Attempt(titles, outcome, cost, found, "" if outcome == "restores" else troubles, recipe.code())
        assert item.evidence is not None
        evidence = replace(item.evidence, trial=trial)
        return Tried(attempt, (*item.remedies, remedy), recipe, evidence)


def restoring(attempts: list[Attempt]) -> Iterator[Attempt]:
    """Those that restore agreement, the cheapest first, and of equal cost the nearest to the shadow."""
    found = [attempt for attempt in attempts if attempt.outcome == "restores"]
    return iter(sorted(found, key=lambda attempt: (attempt.cost, attempt.error)))
