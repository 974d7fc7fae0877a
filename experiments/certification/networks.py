"""The networks: a ReLU MLP at He initialization, ResNet-18 for images of 32 x 32, a small transformer. Seeds are explicit."""

from __future__ import annotations

import math

import torch
from torch import nn

from experiments.resnet import ResNet18


def mlp(seed: int) -> nn.Module:
    """64-256-256-10, weights normal with variance 2 / fan in (He et al. 2015), no bias."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * math.sqrt(2 / layer.in_features))
                layer.bias.zero_()
    return model


def resnet18(seed: int, width: int = 64) -> nn.Module:
    """ResNet-18 for small images, its batch statistics those of random images."""
    torch.manual_seed(seed)
    model = ResNet18(width=width)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    model.train()
    with torch.no_grad():
        for _ in range(4):
            model(torch.randn(16, 3, 32, 32))
    return model.eval()


class Transformer(nn.Module):
    """Two encoder layers of width 64 with 4 heads over 16 tokens, and a linear map of their mean."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(x).mean(1))


def transformer(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return Transformer().eval()
