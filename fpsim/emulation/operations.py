"""Operations that torch has no single one for, defined for it: their rules are where those of their family are."""

import torch

_library = torch.library.Library("fpsim", "DEF")
_library.define(
    "scaled_dot_product_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor? kept, float dropout_p, "
    "bool is_causal, float scale, bool wide, bool keep) -> (Tensor output, Tensor probabilities, Tensor read)"
)
_library.define(
    "scaled_dot_product_attention_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor? kept, "
    "Tensor probabilities, Tensor read, float dropout_p, float scale, bool wide, bool of_mask) "
    "-> (Tensor, Tensor, Tensor, Tensor)"
)
ATTENTION = torch.ops.fpsim.scaled_dot_product_attention.default
ATTENTION_BACKWARD = torch.ops.fpsim.scaled_dot_product_attention_backward.default


def repeated(heads: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Heads of keys or values, each as often as heads of queries share it."""
    if like.dim() <= 2 or heads.shape[-3] == like.shape[-3]:
        return heads
    return heads.repeat_interleave(like.shape[-3] // heads.shape[-3], -3)
