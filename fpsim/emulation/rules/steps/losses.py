"""Losses and their gradients, one elementary operation after the other; sums and means are the accumulator's."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor
_NONE, _MEAN, _SUM = range(3)


def _reduced(losses: Tensor, reduction: int) -> Tensor:
    return losses.mean() if reduction == _MEAN else losses.sum() if reduction == _SUM else losses


def _shared(gradient: Tensor, like: Tensor, reduction: int) -> Tensor:
    """The gradient of each loss: a mean divides it by their number."""
    return gradient / like.numel() if reduction == _MEAN else gradient


# Negative log likelihood


def _weights(weight: Tensor | None, target: Tensor, kept: Tensor) -> Tensor | None:
    return None if weight is None else torch.where(kept, weight[torch.where(kept, target, 0)], 0.0)


@steps("nll_loss_forward nll_loss2d_forward")
def nll_loss(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    axis = 0 if x.dim() == 1 else 1
    kept = target != ignore_index
    chosen = -x.gather(axis, torch.where(kept, target, 0).unsqueeze(axis)).squeeze(axis)
    weights = _weights(weight, target, kept)
    losses = torch.where(kept, chosen if weights is None else chosen * weights, 0.0)
    if reduction == _NONE:
        return losses, x.new_zeros(())
    total = kept.sum().to(x.dtype) if weights is None else weights.sum()
    return (losses.sum() / total if reduction == _MEAN else losses.sum()), total


@steps("nll_loss_backward nll_loss2d_backward")
def nll_loss_backward(
    gradient: Tensor, x: Tensor, target: Tensor, weight: Tensor | None, reduction: int, ignore_index: int, total: Tensor
) -> Tensor:
    axis = 0 if x.dim() == 1 else 1
    kept = target != ignore_index
    weights = _weights(weight, target, kept)
    values = -(gradient / total) if reduction == _MEAN else -gradient
    values = torch.where(kept, values if weights is None else values * weights, 0.0)
    places = torch.where(kept, target, 0).unsqueeze(axis)
    return torch.zeros_like(x, memory_format=torch.contiguous_format).scatter(axis, places, values.unsqueeze(axis))


# Elementwise up to the sum


@steps("mse_loss")
def mse_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    return _reduced((x - target).square(), reduction)


@steps("mse_loss_backward")
def mse_loss_backward(gradient: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    return (2.0 * (x - target)) * _shared(gradient, x, reduction)


@steps("smooth_l1_loss")
def smooth_l1_loss(x: Tensor, target: Tensor, reduction: int = _MEAN, beta: float = 1.0) -> Tensor:
    distance = (x - target).abs()
    if beta == 0:
        return _reduced(distance, reduction)
    return _reduced(torch.where(distance < beta, 0.5 * distance.square() / beta, distance - 0.5 * beta), reduction)


@steps("smooth_l1_loss_backward")
def smooth_l1_loss_backward(gradient: Tensor, x: Tensor, target: Tensor, reduction: int, beta: float) -> Tensor:
    difference, share = x - target, _shared(gradient, x, reduction)
    far = difference.sign() * share
    return torch.where(difference.abs() < beta, difference / beta * share, far) if beta else far


@steps("huber_loss")
def huber_loss(x: Tensor, target: Tensor, reduction: int = _MEAN, delta: float = 1.0) -> Tensor:
    distance = (x - target).abs()
    near, far = 0.5 * distance.square(), delta * (distance - 0.5 * delta)
    return _reduced(torch.where(distance <= delta, near, far), reduction)


@steps("huber_loss_backward")
def huber_loss_backward(gradient: Tensor, x: Tensor, target: Tensor, reduction: int, delta: float) -> Tensor:
    return (x - target).clamp(-delta, delta) * _shared(gradient, x, reduction)


@steps("soft_margin_loss")
def soft_margin_loss(x: Tensor, target: Tensor, reduction: int = _MEAN) -> Tensor:
    return _reduced((-target * x).exp().log1p(), reduction)


@steps("soft_margin_loss_backward")
def soft_margin_loss_backward(gradient: Tensor, x: Tensor, target: Tensor, reduction: int) -> Tensor:
    return target * _shared(gradient, x, reduction) * ((target * x).sigmoid() - 1.0)


@steps("binary_cross_entropy")
def binary_cross_entropy(x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = _MEAN) -> Tensor:
    losses = (target - 1.0) * (-x).log1p().clamp(min=-100.0) - target * x.log().clamp(min=-100.0)
    return _reduced(losses if weight is None else losses * weight, reduction)


@steps("binary_cross_entropy_backward")
def binary_cross_entropy_backward(
    gradient: Tensor, x: Tensor, target: Tensor, weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    share = _shared(gradient, x, reduction)
    result = share * (x - target) / (x * (1.0 - x)).clamp(min=1e-12)
    return result if weight is None else result * weight


@steps("binary_cross_entropy_with_logits")
def binary_cross_entropy_with_logits(
    x: Tensor, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    """(1 - t) * x + softplus(-x), the second term weighted where there are weights of positive targets."""
    smooth = (-x).clamp(min=0.0) + (-x.abs()).exp().log1p()
    if pos_weight is not None:
        smooth = smooth * ((pos_weight - 1.0) * target + 1.0)
    losses = (1.0 - target) * x + smooth
    return _reduced(losses if weight is None else losses * weight, reduction)


# Margins


def _margins(x: Tensor, target: Tensor, margin: Any) -> tuple[Tensor, Tensor]:
    """margin - x[target] + x over rows, and whether it is positive and of another class."""
    rows, labels = torch.atleast_2d(x), target.reshape(-1, 1)
    distances = (float(margin) - rows.gather(1, labels)) + rows
    others = torch.arange(rows.shape[1]) != labels
    return distances, (distances > 0) & others


@steps("multi_margin_loss")
def multi_margin_loss(
    x: Tensor, target: Tensor, p: Any = 1, margin: Any = 1, weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    distances, counted = _margins(x, target, margin)
    terms = distances if p == 1 else distances.square()
    if weight is not None:
        terms = terms * weight[target].reshape(-1, 1)
    losses = torch.where(counted, terms, 0.0).mean(1)
    return _reduced(losses if x.dim() > 1 else losses.reshape(target.shape), reduction)


@steps("multi_margin_loss_backward")
def multi_margin_loss_backward(
    gradient: Tensor, x: Tensor, target: Tensor, p: Any, margin: Any, weight: Tensor | None = None, reduction: int = _MEAN
) -> Tensor:
    distances, counted = _margins(x, target, margin)
    share = (_shared(gradient, target, reduction) / distances.shape[1]).reshape(-1, 1)
    terms = share.expand(distances.shape) if p == 1 else (2.0 * distances) * share
    if weight is not None:
        terms = terms * weight[target].reshape(-1, 1)
    terms = torch.where(counted, terms, 0.0)
    labels = target.reshape(-1, 1)
    return terms.scatter(1, labels, -terms.sum(1, keepdim=True)).reshape(x.shape)


def _labels(target: Tensor) -> Tensor:
    """(rows, classes): whether a class stands among a row's targets before the first -1."""
    rows = torch.atleast_2d(target)
    before = (rows == -1).cumsum(1) == 0
    marks = torch.zeros_like(rows).scatter_add(1, rows.clamp(min=0), before.to(rows.dtype))
    return marks > 0


