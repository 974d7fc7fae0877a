"""Spiking networks of snntorch: two layers, ten time steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import snntorch
import torch

from experiments.zoo.entries import Entry

NEURONS: dict[str, dict[str, Any]] = {
    "Leaky": {"beta": 0.9}, "Lapicque": {"beta": 0.9},
    "Synaptic": {"alpha": 0.9, "beta": 0.8}, "Alpha": {"alpha": 0.9, "beta": 0.8},
    "RLeaky": {"beta": 0.9, "linear_features": 16}, "RSynaptic": {"alpha": 0.9, "beta": 0.8, "linear_features": 16},
}  # fmt: skip


def entries() -> Iterator[Entry]:
    for name, settings in NEURONS.items():
        yield Entry("spikes", name, lambda name=name, settings=settings: _Spiking(name, settings), _points)


class _Spiking(torch.nn.Module):
    def __init__(self, name: str, settings: dict[str, Any]):
        super().__init__()
        self.first, self.last = torch.nn.Linear(8, 16), torch.nn.Linear(16, 4)
        self.neurons = getattr(snntorch, name)(init_hidden=True, learn_threshold=True, **settings)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.neurons.reset_mem()
        return torch.stack([self.last(self.neurons(self.first(x))) for _ in range(10)])


def _points(model: torch.nn.Module) -> Any:
    return (torch.randn(8, 8),), {}
