"""The two models that the speed of emulation is measured on: ResNet-18 for CIFAR images and a small GPT-2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from experiments.resnet import ResNet18


@dataclass(frozen=True)
class Workload:
    """A model, a batch, its loss and the optimizer it is trained with."""

    name: str
    build: Callable[[], nn.Module]
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    output: Callable[[nn.Module, torch.Tensor], torch.Tensor]
    optimizer: Callable[[Any], torch.optim.Optimizer]

    def loss(self, model: nn.Module, x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.output(model, x), target)


def _gpt2() -> nn.Module:
    """4 layers, 256 wide, 4 heads, vocabulary 1000; everything else as `transformers` has it, dropout too."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": 4, "n_embd": 256, "n_head": 4, "vocab_size": 1000, "n_positions": 128}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


def _tokens() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(0, 1000, (8, 129))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)


WORKLOADS = {
    "resnet18": Workload(
        "ResNet-18, 32 x 32, batch 16",
        ResNet18,
        lambda: (torch.randn(16, 3, 32, 32), torch.randint(0, 10, (16,))),
        lambda model, x: model(x),
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4),
    ),
    "gpt2": Workload(
        "GPT-2, 4 layers, 256 wide, 8 x 128 tokens",
        _gpt2,
        _tokens,
        lambda model, x: model(x, use_cache=False).logits.flatten(0, 1),
        lambda parameters: torch.optim.AdamW(parameters, lr=1e-3, eps=1e-4),  # torch's own eps of 1e-8 is 0 in fp16
    ),
}
