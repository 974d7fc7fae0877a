"""fpsim's own attention operations in float64, written plainly: torch has no kernels for them."""

from __future__ import annotations

import torch
from torch import Tensor

from fpsim.emulation.operations import ATTENTION, ATTENTION_BACKWARD, repeated
from fpsim.emulation.registry import IN_FLOAT64


def _shared(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of `repeated`."""
    return gradient.unflatten(-3, (like.shape[-3], -1)).sum(-3) if gradient.shape != like.shape else gradient


def _thinned(numbers: Tensor, kept: Tensor | None, dropout_p: float) -> Tensor:
    """Numbers times what dropout multiplies probabilities by; without dropout they themselves."""
    return numbers if kept is None else numbers * (kept.to(numbers.dtype) / (1 - dropout_p if dropout_p < 1 else 1))


def _softmax(scores: Tensor) -> Tensor:
    """Of rows; zeros where all of a row is -infinity."""
    plain = scores.softmax(-1)
    return torch._safe_softmax(scores, -1) if bool(plain[..., :1].isnan().any()) else plain


def attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, kept: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float, wide: bool, keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    scores = (query @ repeated(key, query).mT).mul_(scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    if is_causal:
        scores.masked_fill_(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -torch.inf)
    plain = _softmax(scores)
    read = _thinned(plain, kept, dropout_p)
    return read @ repeated(value, query), plain if keep else torch.empty(0), read if keep else torch.empty(0)


def attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, kept: Tensor | None, probabilities: Tensor, read: Tensor,
    dropout_p: float, scale: float, wide: bool, of_mask: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    change = _thinned(gradient @ repeated(value, query).mT, kept, dropout_p)
    of_scores = change.sub_((change * probabilities).sum(-1, keepdim=True)).mul_(probabilities)
    return (
        (of_scores @ repeated(key, query)).mul_(scale), _shared((of_scores.mT @ query).mul_(scale), key),
        _shared(read.mT @ gradient, value), of_scores if of_mask else torch.empty(0),
    )  # fmt: skip


IN_FLOAT64.update({ATTENTION: attention, ATTENTION_BACKWARD: attention_backward})
