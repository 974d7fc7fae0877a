"""fpsim's own attention operations in float64, written plainly: torch has no kernels for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.operations import ATTENTION, ATTENTION_BACKWARD, repeated
from fpsim.emulation.registry import IN_FLOAT64


def _shared(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of `repeated`."""
    return gradient.unflatten(-3, (like.shape[-3], -1)).sum(-3) if gradient.shape != like.shape else gradient


def _noise(kept: Tensor | None, dropout_p: float, like: Tensor) -> Any:
    """What probabilities are multiplied by."""
    return 1.0 if kept is None else kept.to(like.dtype) / (1 - dropout_p if dropout_p < 1 else 1)


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kept: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float, wide: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    scores = query @ repeated(key, query).mT * scale
    for allowed in (mask, torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if is_causal else None):
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf) if allowed.dtype is torch.bool else scores + allowed
    plain = torch._safe_softmax(scores, -1)
    read = plain * _noise(kept, dropout_p, plain)
    return read @ repeated(value, query), plain if keep else torch.empty(0), read if keep else torch.empty(0)


def attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None, probabilities: Tensor, read: Tensor,
    dropout_p: float, scale: float, wide: bool, of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    change = gradient @ repeated(value, query).mT * _noise(kept, dropout_p, probabilities)
    of_scores = probabilities * (change - (change * probabilities).sum(-1, keepdim=True))
    return (
        of_scores @ repeated(key, query) * scale, _shared(of_scores.mT @ query * scale, key),
        _shared(read.mT @ gradient, value), of_scores if of_mask else torch.empty(0),
    )  # fmt: skip


IN_FLOAT64.update({ATTENTION: attention, ATTENTION_BACKWARD: attention_backward})
