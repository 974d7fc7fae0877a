"""Small convolutional networks."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from experiments.resnet import Block


class SmallCNN(nn.Module):
    """Three convolutions of 3 x 3 with batch norm, of width, 2 and 2 widths, each halving the image but the first."""

    def __init__(self, channels: int, width: int, stride: int, classes: int = 10):
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, step in ((channels, width, stride), (width, 2 * width, 2), (2 * width, 2 * width, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, step, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


class SmallResNet(nn.Module):
    """A block in each of three stages of width, 2 and 4 widths: ResNet-8 in the numbering of He et al. for small images."""

    def __init__(self, width: int, classes: int = 10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2))
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))
