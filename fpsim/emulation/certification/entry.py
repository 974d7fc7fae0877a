"""`certify`: how far a model's emulated logits can be from what the model means."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from fpsim.emulation.certification.certificate import Certificate, settles
from fpsim.emulation.certification.layers import Layer
from fpsim.emulation.certification.methods import METHODS, Found, NeedsOneSample, Request
from fpsim.emulation.certification.trace import record
from fpsim.emulation.dispatch import switches
from fpsim.emulation.machine.policy import MixedPolicy, Policy
from fpsim.emulation.simulation import Simulation, run
from fpsim.numbers.rounding import Rounding

REFERENCES = ("exact", "fp32")


def certify(
    model: nn.Module,
    x: torch.Tensor | tuple[torch.Tensor, ...],
    fmt: Any = "fp16",
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    method: str = "shadow",
    *,
    reference: str = "exact",
    radius: float | torch.Tensor | None = None,
    confidence: float = 0.999,
    seed: int | None = None,
) -> Certificate:
    """A rigorous bound on |emulated logit - logit of the original model|, weight and input rounding included.

    Parameters
    ----------
    model : an `nn.Module` in float32 on the CPU, in eval mode; left as it is.
    x : a batch of inputs (n, ...), or a tuple of the model's arguments; the first axis counts the inputs. The model's output
        (or its `.logits`) is (n, ..., classes).
    fmt, accumulate, rounding, seed : the emulated machine, as for `run`; any accumulator, hardware units included. Mappings
        that give the forward pass of all modules one format, accumulator and mode.
    method :
        "shadow"         the emulated run beside a float64 run whose own error is bounded: tightest
        "running"        values of the emulated run, and a bound beside each, multiplied by |W| from layer to layer
        "mean-value"     what each operation of the run may add, carried to the logits by slopes with their signs
        "probabilistic"  the same with errors that are independent of each other, at a confidence
        "a-priori"       from the weights alone, for every input within `radius` of x
    reference : "exact", real arithmetic; or "fp32", any float32 run of the library: its own error is added.
    radius : the half width of the box, a number or a tensor of x's shape ("a-priori" only; left out, 0).
    confidence : with which "probabilistic" bounds hold for all logits of an input at once.

    Returns
    -------
    A `Certificate`. Where a product, partial sum or result overflowed or may have saturated the bound is inf, whatever came
    after. "mean-value" and "probabilistic" run each input alone (which matters only to accumulate="native"); so does "shadow"
    where something overflowed. Under stochastic rounding nothing does: the bounds are of `run(..., seed)(x)`, the draws of
    whose first pass are made here, and an overflow makes those of all inputs inf.

    Raises
    ------
    UnsupportedOp : an operation without a rule, naming it; a model that asks for numbers in Python.
    ValueError : unknown names, a model in training mode, a radius with another method, a confidence outside (0, 1), torch
        itself (fmt="fp32", accumulate="native").
    TypeError : a model or an output that is of no use here.
    """
    _check(model, method, reference, radius, confidence)
    inputs = x if isinstance(x, tuple) else (x,)
    if not inputs or not all(isinstance(item, torch.Tensor) and item.dim() for item in inputs):
        raise TypeError("x must be a tensor whose first axis counts inputs, or a tuple of such tensors")
    if not any(map(_is_dense, inputs)):
        raise TypeError("x holds sparse matrices alone, which belong to all inputs: none is counted")
    if not all(len(item) for item in inputs):
        raise ValueError("x holds no inputs: its first axis has length 0")
    _keep_memory()
    simulation = run(model, fmt, accumulate, rounding, seed)
    if simulation.policy.is_identity:
        raise ValueError(
            'fmt="fp32" with accumulate="native" is torch itself, whose operations are not rounded once each: certify '
            'accumulate="fp32", or compare another machine with any float32 run by reference="fp32"'
        )
    policy = _policy_of(simulation)
    draws = policy.rounding is Rounding.STOCHASTIC
    certified = _found(simulation, policy, model, inputs, method, Request(radius, confidence, reference == "fp32", draws))
    with torch.no_grad():
        logits, bound = (torch.cat([getattr(part, name) for part in certified]) for name in ("logits", "bound"))
        needed = torch.cat([part.bound if part.width is None else part.bound + part.width for part in certified])
    return Certificate(
        method, reference, str(simulation.policy), logits, bound, settles(logits, needed),
        functools.partial(_layers, certified),
        confidence if method == "probabilistic" else None, radius,
    )  # fmt: skip


@functools.cache
def _keep_memory() -> None:
    """Let the process keep up to 64 MB that are free, where glibc allocates: else up to a third of a pass is mapping anew,
    page by page, what the operation before gave back.

    glibc gives back what is free beyond twice the largest block below 32 MB that was mapped and freed; here is one.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _check(model: Any, method: str, reference: str, radius: Any, confidence: float) -> None:
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: known are {', '.join(METHODS)}")
    if reference not in REFERENCES:
        raise ValueError(f"unknown reference {reference!r}: known are {', '.join(REFERENCES)}")
    if not isinstance(model, nn.Module) or isinstance(model, Simulation):
        raise TypeError(f"certify takes the original torch.nn.Module, got {type(model).__name__}")
    if any(module.training for module in model.modules()):
        raise ValueError("the model is in training mode, where it draws at random and normalizes by batches; use model.eval()")
    if radius is not None and method != "a-priori":
        raise ValueError(f'radius is the half width of a box, and method="{method}" certifies one run; use "a-priori"')
    if radius is not None and not bool((torch.as_tensor(radius) >= 0).all()):
        raise ValueError("radius must not be negative or NaN")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")