def _pairs(x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """1 - x[target] + x[other] for (rows, targets, others), targets in their order, and which are counted."""
    rows, wanted = torch.atleast_2d(x), torch.atleast_2d(target)
    before = (wanted == -1).cumsum(1) == 0
    distances = (1.0 - rows.gather(1, wanted.clamp(min=0))).unsqueeze(2) + rows.unsqueeze(1)
    return distances, before.unsqueeze(2) & ~_labels(target).unsqueeze(1) & (distances > 0)


@steps("multilabel_margin_loss_forward")
def multilabel_margin_loss(x: Tensor, target: Tensor, reduction: int) -> tuple[Tensor, Tensor]:
    distances, counted = _pairs(x, target)
    losses = torch.where(counted, distances, 0.0).flatten(1).sum(1) / torch.atleast_2d(x).shape[1]
    is_target = _labels(target).to(x.dtype).reshape(target.shape)
    return _reduced(losses if x.dim() > 1 else losses.reshape(()), reduction), is_target


@steps("multilabel_margin_loss_backward")
def multilabel_margin_loss_backward(
    gradient: Tensor, x: Tensor, target: Tensor, reduction: int, is_target: Tensor
) -> Tensor:
    _, counted = _pairs(x, target)
    rows = torch.atleast_2d(x)
    share = gradient / rows.shape[1]
    share = share / rows.shape[0] if reduction == _MEAN else share
    terms = torch.where(counted, share.reshape(-1, 1, 1), 0.0)
    of_others = terms.sum(1)
    places = torch.atleast_2d(target).clamp(min=0)
    return of_others.scatter_add(1, places, -terms.sum(2)).reshape(x.shape)
