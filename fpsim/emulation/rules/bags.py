"""Gradients of bags of embeddings: those of an embedding whose rows are summed, averaged, weighted, or compared."""

from __future__ import annotations

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import register
from fpsim.emulation.rules.arithmetic import mul
from fpsim.emulation.rules.scatter import embedding_dense_backward, scatter_add_rule

_aten = torch.ops.aten
MEAN, MAX = 1, 2
_scatter_add = scatter_add_rule(_aten.scatter_add.default)


def bags_of(indices: Tensor, offsets: Tensor) -> Tensor:
    """The bag of each index."""
    places = torch.arange(indices.numel(), dtype=offsets.dtype)
    return torch.searchsorted(offsets.contiguous(), places, right=True) - 1


@register(_aten._embedding_bag_dense_backward.default, family="scatter")
def dense_gradient(
    machine: Machine, gradient: Tensor, indices: Tensor, bags: Tensor, sizes: Tensor, largest: Tensor, num_weights: int,
    scale_grad_by_freq: bool, mode: int, per_sample_weights: MaybeTensor, padding_idx: int = -1,
) -> Tensor:  # fmt: skip
    """Sums as of an embedding, of each index's part of its bag's gradient, rounded where that is a quotient or a product."""
    if gradient.dtype is not torch.float32:
        options = scale_grad_by_freq, mode, per_sample_weights, padding_idx
        return _aten._embedding_bag_dense_backward.default(gradient, indices, bags, sizes, largest, num_weights, *options)
    gradient = machine.operand(gradient)
    counts = torch.bincount(bags[indices != padding_idx], minlength=len(gradient))
    if mode == MAX:
        zeros, filled = machine.exact(torch.zeros(num_weights, gradient.shape[1])), counts > 0
        return _scatter_add(machine, zeros, 0, largest[filled], machine.exact(gradient[filled]))
    if mode == MEAN:
        gradient = machine.finish(gradient.double() / counts.clamp(min=1)[:, None])
    terms = machine.exact(gradient[bags])
    if per_sample_weights is not None:
        terms = mul(machine, terms, per_sample_weights.unsqueeze(1))
    return embedding_dense_backward(machine, terms, indices, num_weights, padding_idx, scale_grad_by_freq)


@register(_aten._embedding_bag_backward.default, family="scatter")
def gradient_of_bags(
    machine: Machine, gradient: Tensor, indices: Tensor, offsets: Tensor, bags: Tensor, sizes: Tensor, largest: Tensor,
    num_weights: int, scale_grad_by_freq: bool, mode: int, sparse: bool, per_sample_weights: MaybeTensor,
    padding_idx: int = -1,
) -> Tensor:  # fmt: skip
    bags = bags_of(indices, offsets[: gradient.shape[0]])
    options = num_weights, scale_grad_by_freq, mode, per_sample_weights, padding_idx
    if not sparse:
        return dense_gradient(machine, gradient, indices, bags, sizes, largest, *options)
    with machine.dispatching():  # at most one operation for each value that is stored
        return _aten._embedding_bag_sparse_backward(gradient, indices, offsets, bags, sizes, *options)
