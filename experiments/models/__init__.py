"""Models by name, their weights drawn so that they are the same everywhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from experiments.models.convolutional import SmallCNN, SmallResNet
from experiments.models.initial import draw_weights
from experiments.models.perceptron import perceptron
from experiments.models.published import PUBLISHED
from experiments.models.transformers import SmallGPT, SmallViT

#: Twins of the papers' families: they train in about a minute or less under emulation.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": lambda: perceptron(64, 64, 10),
    "mlp-bn": lambda: perceptron(64, 64, 10, norm=True),
    **{f"mlp{width}": partial(perceptron, 64, width, width, 10, norm=True) for width in (16, 64, 256, 512, 1024)},
    "mlp32": lambda: perceptron(3072, 128, 128, 10, norm=True),
    "cnn": lambda: SmallCNN(channels=1, width=8, stride=1),
    "cnn32": lambda: SmallCNN(channels=3, width=8, stride=2),
    "resnet8": lambda: SmallResNet(width=8),
    "vit": lambda: SmallViT(channels=1, patch=2),
    "vit-1": lambda: SmallViT(channels=1, patch=2, layers=1),
    "vit32": lambda: SmallViT(channels=3, patch=8),
    "gpt": SmallGPT,
    "gpt-1": lambda: SmallGPT(width=32, layers=1),
}


def build(name: str, seed: int) -> nn.Module:
    """The model with the weights of the seed. Raises what `structure` raises."""
    model = structure(name)
    draw_weights(model, seed)
    return model


def structure(name: str) -> nn.Module:
    """The model with weights of no meaning. Raises ValueError listing the names."""
    known = MODELS | PUBLISHED
    if name not in known:
        raise ValueError(f"there is no model {name!r}; there are {', '.join(known)}")
    return known[name]()
