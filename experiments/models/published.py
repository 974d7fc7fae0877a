"""The families of arXiv 2305.10947 at their sizes, for images of 32 x 32 x 3 in ten classes.

The paper gives numbers of parameters, not layers. Those of ResNet-32 and -56, DenseNet, MobileNetV2 and ViT come out as in its
table 5, within 0.2 % (moving statistics of norms counted, as Keras does). ResNet-110 has 1.74 million for 1.78; VGG, with its
two hidden layers of 4096, 33.65 and 38.96 for 33.76 and 38.36. AlexNet is that of their released code, whose 20.97 million are
ten times the table's 2.09. Xception is not in that code: with a hidden layer of 1024 Chollet's has 22.97 million for 22.96.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from experiments.models.dropout import Dropout
from experiments.models.perceptron import perceptron


def normed(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1, active: bool = True) -> nn.Sequential:
    """A convolution, a batch norm and, if active, a ReLU."""
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([nn.ReLU()] if active else []))


class Residual(nn.Module):
    """A branch beside a shortcut, then a function of their sum."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module | None = None, after: nn.Module | None = None):
        super().__init__()
        self.branch, self.shortcut, self.after = branch, shortcut or nn.Identity(), after or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.after(self.branch(x) + self.shortcut(x))


class Ending(nn.Module):
    """The mean over the image, and a linear layer."""

    def __init__(self, inputs: int, classes: int = 10):
        super().__init__()
        self.head = nn.Linear(inputs, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


def resnet(depth: int) -> nn.Module:
    """6 n + 2 layers of 16, 32 and 64 channels (He et al. 2016, section 4.2), shortcuts by 1 x 1 convolutions."""
    layers: list[nn.Module] = [normed(3, 16, 3)]
    inputs = 16
    for outputs in (16, 32, 64):
        for index in range((depth - 2) // 6):
            stride = 2 if outputs != 16 and index == 0 else 1
            branch = nn.Sequential(normed(inputs, outputs, 3, stride), normed(outputs, outputs, 3, active=False))
            shortcut = normed(inputs, outputs, 1, stride, active=False) if inputs != outputs else None
            layers.append(Residual(branch, shortcut, nn.ReLU()))
            inputs = outputs
    return nn.Sequential(*layers, Ending(64))


def vgg(*convolutions: int) -> nn.Module:
    """So many 3 x 3 convolutions in each of five stages (Simonyan and Zisserman 2015), with batch norm."""
    layers: list[nn.Module] = []
    inputs = 3
    for count, outputs in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
        for _ in range(count):
            layers.append(normed(inputs, outputs, 3))
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    hidden = [nn.Flatten(), nn.Linear(512, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, *hidden, nn.Linear(4096, 10))


def alexnet() -> nn.Module:
    """Five 3 x 3 convolutions and two hidden layers of 4096 with tanh, as in the paper's released code."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride, pool in ((3, 64, 2, 2), (64, 96, 1, 3), (96, 256, 1, 0), (256, 256, 1, 0), (256, 512, 1, 3)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.ReLU(), *([nn.MaxPool2d(pool, 2)] if pool else [])]
    hidden = [nn.Flatten(), nn.Linear(512, 4096), nn.Tanh(), Dropout(0.5), nn.Linear(4096, 4096), nn.Tanh(), Dropout(0.5)]
    return nn.Sequential(*layers, *hidden, nn.Linear(4096, 10))


class Dense(nn.Module):
    """Appends 32 channels to what it is given (Huang et al. 2017)."""

    def __init__(self, inputs: int, growth: int = 32):
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.branch(x)], 1)


def densenet(*blocks: int) -> nn.Module:
    """Dense blocks of so many layers, the channels halved between them."""
    layers: list[nn.Module] = [normed(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for place, count in enumerate(blocks):
        for _ in range(count):
            layers.append(Dense(channels))
            channels += 32
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if place < len(blocks) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, Ending(channels))


def mobilenet() -> nn.Module:
    """MobileNetV2 (Sandler et al. 2018)."""
    layers: list[nn.Module] = [normed(3, 32, 3, 2)]
    inputs = 32
    for factor, outputs, count, first in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for index in range(count):
            stride, wide = first if index == 0 else 1, inputs * factor
            widening = [normed(inputs, wide, 1)] if factor > 1 else []
            branch = nn.Sequential(*widening, normed(wide, wide, 3, stride, wide), normed(wide, outputs, 1, active=False))
            layers.append(Residual(branch) if stride == 1 and inputs == outputs else branch)
            inputs = outputs
    return nn.Sequential(*layers, normed(320, 1280, 1), Ending(1280))


def separable(inputs: int, *widths: int, first: bool = True) -> nn.Sequential:
    """Convolutions of each channel, 3 x 3, and across them, with batch norm, a ReLU before each but perhaps the first."""
    layers: list[nn.Module] = []
    for place, outputs in enumerate(widths):
        layers += [nn.ReLU()] if place or first else []
        layers.append(nn.Conv2d(inputs, inputs, 3, 1, 1, groups=inputs, bias=False))
        layers += [nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)]
        inputs = outputs
    return nn.Sequential(*layers)


def xception() -> nn.Module:
    """Xception (Chollet 2017) with a hidden layer of 1024."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    layers += [nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    middle = [Residual(separable(728, 728, 728, 728)) for _ in range(8)]
    for inputs, *widths in ((64, 128, 128), (128, 256, 256), (256, 728, 728), (728, 728, 1024)):
        layers += middle if inputs == 728 else []
        branch = nn.Sequential(separable(inputs, *widths, first=inputs != 64), nn.MaxPool2d(3, 2, 1))
        layers.append(Residual(branch, normed(inputs, widths[-1], 1, 2, active=False)))
    layers += [separable(1024, 1536, 2048, first=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 10))


class Encoder(nn.Module):
    """Attention of 4 heads of 64 and a perceptron of 512 over width 64, norms first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(64), nn.LayerNorm(64)
        self.mixing, self.joining = nn.Linear(64, 3 * 256), nn.Linear(256, 64)
        self.perceptron = nn.Sequential(
            nn.Linear(64, 512), nn.GELU(), Dropout(0.1), nn.Linear(512, 64), nn.GELU(), Dropout(0.1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mixing(self.norm1(x)).unflatten(-1, (3, 4, 64)).permute(2, 0, 3, 1, 4)
        x = x + self.joining(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.perceptron(self.norm2(x))


class ViT(nn.Module):
    """25 patches of 6 x 6, so many encoder layers, and a perceptron 512-256-10 over all tokens."""

    def __init__(self, layers: int):
        super().__init__()
        self.patches = nn.Conv2d(3, 64, 6, 6)
        self.position = nn.Parameter(torch.zeros(25, 64))
        self.layers = nn.Sequential(*(Encoder() for _ in range(layers)))
        self.norm = nn.LayerNorm(64)
        self.head = nn.Sequential(
            nn.Flatten(), Dropout(0.5), nn.Linear(1600, 512), nn.GELU(), Dropout(0.5), nn.Linear(512, 256), nn.GELU(),
            Dropout(0.5), nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(tokens)))


PUBLISHED: dict[str, Callable[[], nn.Module]] = {
    "mlp3x2048": lambda: perceptron(3072, 2048, 2048, 2048, 10),
    "alexnet": alexnet,
    "vgg16": lambda: vgg(2, 2, 3, 3, 3),
    "vgg19": lambda: vgg(2, 2, 4, 4, 4),
    "resnet32": lambda: resnet(32),
    "resnet56": lambda: resnet(56),
    "resnet110": lambda: resnet(110),
    "densenet121": lambda: densenet(6, 12, 24, 16),
    "densenet169": lambda: densenet(6, 12, 32, 32),
    "mobilenetv2": mobilenet,
    "xception": xception,
    "vit8": lambda: ViT(8),
    "vit12": lambda: ViT(12),
}
