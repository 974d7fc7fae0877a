"""Multilayer perceptrons."""

from __future__ import annotations

from itertools import pairwise

from torch import nn


def perceptron(*widths: int, norm: bool = False) -> nn.Module:
    """Linear layers of these widths with ReLU between them, after a batch norm if `norm`; images are flattened first."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(widths[:-1]):
        layers.append(nn.Linear(inputs, outputs, bias=not norm))
        if norm:
            layers.append(nn.BatchNorm1d(outputs))
        layers.append(nn.ReLU())
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))
