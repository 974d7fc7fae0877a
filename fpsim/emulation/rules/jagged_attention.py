"""Attention of jagged nested tensors, for which torch has no kernel on a CPU that a mode sees.

Here each sequence attends for itself, as GPUs' kernels have it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nested._internal import ops
from torch.nested._internal.nested_tensor import NestedTensor, nested_view_from_values_offsets

from fpsim.emulation.dispatch import switches
from fpsim.emulation.errors import UnsupportedOp

_attention = ops.jagged_scaled_dot_product_attention


def attention(
    query: Any, key: Any, value: Any, attn_mask: Any = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Any:  # fmt: skip
    """`scaled_dot_product_attention` of each sequence: jagged tensors of shape (sequences, heads, length, size)."""
    jagged = (query, key, value)
    if attn_mask is not None or not all(isinstance(item, NestedTensor) and item._ragged_idx == 2 for item in jagged):
        return _attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if any(item.lengths() is not None for item in jagged):
        raise UnsupportedOp("attention of jagged tensors with holes: make them contiguous first")
    parts = [
        torch.nn.functional.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout_p, is_causal=is_causal, scale=scale, enable_gqa=enable_gqa
        ).transpose(0, 1)
        for q, k, v in zip(query.unbind(), key.unbind(), value.unbind(), strict=True)
    ]
    values = torch.cat(parts)
    return nested_view_from_values_offsets(values, query.offsets()).transpose(1, 2)


switches.replacements["nested._internal.ops.jagged_scaled_dot_product_attention"] = attention
