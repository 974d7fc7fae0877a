"""Attention, one elementary operation after the other, as torch's "math" backend has it where everything rounds."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.operations import repeated
from fpsim.emulation.registry import steps

_aten = torch.ops.aten
Tensor = torch.Tensor


def _factors(query: Tensor, scale: float | None) -> tuple[float, float]:
    """What query and key are multiplied by: their product is the scale."""
    if scale is None:
        scale = query.shape[-1] ** -0.5 if query.shape[-1] else float("inf")
    root = abs(scale) ** 0.5
    return (-root if scale < 0 else root), root


def _scores(query: Tensor, key: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> Tensor:
    """Scaled, masked scores; `query` and `key` may hold as many heads each."""
    of_query, of_key = _factors(query, scale)
    scores = (query * of_query) @ (key * of_key).transpose(-2, -1)
    for kept in (mask, torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if is_causal else None):
        if kept is not None and kept.dtype is torch.bool:
            kept = torch.zeros(kept.shape, dtype=query.dtype).masked_fill(~kept, float("-inf"))
        if kept is not None:
            scores = scores + kept
    return scores


def attention_in_steps(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, kept: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output, probabilities after dropout). Heads of keys and values are repeated where several of queries share one."""
    key, value = repeated(key, query), repeated(value, query)
    probabilities = torch._safe_softmax(_scores(query, key, mask, is_causal, scale), -1)
    if kept is not None:
        kept = kept.to(query.dtype)
        probabilities = probabilities * (kept / (1 - dropout_p) if dropout_p < 1 else kept)
    return probabilities @ value, probabilities


@steps("_scaled_dot_product_flash_attention_for_cpu")
def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> Any:  # fmt: skip
    """The fused kernel's (output, logsumexp of the scores)."""
    if query.dtype is not torch.float32:
        return NotImplemented
    scores = _scores(query, key, attn_mask, is_causal, scale)
    return torch._safe_softmax(scores, -1) @ value, torch.logsumexp(scores, -1)


@steps("_scaled_dot_product_flash_attention_for_cpu_backward")
def flash_attention_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Any, logsumexp: Any, dropout_p: float, is_causal: bool, *,
    attn_mask: Tensor | None = None, scale: float | None = None,
) -> Any:  # fmt: skip
    """Gradients of query, key and value; the probabilities are computed anew."""
    if query.dtype is not torch.float32:
        return NotImplemented
    probabilities = torch._safe_softmax(_scores(query, key, attn_mask, is_causal, scale), -1)
    of_scores = _aten._softmax_backward_data.default(
        gradient @ value.transpose(-2, -1), probabilities, -1, probabilities.dtype
    )
    of_query, of_key = _factors(query, scale)
    return (
        of_scores @ (key * of_key) * of_query,
        of_scores.transpose(-2, -1) @ (query * of_query) * of_key,
        probabilities.transpose(-2, -1) @ gradient,
    )
