"""The methods: what each makes of a trace. One function a method, one table of them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fpsim.emulation.certification.adjoint import Shadow, contributions, shares
from fpsim.emulation.certification.forward import Pass, States, logits_of, walk
from fpsim.emulation.certification.passes import Box, Library, Running
from fpsim.emulation.certification.slopes import Operand, upwards
from fpsim.emulation.certification.steps import Trace
from fpsim.emulation.certification.table import SINGLE
from fpsim.emulation.machine.policy import Policy
from fpsim.numbers.rounding import Rounding


@dataclass(frozen=True)
class Request:
    """What is asked for beside the policy: the box's half width, the confidence, whether an fp32 run is the reference, and
    whether the trace must stay whole: the draws of an input run alone are others."""

    radius: float | torch.Tensor | None = None
    confidence: float = 0.999
    single: bool = False
    whole: bool = False


Details = tuple[dict[str, tuple[float, float, float]], dict[str, float]]


@dataclass
class Found:
    """What a method found for one trace.

    logits   whose margin counts; `bound` of what the reference may differ from them, `width` of what is added to the bound
             before margins are compared: how far the logits of a box are from its middle's
    details  when called, which takes as long as the bounds did:
        module path -> (largest bound, mean bound, mean magnitude) of what the module's last operation gave
        module path -> what its operations add to the mean bound of the logits; empty where no method says so
    """

    logits: torch.Tensor
    bound: torch.Tensor
    width: torch.Tensor | None = None
    details: Callable[[], Details] = lambda: ({}, {})


class NeedsOneSample(Exception):
    """The method's statement is about everything in the trace: certify the samples one by one."""


def _shadow(trace: Trace, policy: Policy, request: Request) -> Found:
    library = walk(Library(trace))
    shadow = Shadow(trace, policy, library, parts=False)
    states = walk(shadow)
    logits = trace.double(trace.output)
    bound = _distance(states[trace.output])
    if shadow.overflowed:
        if len(logits) > 1 and not request.whole:
            raise NeedsOneSample
        bound = torch.full_like(bound, math.inf)
    layers = _layers(trace, states)
    return Found(logits, bound + _single_run(trace, request, library), details=lambda: (layers, {}))


def _running(trace: Trace, policy: Policy, request: Request) -> Found:
    bound = _distance(logits_of(Running(trace, policy))) + _any_single_run(trace, request)
    return Found(trace.double(trace.output), bound, details=functools.partial(_details, Running(trace, policy)))


def _mean_value(trace: Trace, policy: Policy, request: Request) -> Found:
    return _backwards(trace, policy, request, None)


def _probabilistic(trace: Trace, policy: Policy, request: Request) -> Found:
    if policy.rounding not in (Rounding.NEAREST_EVEN, Rounding.NEAREST_AWAY, Rounding.STOCHASTIC):
        raise ValueError(
            f"rounding {str(policy.rounding)!r} errs to one side, which no independence of errors makes good; method="
            '"probabilistic" takes nearest and stochastic rounding'
        )
    return _backwards(trace, policy, request, request.confidence)


def _backwards(trace: Trace, policy: Policy, request: Request, confidence: float | None) -> Found:
    logits = trace.double(trace.output)
    if len(logits) != 1 and not request.whole:
        raise NeedsOneSample
    library = walk(Library(trace))
    shadow = Shadow(trace, policy, library, squares=confidence is not None)
    states = walk(shadow)
    totals = contributions(shadow, states)
    signed_part = sum(totals.signed_part.values(), torch.zeros(logits.numel(), dtype=torch.float64))
    sizes = sum((part.abs() for part in totals.signed_part.values()), torch.zeros(logits.numel(), dtype=torch.float64))
    if confidence is None:
        per_path = totals.bounds
    else:
        # Azuma and Hoeffding for every logit of an input, both signs: all hold at once with the confidence.
        factor = math.sqrt(2 * math.log(2 * logits[0].numel() / (1 - confidence)))
        total = upwards(sum(totals.squares.values(), torch.zeros(())))
        root = torch.sqrt(total) * factor
        share = torch.where(total > 0, root / total, 0.0)
        per_path = {path: totals.fixed[path] + share * totals.squares[path] for path in totals.squares}
    bound = upwards(signed_part.abs() + 2.0**-40 * sizes + sum(per_path.values()), len(per_path))
    if shadow.overflowed:
        bound = torch.full_like(bound, math.inf)
    bound = torch.where(bound.isnan(), torch.inf, bound).reshape(logits.shape)
    parts = {path: float((per_path[path] + totals.signed_part[path].abs()).mean()) for path in reversed(per_path)}
    layers = _layers(trace, states)
    return Found(logits, bound + _single_run(trace, request, library), details=lambda: (layers, parts))


