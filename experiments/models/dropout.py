"""Dropout whose masks are the same on every machine, and go on where a training was stopped."""

from __future__ import annotations

import torch
from torch import nn

from experiments.draws import Draws


class Dropout(nn.Module):
    """As `nn.Dropout`; the mask depends on the seed, the place in the model (`purpose`) and how often it was called."""

    calls: torch.Tensor

    def __init__(self, p: float):
        super().__init__()
        self.p, self.seed, self.purpose = p, 0, ""
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0:
            return x
        kept = Draws(self.seed, f"{self.purpose} {int(self.calls)}").uniform(*x.shape) >= self.p
        self.calls += 1
        return x * torch.from_numpy(kept) * (1 / (1 - self.p))
