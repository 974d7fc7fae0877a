"""Equivariant operations of e3nn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from e3nn import nn, o3

from experiments.zoo.entries import Entry

IRREPS = "4x0e + 2x1o + 1x2e"


def entries() -> Iterator[Entry]:
    yield Entry("geometry", "Linear", lambda: o3.Linear(IRREPS, IRREPS), _features)
    yield Entry("geometry", "TensorSquare", lambda: o3.TensorSquare(IRREPS, IRREPS), _features)
    yield Entry("geometry", "TensorProduct", lambda: o3.FullyConnectedTensorProduct(IRREPS, IRREPS, IRREPS), _pairs)
    yield Entry("geometry", "Norm", lambda: _After(o3.Norm(IRREPS)), _features)
    yield Entry("geometry", "NormActivation", lambda: _After(nn.NormActivation(IRREPS, torch.sigmoid)), _features)
    yield Entry("geometry", "BatchNorm", lambda: nn.BatchNorm(IRREPS), _features)
    yield Entry("geometry", "SphericalHarmonics", _Harmonics, _directions)


class _After(torch.nn.Module):
    """An operation without weights behind one that has some."""

    def __init__(self, operation: torch.nn.Module):
        super().__init__()
        self.linear, self.operation = o3.Linear(IRREPS, IRREPS), operation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operation(self.linear(x))


class _Harmonics(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.turn = torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return o3.spherical_harmonics([0, 1, 2, 3], self.turn(x), normalize=True)


def _features(model: torch.nn.Module) -> Any:
    return (torch.randn(8, 15),), {}


def _pairs(model: torch.nn.Module) -> Any:
    return (torch.randn(8, 15), torch.randn(8, 15)), {}


def _directions(model: torch.nn.Module) -> Any:
    return (torch.randn(8, 3),), {}
