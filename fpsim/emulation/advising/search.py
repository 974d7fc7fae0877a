"""Which remedies are tried, in which order, and what came of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from fpsim.emulation.advising.evidence import Evidence
from fpsim.emulation.advising.judging import Judge
from fpsim.emulation.advising.recipe import Recipe
from fpsim.emulation.advising.remedies import EVERYTHING, LAST_RESORT, REMEDIES, Remedy
from fpsim.emulation.advising.rewriting import CannotTry
from fpsim.emulation.advising.trial import Subject, UntilItBreaks, run_recipe
from fpsim.report.advised import Attempt, Deviation
from fpsim.report.verdict import subject as said

_NEVER = 1000
_DEEPEST = 4  # remedies together
_WIDEST = 3  # combinations that are followed
_FAR = 0.5  # of the error has to go for a remedy to help


@dataclass
class Tried:
    """An attempt with what it consists of, and the evidence that it left."""

    attempt: Attempt
    remedies: tuple[Remedy, ...] = ()
    recipe: Recipe | None = None
    evidence: Evidence | None = None

    @property
    def can_be_extended(self) -> bool:
        """Whether it ran, is not enough, and keeps the format."""
        return self.evidence is not None and self.attempt.outcome != "restores" and self.remedies[-1].cost < EVERYTHING


@dataclass
class Search:
    """Tries remedies one by one, then together, and keeps every attempt."""

    judge: Judge
    baseline: Deviation
    most: int
    progress: Callable[[str], None]
    tried: list[Tried] = field(default_factory=list)
    _codes: set[str] = field(default_factory=set)

    def search(self, recipe: Recipe, evidence: Evidence) -> list[Tried]:
        """All attempts: what answers the evidence alone, then combinations that are cheaper than what restores agreement.

        Where nothing does, fp32 for everything.
        """
        self._codes.add(recipe.code())
        start = Tried(Attempt((), ""), (), recipe, evidence)
        self._extend(start, REMEDIES)
        alone = [item for item in self.tried if item.can_be_extended]
        for one, other in combinations(alone, 2):  # two that do nothing alone may do it together
            if one.remedies[0] is not other.remedies[0]:
                self._extend(one, other.remedies, evidence)
        for depth in range(1, _DEEPEST):  # more on top of the best ones, by what broke first in them
            deepest = [item for item in self.tried if len(item.remedies) == depth and item.can_be_extended]
            for item in sorted(deepest, key=self._rank)[:_WIDEST]:
                self._extend(item, REMEDIES)
        if self._best == _NEVER:
            self._extend(start, (LAST_RESORT,))
        return self.tried

    @property
    def _best(self) -> int:
        """The cost of the cheapest that restores agreement."""
        return min((item.attempt.cost for item in self.tried if item.attempt.outcome == "restores"), default=_NEVER)

    def _rank(self, item: Tried) -> tuple[Any, ...]:
        """The nearest to the shadow first, of those that broke those that came furthest."""
        assert item.evidence is not None
        trial = item.evidence.trial
        return item.attempt.error, -len(trial.of.results), -trial.report.total.elements, item.attempt.cost

    def _is_worth(self, item: Tried, remedy: Remedy) -> bool:
        """Whether a combination gives up less than what restores agreement already, and than the format itself."""
        return self._cost(item, remedy) < self._best and max(each.cost for each in (remedy, *item.remedies)) < EVERYTHING

    @staticmethod
    def _cost(item: Tried, remedy: Remedy) -> int:
        """That of the dearest, and one for each further one."""
        return max([remedy.cost, *(done.cost for done in item.remedies)]) + len(item.remedies)

    def _extend(self, item: Tried, remedies: Any, evidence: Evidence | None = None) -> None:
        """Try each remedy that answers the evidence on top of what was tried."""
        assert item.recipe is not None and item.evidence is not None
        evidence = evidence or item.evidence
        for remedy in remedies:
            if not remedy.answers(evidence) or (item.remedies and not self._is_worth(item, remedy)):
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
        self.progress(" and ".join(titles))
        try:
            trial = run_recipe(self.judge.subject, recipe, (UntilItBreaks(),))
        except Exception as error:  # noqa: BLE001 - the advice says it
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}".rstrip(": ")
            return Tried(Attempt(titles, "not tried", cost, reason=reason))
        deviation = self.judge.deviation(trial)
        troubles = self.judge.troubles(trial.report)
        if self.judge.agrees(deviation, trial.report):
            outcome = "restores"
        else:
            helps = deviation.worst < min(_FAR * self.baseline.worst, 1.0)  # an error of 1 is that of a zero
            outcome = "helps" if helps else "does not help"
        attempt = Attempt(titles, outcome, cost, deviation, "" if outcome == "restores" else troubles, recipe.code())
        assert item.evidence is not None
        evidence = replace(item.evidence, trial=trial)
        return Tried(attempt, (*item.remedies, remedy), recipe, evidence)


def restoring(attempts: Iterable[Attempt]) -> list[Attempt]:
    """Those that restore agreement, the cheapest first, and of equal cost the nearest to the shadow."""
    enough = [attempt for attempt in attempts if attempt.outcome == "restores"]
    return sorted(enough, key=lambda attempt: (attempt.cost, attempt.error))


def lasting(subject: Subject, tried: Iterable[Tried], most: int, progress: Callable[[str], None]) -> Iterator[Attempt]:
    """The attempts; the cheapest fixes have run all steps of the subject, and those that broke there only help."""
    tried = list(tried)
    recipes = {item.attempt: item.recipe for item in tried}
    later: dict[Attempt, str] = {}
    for attempt in restoring(recipes):
        if sum(not reason for reason in later.values()) < most:
            progress(f"{attempt.title}, all steps")
            recipe = recipes[attempt]
            assert recipe is not None
            events = run_recipe(subject, recipe, (UntilItBreaks(),)).report.events
            later[attempt] = next((f"breaks at step {event.step}: {said(event)}" for event in events if event.breaks), "")
    for attempt in recipes:
        yield replace(attempt, outcome="helps", reason=later[attempt]) if later.get(attempt) else attempt
