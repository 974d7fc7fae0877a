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
from fpsim.emulation.advising.judging import Judge, exact_run, price_of_precision, tolerance_of
from fpsim.emulation.advising.recipe import WIDE, Call, Recipe, key_of
from fpsim.emulation.advising.search import Search, Tried, lasting, restoring
from fpsim.emulation.advising.trial import Subject, Trial, UntilItBreaks, run_recipe
from fpsim.emulation.advising.window import window_of
from fpsim.emulation.machine.policy import Policy, make_policy
from fpsim.emulation.simulation import Simulation, check_state
from fpsim.report.advice import Advice
from fpsim.report.advised import Attempt, Deviation, Sensitivity
from fpsim.report.console import progress as bar
from fpsim.report.records import Fix, Measurement

_FIXES = 3
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

    The model takes the batches in the given arithmetic. Around what broke first, four steps are run in float64 (the shadow of
    an fp32 run, with the same masks and random numbers; under "native" that of the run itself). Remedies that answer what broke
    are tried on these steps, each from the state that the run had there, by executing the code that is printed: one by one,
    then together where that is cheaper than what restores agreement alone. Where weights stand still, all steps are run. The
    fixes run all steps as well.

    Parameters
    ----------
    model : left as it is; each trial has a copy.
    data : batches; a tuple or list is spread out, `step(model, *batch)`.
    step : computes with the model that it is given. With an optimizer it returns the loss, or (loss, outputs): `advise` runs
        the backward pass and the optimizer's step itself, so that it can change them. Without one, what it returns is compared.
    optimizer : makes an optimizer of parameters; without one nothing is trained.
    fmt, accumulate, rounding, seed, granularity : as `run` has them.
    steps : so many batches are taken, at most.
    tolerance : up to which relative error a run agrees. Left out, one and a half times the error of the format's precision
        alone (with the range, accumulators, weights and optimizer of fp32), but 5 to 50 %.
    sensitivity : whether to measure the error when each module that computes is alone narrow, and when it is alone fp32; or
        the paths of the modules to measure so.
    most : so many trials, at most.

    `step` is called again in every trial, and keeps no state of its own.
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
    subject = Subject(model, batches, step, optimizer, settings)
    recipe = Recipe(tuple(settings.items()), Call(isinstance(batches[0], (tuple, list)), optimizer is not None))
    with bar() as shown:
        task = shown.add_task("as it is", total=None)

        def tell(what: str) -> None:
            shown.update(task, advance=1, description=what)

        trial = run_recipe(subject, recipe, _OBSERVED, learns=True)
        _check_called(trial, optimizer is not None)
        recipe = recipe.having(call=replace(recipe.call, returns_pair=trial.returns_pair))
        narrow = format_of_model(policy, model)
        evidence = Evidence(trial, model, fmt, narrow)
        every = _computing(evidence) if sensitivity is True else []
        tell("float64")
        few, first = window_of(subject, recipe, trial)
        exact = exact_run(few, recipe, policy.is_native)
        judge = Judge(few, exact, narrow, 0.0, evidence.kind, evidence.focus, evidence.is_of_mask)
        price = price_of_precision(judge, recipe, evidence)
        judge.tolerance = tolerance_of(price) if tolerance is None else tolerance
        again = run_recipe(few, recipe, (UntilItBreaks(),)) if few is not subject else trial
        deviation = judge.deviation(again)
        tried: list[Tried] = []
        agrees = judge.agrees(deviation, again.report)
        if not agrees:
            tried = Search(judge, deviation, most, tell).search(recipe, evidence)
        attempts = [item.attempt for item in tried] if few is subject else list(lasting(subject, tried, _FIXES, tell))
        rows = tuple(_sensitivity_of(path, judge, recipe, evidence, tell) for path in paths or every)
    return _advice(judge, trial, deviation, agrees, attempts, rows, price, first)


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
    """The modules that were named."""
    modules = dict(model.named_modules())
    if sensitivity and policy.is_native:
        raise ValueError('sensitivity gives modules formats of their own, which fmt="native" has none of')
    named = [] if isinstance(sensitivity, bool) else [sensitivity] if isinstance(sensitivity, str) else list(sensitivity)
    for path in named:
        if path not in modules or not path:
            close = get_close_matches(path, modules, 1)
            raise ValueError(f"the model has no module {path!r}{f'; did you mean {close[0]!r}?' if close else ''}")
    return named


def _computing(evidence: Evidence) -> list[str]:
    """The modules in the model that computed anything themselves, in the order of the network."""
    computing = dict.fromkeys(row.module for row in evidence.trial.report.rows)
    return [path for path in computing if path and path in evidence.modules]


def _check_called(trial: Trial, trains: bool) -> None:
    if not (any(trial.of.gradients) if trains else trial.was_called):
        raise ValueError("step never called the model that it was given: let it compute with its first argument")


def _sensitivity_of(
    path: str, judge: Judge, recipe: Recipe, evidence: Evidence, tell: Callable[[str], None]
) -> Sensitivity:
    errors = []
    for title, changed in (
        ("narrow", _alone_narrow(recipe, path, evidence)),
        ("fp32", recipe.with_formats((key_of(path), WIDE))),
    ):
        tell(f"{path} alone {title}")
        errors.append(math.nan if changed is None else judge.deviation(run_recipe(judge.subject, changed, ())).worst)
    return Sensitivity(path, type(evidence.modules[path]).__name__, *errors)


def _alone_narrow(recipe: Recipe, path: str, evidence: Evidence) -> Recipe | None:
    """Everything fp32 but one module; None under a mapping, which has no one format for a module."""
    if evidence.is_by_module or evidence.policy.is_native:
        return None
    return recipe.having(entries=(("*", WIDE), (key_of(path), "")))


def _advice(
    judge: Judge, trial: Trial, deviation: Deviation, agrees: bool, attempts: list[Attempt], rows: tuple[Sensitivity, ...],
    price: float, first: int,
) -> Advice:  # fmt: skip
    few, all_steps = len(judge.subject.batches), len(trial.of.results)
    where = "" if few == all_steps else f" in steps {first} to {first + few - 1}; nothing breaks in all {all_steps}"
    fixes = tuple(
        Fix(item.title, item.code, True, item.error, f"relative error {item.error:.2g} remains of {deviation.worst:.2g}{where}")
        for item in restoring(attempts)[:_FIXES]
    )
    measurement = Measurement(
        "relative error against float64", deviation.worst, math.nan, math.nan, few, few, deviation.worst > judge.tolerance
    )
    report = replace(trial.report, fixes=fixes, measurement=measurement)
    is_finite = all(bool(item.isfinite().all()) for result in judge.exact.results for item in result)
    return Advice(report, deviation, judge.tolerance, price, all_steps, (first, few), agrees, tuple(attempts), rows, is_finite)
