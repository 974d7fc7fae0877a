"""softmax, log_softmax and their gradients, one elementary operation after the other."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor


def _below_largest(x: Tensor, dim: int) -> Tensor:
    return x - x.amax(dim, keepdim=True)


@steps("_softmax")
def softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not x.is_floating_point():
        return NotImplemented
    if x.numel() == 0:
        return x.clone()
    terms = _below_largest(x, dim).exp()
    return terms / terms.sum(dim, keepdim=True)


@steps("_softmax_backward_data")
def softmax_backward(gradient: Tensor, y: Tensor, dim: int, input_dtype: Any) -> Tensor:
    return y * (gradient - (gradient * y).sum(dim, keepdim=True))


@steps("_log_softmax")
def log_softmax(x: Tensor, dim: int, half_to_float: bool) -> Tensor:
    if not x.is_floating_point():
        return NotImplemented
    if x.numel() == 0:
        return x.clone()
    shifted = _below_largest(x, dim)
    return shifted - shifted.exp().sum(dim, keepdim=True).log()


@steps("_log_softmax_backward_data")
def log_softmax_backward(gradient: Tensor, y: Tensor, dim: int, input_dtype: Any) -> Tensor:
    return gradient - y.exp() * gradient.sum(dim, keepdim=True)


@steps("_safe_softmax")
def safe_softmax(x: Tensor, dim: int, dtype: Any = None) -> Tensor:
    """A row of -inf gives zeros."""
    masked = (x == float("-inf")).all(dim, keepdim=True)
    return torch.where(masked, 0.0, softmax(x, dim, False))


@steps("logsumexp")
def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    x = x.to(torch.get_default_dtype()) if not x.is_floating_point() else x
    dims = list(range(x.dim())) if not dim and dim != 0 else dim
    if x.numel() == 0:
        return x.exp().sum(dims, keepdim).log()
    largest = x.amax(dims, keepdim=True)
    largest = torch.where(largest.isinf(), 0.0, largest)
    total = (x - largest).exp().sum(dims, keepdim).log()
    return total + (largest if keepdim else largest.reshape(total.shape))


@steps("logcumsumexp")
def logcumsumexp(x: Tensor, dim: int) -> Tensor:
    """log(exp(x1) + ... + exp(xk)) from the left, one logaddexp for each."""
    if x.dim() == 0 or x.shape[dim] == 0:
        return x.clone()
    parts = [x.select(dim, 0)]
    for index in range(1, x.shape[dim]):
        parts.append(torch.logaddexp(parts[-1], x.select(dim, index)))
    return torch.stack(parts, dim)
