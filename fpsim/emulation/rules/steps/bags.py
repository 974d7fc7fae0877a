"""Bags of embeddings: rows are gathered, weighted, and summed by the accumulator in the order of the indices."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.registry import steps
from fpsim.emulation.rules.bags import MAX, MEAN, bags_of

Tensor = torch.Tensor
_aten = torch.ops.aten


def _forward(
    weight: Tensor, indices: Tensor, offsets: Tensor, scale_grad_by_freq: bool = False, mode: int = 0, sparse: bool = False,
    per_sample_weights: Tensor | None = None, include_last_offset: bool = False, padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    options = (scale_grad_by_freq, mode, sparse, None, include_last_offset, padding_idx)
    _, offset2bag, bag_size, largest = _aten._embedding_bag.default(weight.double(), indices, offsets, *options)
    starts = offsets[:-1] if include_last_offset else offsets
    bags = bags_of(indices, starts)
    counted = indices != padding_idx
    rows, bags = weight[indices[counted]], bags[counted]
    if per_sample_weights is not None:
        rows = rows * per_sample_weights[counted].unsqueeze(1)
    base = torch.zeros(starts.numel(), weight.shape[1], dtype=weight.dtype)
    if mode == MAX:
        out = base.scatter_reduce(0, bags.unsqueeze(1).expand(rows.shape), rows, "amax", include_self=False)
    else:
        out = base.index_add(0, bags, rows)
    if mode == MEAN:
        sizes = torch.bincount(bags, minlength=starts.numel()).clamp(min=1)
        out = out / sizes.unsqueeze(1).to(out.dtype)
    return out, offset2bag, bag_size, largest


steps("_embedding_bag _embedding_bag_forward_only")(_forward)


def _dense_backward(
    gradient: Tensor, indices: Tensor, bags: Tensor, largest: Tensor, num_weights: int, scale_grad_by_freq: bool, mode: int,
    per_sample_weights: Tensor | None, padding_idx: int,
) -> Tensor:  # fmt: skip
    base = torch.zeros(num_weights, gradient.shape[1], dtype=gradient.dtype)
    counted = indices != padding_idx
    chosen, bags = indices[counted], bags[counted]
    if mode == MAX:
        filled = torch.bincount(bags, minlength=gradient.shape[0]) > 0
        return base.scatter_add(0, largest[filled], gradient[filled])
    terms = gradient[bags]
    if mode == MEAN:
        sizes = torch.bincount(bags, minlength=gradient.shape[0])
        terms = terms / sizes[bags].unsqueeze(1).to(terms.dtype)
    if per_sample_weights is not None:
        terms = terms * per_sample_weights[counted].unsqueeze(1)
    if scale_grad_by_freq:
        terms = terms / torch.bincount(chosen)[chosen].unsqueeze(1).to(terms.dtype)
    return base.index_add(0, chosen, terms)


@steps("embedding_renorm")
def embedding_renorm(weight: Tensor, indices: Tensor, max_norm: float, norm_type: float) -> Tensor:
    """Rows whose norm is above max_norm, times max_norm / (norm + 1e-7): ATen's `embedding_renorm_cpu_`."""
    places = indices.reshape(-1).unique()
    rows = weight[places]
    norms = rows.norm(norm_type, 1, keepdim=True)
    return weight.index_copy(0, places, torch.where(norms > max_norm, rows * (max_norm / (norms + 1e-7)), rows))


@steps("_embedding_bag_backward")
def backward(
    gradient: Tensor, indices: Tensor, offsets: Tensor, offset2bag: Tensor, bag_size: Tensor, largest: Tensor,
    num_weights: int, scale_grad_by_freq: bool, mode: int, sparse: bool, per_sample_weights: Tensor | None,
    padding_idx: int = -1,
) -> Any:  # fmt: skip
    if sparse:
        return NotImplemented
    bags = bags_of(indices, offsets[: gradient.shape[0]])
    return _dense_backward(
        gradient, indices, bags, largest, num_weights, scale_grad_by_freq, mode, per_sample_weights, padding_idx
    )


@steps("_embedding_bag_dense_backward")
def dense_backward(
    gradient: Tensor, indices: Tensor, offset2bag: Tensor, bag_size: Tensor, largest: Tensor, num_weights: int,
    scale_grad_by_freq: bool, mode: int, per_sample_weights: Tensor | None, padding_idx: int = -1,
) -> Tensor:  # fmt: skip
    return _dense_backward(
        gradient, indices, offset2bag, largest, num_weights, scale_grad_by_freq, mode, per_sample_weights, padding_idx
    )


@steps("_embedding_bag_per_sample_weights_backward")
def weights_backward(
    gradient: Tensor, weight: Tensor, indices: Tensor, offsets: Tensor, offset2bag: Tensor, mode: int, padding_idx: int = -1
) -> Tensor:
    bags = bags_of(indices, offsets[: gradient.shape[0]])
    result = (gradient[bags] * weight[indices]).sum(1)
    return torch.where(indices == padding_idx, 0.0, result)