def _a_priori(trace: Trace, policy: Policy, request: Request) -> Found:
    box = _box(trace, policy, request)
    ranges = walk(Library(trace, box=box))
    output = ranges[trace.output]
    assert isinstance(output, Operand)
    bound = _distance(logits_of(Box(trace, policy, ranges, box)))
    if request.single:
        bound = bound + _distance(logits_of(Box(trace, policy, ranges, box, SINGLE)))
    width = torch.zeros_like(bound) if output.radius is None else output.radius
    return Found(output.value, bound, width, functools.partial(_details, Box(trace, policy, ranges, box)))


def _box(trace: Trace, policy: Policy, request: Request) -> dict[int, torch.Tensor]:
    """The half width around each input; empty where it is 0 and how the inputs are rounded is known, draws aside."""
    radius = torch.as_tensor(0.0 if request.radius is None else request.radius, dtype=torch.float64)
    if policy.rounding is not Rounding.STOCHASTIC and not bool((radius > 0).any()):
        return {}
    return {number: radius.expand(trace.references[number].shape).clone() for number in trace.inputs}


def _distance(state: object) -> torch.Tensor:
    """A bound on |emulated - exact|."""
    assert isinstance(state, Operand)
    if state.error is not None:
        return state.error
    distance = upwards(state.difference().abs())
    distance = distance if state.radius is None else upwards(distance + state.radius)
    return torch.where(distance.isnan(), torch.inf, distance)


def _any_single_run(trace: Trace, request: Request) -> torch.Tensor | float:
    """What any fp32 run may differ from the exact model, if that is the reference: bounded around one such run."""
    return _distance(logits_of(Library(trace, SINGLE))) if request.single else 0.0


def _single_run(trace: Trace, request: Request, library: States) -> torch.Tensor | float:
    """What the fp32 run that this library makes differs from the exact model, if that is the reference."""
    if not request.single:
        return 0.0
    exact, single = library[trace.output], walk(Library(trace, SINGLE))[trace.output]
    assert isinstance(exact, Operand) and isinstance(single, Operand)
    return _distance(Operand(single.value, exact.reference, exact.radius))


def _details(source: Pass) -> Details:
    """What the pass found on its way to the bounds, in a second one that keeps it."""
    source.links, trace = [], source.trace
    states = walk(source)
    shape = trace.values[trace.output].shape
    parts = shares(source.links, trace.output, shape)
    return _layers(trace, states), {path: part / shape.numel() for path, part in parts.items()}


def _layers(trace: Trace, states: States) -> dict[str, tuple[float, float, float]]:
    """By module path, of what its last operation gave: largest bound, mean bound, mean magnitude."""
    last: dict[str, int] = {}
    for step in trace.steps:
        number = step.outputs[0] if step.outputs else None
        if number is not None and isinstance(states.get(number), Operand) and trace.values[number].is_floating_point():
            last.pop(step.path, None)
            last[step.path] = number
    layers = {}
    for path, number in last.items():
        distance, size = _distance(states[number]), trace.double(number).abs()
        layers[path] = (float(distance.max()), float(distance.mean()), float(size[torch.isfinite(size)].mean()))
    return layers


Method = Callable[[Trace, Policy, Request], Found]

METHODS: dict[str, Method] = {
    "shadow": _shadow,
    "running": _running,
    "mean-value": _mean_value,
    "probabilistic": _probabilistic,
    "a-priori": _a_priori,
}
