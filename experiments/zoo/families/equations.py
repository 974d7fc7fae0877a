"""Neural differential equations of torchdiffeq, by solver."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torchdiffeq import odeint, odeint_adjoint

from experiments.zoo.entries import Entry

SOLVERS = ("euler", "midpoint", "heun3", "rk4", "explicit_adams", "dopri5", "bosh3", "adaptive_heun")
ADAPTIVE = ("dopri5", "bosh3", "adaptive_heun")


def entries() -> Iterator[Entry]:
    for name in SOLVERS:
        yield Entry("equations", name, lambda name=name: _Equation(name), _points)
    yield Entry("equations", "rk4, adjoint", lambda: _Equation("rk4", odeint_adjoint), _points)


class _Slope(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 4))

    def forward(self, time: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.layers(y)


class _Equation(torch.nn.Module):
    def __init__(self, method: str, solve: Any = odeint):
        super().__init__()
        self.slope, self.method, self.solve = _Slope(), method, solve

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        tolerance = {"rtol": 0.01, "atol": 0.01} if self.method in ADAPTIVE else {"options": {"step_size": 0.25}}
        return self.solve(self.slope, y, torch.tensor([0.0, 1.0]), method=self.method, **tolerance)


def _points(model: torch.nn.Module) -> Any:
    return (torch.randn(8, 4),), {}
