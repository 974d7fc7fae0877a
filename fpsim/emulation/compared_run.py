"""One of the runs of `compare`: a model in one arithmetic on all batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from fpsim.emulation.simulation import Simulation, run
from fpsim.report.report import Report


@dataclass(frozen=True)
class Work:
    """What is done in each arithmetic: the arguments of `compare`."""

    model: nn.Module
    batches: list[tuple[Any, ...]]
    loss: Callable[..., Any]
    optimizer: Callable[..., Any] | None
    seed: int
    observe: Sequence[str]

    def simulation(self, settings: dict[str, Any]) -> Simulation:
        """The model in an arithmetic, observed where that is not torch itself. Raises what `run` raises."""
        simulation = run(self.model, **settings)
        if "observe" not in settings and not simulation.policy.is_identity:
            simulation.observe(tuple(self.observe))
        return simulation

    def steps(self, simulation: Simulation) -> Steps:
        """All steps taken, or those before an exception, from the seed on; torch's generator is as it was."""
        steps = Steps(simulation, self.loss, self.optimizer)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            steps.take(self.batches)
        return steps


class Steps:
    """One simulation on all batches."""

    def __init__(self, simulation: Simulation, loss: Callable[..., Any], optimizer: Callable[..., Any] | None):
        self._simulation, self._loss = simulation, loss
        self._optimizer = optimizer(simulation.parameters()) if optimizer is not None else None
        self.losses: list[float] = []
        self.predictions: list[torch.Tensor] = []
        self.ending = ""
        self.seconds = 0.0
        self.is_interrupted = False

    def report(self) -> Report:
        """What happened, with the losses and what ended it."""
        return replace(self._simulation.report(), losses=tuple(self.losses), ending=self.ending)

    def take(self, batches: list[tuple[Any, ...]]) -> None:
        """Every step, or those before an exception or Ctrl-C."""
        start = time.perf_counter()
        try:
            with self._simulation, torch.set_grad_enabled(self._optimizer is not None):
                for batch in batches:
                    self._step(batch)
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - told by the report, and its verdict
            self.ending = f"{type(error).__name__}: {error}".rstrip(": ")
            self.is_interrupted = isinstance(error, KeyboardInterrupt)
        finally:
            self.seconds = time.perf_counter() - start

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
