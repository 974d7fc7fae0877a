"""`compare`: one model on the same batches in several arithmetics."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fpsim.emulation.simulation import Simulation, run
from fpsim.report.comparison import Comparison
from fpsim.report.runs import Run


def compare(
    model: nn.Module,
    data: Iterable[Any],
    policies: Sequence[Any],
    loss: Callable[..., Any],
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] | None = None,
    seed: int = 0,
    observe: Sequence[str] = ("range", "events", "coverage"),
) -> Comparison:
    """Run the model through the same batches in each arithmetic, from the same state and random numbers.

    Parameters
    ----------
    model : left as it is; each arithmetic has a copy.
    data : batches; a tuple or list is spread out, `loss(model, *batch)`.
    policies : each a format, "fp16" or "fp16/fp16" with the accumulator after the slash, or a mapping of `run`'s arguments.
        The others are compared with the first.
    loss : a scalar tensor from the simulated model and a batch, or (scalar tensor, outputs): then agreement is the share
        of outputs whose largest entry along the last axis is the first arithmetic's.
    optimizer : makes an optimizer of parameters; without one, nothing is trained.
    seed : of torch's generator, set before each run and left as it was afterwards.
    observe : the names of what is observed, but where the arithmetic is torch itself; "shadow" adds the error of each layer.

    An exception in the middle of a run ends that run and is its report's `ending`; Ctrl-C ends all, and what was finished
    is returned. Raises ValueError without policies, and what `run` raises for an arithmetic before anything has run.
    """
    if not policies:
        raise ValueError("compare takes at least one arithmetic, such as 'fp32'")
    batches = [tuple(batch) if isinstance(batch, (tuple, list)) else (batch,) for batch in data]
    named = [named_policy(policy) for policy in policies]
    simulations = [run(model, **settings) for _, settings in named]
    for simulation, (_, settings) in zip(simulations, named, strict=True):
        if "observe" not in settings and not simulation.policy.is_identity:
            simulation.observe(tuple(observe))
    runs: list[Run] = []
    chosen: list[torch.Tensor] = []  # what the first run predicted
    for (name, _), simulation in zip(named, simulations, strict=True):
        steps = _Steps(simulation, loss, optimizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            interrupted = steps.take(batches)
        agreement = tuple(map(_agreement, steps.predictions, chosen))
        chosen = chosen or steps.predictions
        report = replace(simulation.report(), losses=tuple(steps.losses), ending=steps.ending)
        runs.append(Run(name, report, agreement if runs else (), steps.seconds))
        if interrupted:
            break
    return Comparison(tuple(runs))


def named_policy(policy: Any) -> tuple[str, dict[str, Any]]:
    """A name and `run`'s arguments: of "fp16/fp16", of a mapping with "fmt" in it, or of a format."""
    if isinstance(policy, Mapping) and "fmt" in policy:
        return ", ".join(f"{key}={value}" for key, value in policy.items()), dict(policy)
    if isinstance(policy, str):
        fmt, _, accumulate = policy.strip().partition("/")
        return policy.strip(), {"fmt": fmt, **({"accumulate": accumulate} if accumulate else {})}
    return str(policy), {"fmt": policy}


class _Steps:
    """One simulation on all batches."""

    def __init__(self, simulation: Simulation, loss: Callable[..., Any], optimizer: Callable[..., Any] | None):
        self._simulation, self._loss = simulation, loss
        self._optimizer = optimizer(simulation.parameters()) if optimizer is not None else None
        self.losses: list[float] = []
        self.predictions: list[torch.Tensor] = []
        self.ending = ""
        self.seconds = 0.0

    def take(self, batches: list[tuple[Any, ...]]) -> bool:
        """Every step, or those before an exception; whether Ctrl-C was pressed."""
        start = time.perf_counter()
        try:
            with self._simulation, torch.set_grad_enabled(self._optimizer is not None):
                for batch in batches:
                    self._step(batch)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told by the report, and its verdict
            self.ending = f"{type(error).__name__}: {error}".rstrip(": ")
            return isinstance(error, KeyboardInterrupt)
        finally:
            self.seconds = time.perf_counter() - start
        return False

    def _step(self, batch: tuple[Any, ...]) -> None:
        result = self._loss(self._simulation, *batch)
        loss, outputs = result if isinstance(result, tuple) else (result, None)
        if outputs is not None:
            self.predictions.append(outputs.detach().argmax(-1))
        if self._optimizer is not None:
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()
        self.losses.append(float(loss.detach()))


def _agreement(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours == theirs).double().mean())
