"""`advise`: what to change so that a step agrees with what float64 computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from itertools import islice
from typing import Any

import torch
from torch import nn

from fpsim.emulation.advising.evidence import Evidence, format_of_model
from fpsim.emulation.advising.recipe import Call, Recipe, key_of
from fpsim.emulation.advising.remedies import WIDE
from fpsim.emulation.advising.search import Judge, Search, restoring
from fpsim.emulation.advising.taking import Taken
from fpsim.emulation.advising.trial import Subject, Trial, run_recipe
from fpsim.emulation.machine.policy import Policy, make_policy
from fpsim.emulation.simulation import Simulation, check_state
from fpsim.report.advice import Advice
from fpsim.report.advised import Attempt, Deviation, Sensitivity
from fpsim.report.console import progress as bar
from fpsim.report.records import Fix, Measurement

_OBSERVED = ("events", "shadow", "range", "coverage")


def advise(
    model: nn.Module,
    data: Iterable[Any],
    step: Callable[..., Any],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    *,
    fmt: Any = "fp16",
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    granularity: str = "kernel",
    steps: int = 20,
    tolerance: float | None = None,
    sensitivity: bool | Sequence[str] = False,
    most: int = 60,
) -> Advice:
    """What broke first, and the cheapest changes that restore agreement with float64, each of them run.

    The model takes the batches in the given arithmetic, and once in float64 (the shadow of an fp32 run, with the same masks and
    random numbers; under "native" that of the run itself). Remedies that answer what broke first are tried one by one, each from the
    same state, by executing the code that is printed; if none suffices, in combinations.

    Parameters
    ----------
    model : left as it is; each trial has a copy.
    data : batches; a tuple or list is spread out, `step(model, *batch)`.
    step : computes with the model that it is given. With an optimizer it returns the loss, or (loss, outputs): `advise` runs the
        backward pass and the optimizer's step itself, so that it can change them. Without one, what it returns is compared.
    optimizer : makes an optimizer of parameters; without one nothing is trained.
    fmt, accumulate, rounding, seed, granularity : as `run` has them.
    steps : so many batches are run, at most, in every trial.
    tolerance : up to which relative error a run agrees. Left out, 5 %, or 16 units of roundoff where that is more, up to 25 %.
    sensitivity : whether to measure what each innermost module does when it alone is narrow, and when it alone is fp32; or the
        paths of the modules to measure so.
    most : so many trials, at most.

    The same arguments give the same advice: torch's generator starts from 0 in every trial, and is left as it was.

    Raises
    ------
    ValueError : no batches; a model without parameters to train; a step that never calls the model it is given, or whose loss
        does not depend on it; a path that does not exist; and what `run` raises.
    TypeError : a step that returns no loss though there is an optimizer.

    A remedy that cannot be tried is listed with the reason.
    """
    settings = {"fmt": fmt, "accumulate": accumulate, "rounding": rounding, "seed": seed, "granularity": granularity}
    defaults = {"accumulate": None, "rounding": "nearest-even", "seed": None, "granularity": "kernel"}
    settings = {name: value for name, value in settings.items() if name == "fmt" or value != defaults[name]}
    policy = make_policy(fmt, accumulate, rounding, seed, granularity)
    batches = list(islice(data, steps))
    _check(model, batches, optimizer, policy)
    paths = _paths(model, policy, sensitivity)
    spreads = isinstance(batches[0], (tuple, list))
    subject = Subject(model, batches, step, optimizer, settings)
    recipe = Recipe(tuple(settings.items()), Call(spreads, optimizer is not None))
    with bar() as shown:
        task = shown.add_task("float64", total=None)

        def tell(done: int, what: str) -> None:
            shown.update(task, completed=done, description=what)

        exact, recipe = _exact_run(subject, recipe, policy)
        tell(1, "as it is")
        trial = run_recipe(subject, recipe, _OBSERVED)
        if exact is None:
            exact = trial.exact
        assert exact is not None
        narrow = format_of_model(policy, model)
        evidence = Evidence(trial, model, fmt, narrow)
        allowed = tolerance if tolerance is not None else min(0.25, max(0.05, 16 * narrow.unit_roundoff))
        judge = Judge(subject, exact, narrow, allowed, evidence.focus)
        found = judge.deviation(trial)
        attempts: list[Attempt] = []
        if not judge.agrees(found, trial.report):
            attempts = Search(judge, model, fmt, found, most, tell).search(recipe, evidence)
        rows = tuple(_sensitivity_of(path, judge, recipe, evidence, tell) for path in paths)
    return _advice(judge, trial, found, attempts, rows)


def _check(model: nn.Module, batches: list[Any], optimizer: Any, policy: Policy) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"advise takes a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, Simulation):
        raise TypeError("this model is a Simulation already; advise on its .model")
    if policy.is_identity:
        raise ValueError(f"{policy} is torch itself: there is nothing to advise on")
    if not batches:
        raise ValueError("there are no batches: data is empty, or steps is 0")
    if len({isinstance(batch, (tuple, list)) for batch in batches}) > 1:
        raise ValueError("some batches are tuples or lists, which are spread out, and some are not: make all of them tuples")
    check_state(model, policy)
    if optimizer is not None and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("the model has no parameters to train; leave out optimizer=, and what step returns is compared alone")


def _paths(model: nn.Module, policy: Policy, sensitivity: bool | Sequence[str]) -> list[str]:
    """The modules to measure: those that were named, or the innermost ones."""
    modules = dict(model.named_modules())
    if sensitivity and policy.is_native:
        raise ValueError('sensitivity gives modules formats of their own, which fmt="native" has none of')
    if isinstance(sensitivity, bool):
        inner = [path for path, module in modules.items() if path and not list(module.children())]
        return inner if sensitivity else []
    for path in [sensitivity] if isinstance(sensitivity, str) else sensitivity:
        if path not in modules or not path:
            close = get_close_matches(path, modules, 1)
            raise ValueError(f"the model has no module {path!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    return [sensitivity] if isinstance(sensitivity, str) else list(sensitivity)


def _exact_run(subject: Subject, recipe: Recipe, policy: Policy) -> tuple[Taken | None, Recipe]:
    """The float64 shadow of an fp32 run, and the recipe that knows what the step returns.

    Under "native" the shadow of the run itself is taken later, for there no float32 run is the same script.
    """
    settings = recipe.settings if policy.is_native else (("fmt", WIDE),)
    reference = replace(subject, settings=dict(settings))
    trial = run_recipe(reference, recipe.having(settings=settings), ("shadow",), learns=True)
    _check_called(trial, subject)
    recipe = recipe.having(call=replace(recipe.call, returns_pair=trial.returns_pair))
    return (None if policy.is_native else trial.exact), recipe


def _check_called(trial: Trial, subject: Subject) -> None:
    called = {module.path for module in trial.report.modules}
    own = {name or type(subject.model).__name__ for name, _ in subject.model.named_modules()}
    if called.isdisjoint(own) and not trial.of.gradients_of_any:
        raise ValueError("step never called the model that it was given: it computes with its first argument, not with another model")


def _sensitivity_of(path: str, judge: Judge, recipe: Recipe, evidence: Evidence, tell: Callable[[int, str], None]) -> Sensitivity:
    found = []
    for title, changed in (
        ("narrow", _alone_narrow(recipe, path, evidence)),
        ("fp32", recipe.with_formats((key_of(path), WIDE))),
    ):
        tell(0, f"{path} alone {title}")
        found.append(math.nan if changed is None else judge.deviation(run_recipe(judge.subject, changed, ())).worst)
    return Sensitivity(path, type(evidence.modules[path]).__name__, *found)


def _alone_narrow(recipe: Recipe, path: str, evidence: Evidence) -> Recipe | None:
    """Everything fp32 but one module; None under a mapping, which has no one format for a module."""
    if evidence.is_by_module or evidence.policy.is_native:
        return None
    return recipe.having(entries=(("*", WIDE), (key_of(path), "")))


def _advice(judge: Judge, trial: Trial, found: Deviation, attempts: list[Attempt], rows: tuple[Sensitivity, ...]) -> Advice:
    fixes = tuple(
        Fix(attempt.title, attempt.code, True, attempt.error, _evidence(attempt, found))
        for attempt in islice(restoring(attempts), 3)
    )
    steps = len(judge.subject.batches)
    measurement = Measurement(
        "error against float64", found.worst, math.nan, math.nan, steps, steps, found.worst > judge.tolerance
    )
    report = replace(trial.report, fixes=fixes, measurement=measurement)
    is_finite = all(bool(item.isfinite().all()) for result in judge.exact.results for item in result)
    return Advice(report, found, judge.tolerance, steps, tuple(attempts), rows, is_finite)


def _evidence(attempt: Attempt, before: Deviation) -> str:
    return f"relative error {attempt.error:.2g} remains, it was {before.worst:.2g}"
