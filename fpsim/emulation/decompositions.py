"""Operations that are written as other operations, which then meet their own rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._library.custom_ops import OPDEFS

_aten = torch.ops.aten

#: Namespaces of torch's own operations that are Python functions of other operations.
_WRITTEN_IN_PYTHON = ("torch_nn",)


def _scores(
    query: torch.Tensor, key: torch.Tensor, is_causal: bool, attn_mask: torch.Tensor | None, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """(scores, scaled query, scaled key, the factor of both), step by step as torch's "math" attention has them."""
    factor = (query.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
    query, key = query * factor, key * factor
    scores = query @ key.transpose(-2, -1)
    if is_causal:
        kept = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        attn_mask = torch.zeros(scores.shape[-2:], dtype=query.dtype).masked_fill(~kept, float("-inf"))
    return (scores if attn_mask is None else scores + attn_mask), query, key, factor


def attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout_p: float = 0.0, is_causal: bool = False, *,
    attn_mask: torch.Tensor | None = None, scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The fused kernel's (output, logsumexp of the scores)."""
    scores, *_ = _scores(query, key, is_causal, attn_mask, scale)
    return _aten._safe_softmax.default(scores, -1) @ value, torch.logsumexp(scores, -1)


def attention_backward(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, out: Any, logsumexp: Any,
    dropout_p: float, is_causal: bool, *, attn_mask: torch.Tensor | None = None, scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of query, key and value; the weights are computed anew."""
    scores, query, key, factor = _scores(query, key, is_causal, attn_mask, scale)
    weights = _aten._safe_softmax.default(scores, -1)
    of_scores = _aten._softmax_backward_data.default(gradient @ value.transpose(-2, -1), weights, -1, weights.dtype)
    of_key = of_scores.transpose(-2, -1) @ query
    return of_scores @ key * factor, of_key * factor, weights.transpose(-2, -1) @ gradient


DECOMPOSITIONS: dict[torch._ops.OpOverload, Callable[..., Any]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: attention_backward,
}


def decomposition_of(op: torch._ops.OpOverload) -> Callable[..., Any] | None:
    """The function that computes this operation by others; None for an operation that has none."""
    if op.namespace in _WRITTEN_IN_PYTHON and op.name() in OPDEFS:
        return OPDEFS[op.name()]._init_fn
    if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
        return op.decompose
    return DECOMPOSITIONS.get(op)
