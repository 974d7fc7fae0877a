"""Models that train, and are certified, for a step or two: what `fpsim warm` runs to have kernels compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import fpsim


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 3 * 3, 10),
    )  # fmt: skip


class _Block(nn.Module):
    """Attention and what follows it, each after a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(32), nn.LayerNorm(32)])
        self.heads, self.mix = nn.Linear(32, 96), nn.Linear(32, 32)
        self.after = nn.Sequential(nn.Linear(32, 128), nn.GELU(approximate="tanh"), nn.Linear(128, 32), nn.Dropout(0.1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = self.heads(self.norms[0](x)).view(*x.shape[:2], 3, 2, 16).permute(2, 0, 3, 1, 4)
        scores = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=0.1 if self.training else 0.0)
        x = x + self.mix(scores.transpose(1, 2).reshape(x.shape))
        return x + self.after(self.norms[1](x))


def transformer() -> nn.Module:
    return nn.Sequential(nn.Embedding(50, 32), _Block(), _Block(), nn.LayerNorm(32), nn.Linear(32, 50, bias=False))


def train(model: nn.Module, loss: Callable[[Any], torch.Tensor], optimizer: Callable[..., Any], **policy: Any) -> None:
    """Two training steps, for the second one reads what the optimizer keeps."""
    simulation = fpsim.run(model, **policy)
    steps = optimizer(simulation.parameters(), lr=1e-3)
    with simulation:
        for _ in range(2):
            steps.zero_grad()
            loss(simulation).backward()
            steps.step()
    simulation.report()


def _images() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))


def train_cnn(**policy: Any) -> None:
    images, labels = _images()
    sgd = functools.partial(torch.optim.SGD, momentum=0.9)
    train(cnn(), lambda model: F.cross_entropy(model(images), labels), sgd, **policy)


def train_transformer(**policy: Any) -> None:
    tokens = torch.randint(0, 50, (2, 48))
    adam = functools.partial(torch.optim.AdamW, eps=1e-4)
    train(transformer(), lambda model: F.cross_entropy(model(tokens).transpose(1, 2), tokens), adam, **policy)


def certificates() -> None:
    images, labels = _images()
    fpsim.certify(cnn().eval(), images, fmt="fp16", accumulate="fp16")
    fpsim.tolerance(cnn().eval(), cnn().eval(), [(images, labels)])
