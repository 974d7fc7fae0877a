"""A small vision transformer and a small character GPT, of the same layer."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn


class Layer(nn.Module):
    """Attention and a perceptron, norms first. `attend` may be set to another function of the same arguments."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.attend: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
        self.heads, self.causal = heads, causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixing, self.joining = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widening, self.narrowing = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, length, width = x.shape
        mixed = self.mixing(self.norm1(x)).view(count, length, 3, self.heads, width // self.heads)
        q, k, v = mixed.permute(2, 0, 3, 1, 4)
        attended = self.attend(q, k, v, is_causal=self.causal)
        x = x + self.joining(attended.transpose(1, 2).reshape(count, length, width))
        return x + self.narrowing(F.gelu(self.widening(self.norm2(x))))


class SmallViT(nn.Module):
    """16 patches of an image, two layers, the mean of the tokens (Dosovitskiy et al. 2021)."""

    def __init__(self, channels: int, patch: int, width: int = 32, layers: int = 2, heads: int = 4, classes: int = 10):
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(torch.zeros(16, width))
        self.layers = nn.Sequential(*(Layer(width, heads, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(tokens)).mean(1))


class SmallGPT(nn.Module):
    """Two causal layers over characters (Radford et al. 2018)."""

    def __init__(self, vocabulary: int = 128, length: int = 64, width: int = 48, layers: int = 2, heads: int = 4):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.zeros(length, width))
        self.layers = nn.Sequential(*(Layer(width, heads, causal=True) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (n, length, vocabulary) for tokens (n, length)."""
        x = self.embedding(tokens) + self.position[: tokens.shape[1]]
        return self.head(self.norm(self.layers(x)))
