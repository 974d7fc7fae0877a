"""Every method's mean bound over the mean measured error of the logits, for one network and machine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

import fpsim
from fpsim.emulation.certification.costs import Costs
from fpsim.emulation.certification.forward import States, logits_of, walk
from fpsim.emulation.certification.methods import METHODS
from fpsim.emulation.certification.passes import Box, Library, Running
from fpsim.emulation.certification.slopes import Operand
from fpsim.emulation.certification.table import Products
from fpsim.emulation.certification.trace import record
from fpsim.theory.accumulations import AccumulationBound


class Norms(Box):
    """The product of norms: after every operation the bound is the largest over the whole tensor."""

    def made(self, value: torch.Tensor, error: torch.Tensor, number: int) -> Operand:
        return super().made(value, torch.full_like(error, float(error.max())), number)


def norm_bound(model: nn.Module, x: torch.Tensor, fmt: str, accumulate: str) -> torch.Tensor:
    """The mean bound of the logits when magnitudes go from layer to layer as one norm."""
    simulation = fpsim.run(model, fmt, accumulate)
    with torch.no_grad():
        found = []
        for row in x:
            trace = record(simulation, model, (row[None],))
            ranges: States = walk(Library(trace))
            state = walk(Norms(trace, simulation.policy, ranges, {}))[trace.output]
            assert isinstance(state, Operand) and state.error is not None
            found.append(state.error)
    return torch.cat(found)


class Unfollowed(Costs):
    """Sums by the magnitudes of their terms alone: ((1 + v)^n - 1) |W| |x|."""

    def slight(self, sums: Products) -> AccumulationBound:
        return self._bound(sums)


def magnitude_bound(model: nn.Module, x: torch.Tensor, fmt: str, accumulate: str) -> torch.Tensor:
    """|W| E + ((1 + v)^n - 1) |W| |x| + |x (W^ - W)| + u |z| from layer to layer, along the emulated run."""
    simulation = fpsim.run(model, fmt, accumulate)
    with torch.no_grad():
        source = Running(record(simulation, model, (x,)), simulation.policy)
        source.machine = Unfollowed(simulation.policy, run=True)
        error = logits_of(source).error
    assert error is not None
    return error


@dataclass
class Row:
    """Sums over draws: of bounds, of measured errors, of certified classes, and how many logits and classes there were."""

    bound: float = 0.0
    error: float = 0.0
    certified: int = 0
    violated: int = 0
    logits: int = 0
    classes: int = 0

    @property
    def ratio(self) -> float:
        return self.bound / self.error

    def add(self, bound: torch.Tensor, error: torch.Tensor, certified: torch.Tensor) -> None:
        self.bound += float(bound.sum())
        self.error += float(error.sum())
        self.violated += int((error > bound).sum())
        self.certified += int(certified.sum())
        self.logits += bound.numel()
        self.classes += certified.numel()


def compare(
    models: Sequence[nn.Module], inputs: Sequence[torch.Tensor], fmt: str, accumulate: str, methods: Sequence[str]
) -> dict[str, Row]:
    """The rows by method, the emulated run measured against float64 (whose own error "shadow" bounds, far below)."""
    rows: dict[str, Row] = {}
    for model, x in zip(models, inputs, strict=True):
        with torch.no_grad():
            exact = copy.deepcopy(model).double()(x.double())
            error = (fpsim.run(model, fmt, accumulate)(x).double() - exact).abs()
        for method in methods:
            certificate = fpsim.certify(model, x, fmt, accumulate, method=method)
            rows.setdefault(method, Row()).add(certificate.bound, error, certificate.certified)
        bound = magnitude_bound(model, x, fmt, accumulate)
        rows.setdefault("|W| by layer", Row()).add(bound, error, torch.zeros(len(bound)))
        bound = norm_bound(model, x[:2], fmt, accumulate)
        rows.setdefault("product of norms", Row()).add(bound, error[: len(bound)], torch.zeros(len(bound)))
    return rows


ALL = tuple(METHODS)
