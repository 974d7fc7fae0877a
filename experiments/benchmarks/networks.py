"""The two models that the speed of emulation is measured on: ResNet-18 for CIFAR images and a small GPT-2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet18(nn.Module):
    """ResNet-18 as it is used on images of 32 x 32: the first convolution is 3 x 3 and nothing pools before the end."""

    def __init__(self, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        blocks, inputs = [], 64
        for outputs, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
            inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(512, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


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