def _policy_of(simulation: Simulation) -> Policy:
    """What the forward pass computes in; ValueError where that is not the same everywhere."""
    if not isinstance(simulation.policy, MixedPolicy):
        return simulation.policy
    try:
        return simulation.policy.of_forward(simulation._emulation.settings or {})
    except ValueError as error:
        raise ValueError(f"certify: {error}") from None


def _found(
    simulation: Simulation, policy: Policy, model: nn.Module, inputs: tuple[torch.Tensor, ...], method: str, request: Request
) -> list[Found]:
    """What the method finds for the batch at once, or else for one input after the other."""
    lengths = [len(item) for item in inputs if _is_dense(item)]
    if len(set(lengths)) != 1:
        raise ValueError(f"x: the inputs' first axes differ ({', '.join(map(str, lengths))})")

    def certified(some: tuple[torch.Tensor, ...]) -> Found:
        trace = record(simulation, model, some, box=method == "a-priori")  # as `run` is called here, gradients and all
        with _as_recorded():
            return METHODS[method](trace, policy, request)

    if request.whole or method in ("shadow", "running", "a-priori"):
        try:
            return [certified(inputs)]
        except NeedsOneSample:
            pass
    return [certified(tuple(item[i : i + 1] if _is_dense(item) else item for item in inputs)) for i in range(lengths[0])]


def _is_dense(item: torch.Tensor) -> bool:
    """Whether the first axis counts inputs; a sparse matrix is one of all of them."""
    return item.layout is torch.strided


@contextlib.contextmanager
def _as_recorded() -> Iterator[None]:
    """No gradients, and torch's switches as they are while a run is recorded."""
    switches.enter()
    try:
        with torch.no_grad():
            yield
    finally:
        switches.leave()


@_as_recorded()
def _layers(certified: list[Found]) -> tuple[Layer, ...]:
    """Largest of the largest and mean of the means over all inputs."""
    bounds, parts = zip(*(part.details() for part in certified), strict=True)
    layers = []
    for path in bounds[0]:
        rows = [part[path] for part in bounds if path in part]
        added = [part.get(path, 0.0) if part else float("nan") for part in parts]
        largest, mean, size = zip(*rows, strict=True)
        layers.append(
            Layer(path, max(largest), sum(mean) / len(rows), sum(size) / len(rows), sum(added) / len(added))
        )  # fmt: skip
    return tuple(layers)
