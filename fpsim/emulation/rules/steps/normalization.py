"""Normalizations and their gradients, one elementary operation after the other; sums and means are the accumulator's.

Each is written over a tensor and the axes that statistics are taken over. Statistics saved for the gradient are values of
the format.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor
_Optional = Tensor | None


def _normalize(x: Tensor, axes: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x - mean) / sqrt(variance + eps), mean, variance, 1 / sqrt(variance + eps)."""
    mean = x.mean(axes, keepdim=True)
    centered = x - mean
    variance = centered.square().mean(axes, keepdim=True)
    inverse = (variance + eps).rsqrt()
    return centered * inverse, mean, variance, inverse


def _scale(x: Tensor, weight: _Optional, bias: _Optional) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _gradient(gradient: Tensor, normal: Tensor, inverse: Tensor, axes: list[int]) -> Tensor:
    """Of what was normalized, from that of the normalized."""
    average = gradient.mean(axes, keepdim=True)
    slope = (gradient * normal).mean(axes, keepdim=True)
    return (gradient - average - normal * slope) * inverse


# Layer


@steps("native_layer_norm")
def layer_norm(x: Tensor, shape: Any, weight: _Optional, bias: _Optional, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    normal, mean, _, inverse = _normalize(x, list(range(x.dim() - len(shape), x.dim())), eps)
    return _scale(normal, weight, bias), mean, inverse


@steps("native_layer_norm_backward")
def layer_norm_backward(
    gradient: Tensor, x: Tensor, shape: Any, mean: Tensor, rstd: Tensor, weight: _Optional, bias: _Optional, mask: list[bool]
) -> tuple[_Optional, ...]:
    inner = list(range(x.dim() - len(shape), x.dim()))
    outer = list(range(x.dim() - len(shape)))
    normal = (x - mean) * rstd
    scaled = _scale(gradient, weight, None)
    return (
        _gradient(scaled, normal, rstd, inner) if mask[0] else None,
        _sum(gradient * normal, outer) if mask[1] and weight is not None else None,
        _sum(gradient, outer) if mask[2] and bias is not None else None,
    )


def _sum(x: Tensor, axes: list[int]) -> Tensor:
    return x.sum(axes) if axes else x.clone()


@steps("_fused_rms_norm")
def rms_norm(x: Tensor, shape: Any, weight: _Optional, eps: float) -> tuple[Tensor, Tensor]:
    inner = list(range(x.dim() - len(shape), x.dim()))
    inverse = (x.square().mean(inner, keepdim=True) + eps).rsqrt()
    return _scale(x * inverse, weight, None), inverse


@steps("_fused_rms_norm_backward")
def rms_norm_backward(
    gradient: Tensor, x: Tensor, shape: Any, rstd: Tensor, weight: _Optional, mask: list[bool]
) -> tuple[_Optional, _Optional]:
    inner, outer = list(range(x.dim() - len(shape), x.dim())), list(range(x.dim() - len(shape)))
    normal = x * rstd
    scaled = _scale(gradient, weight, None)
    slope = (scaled * normal).mean(inner, keepdim=True)
    return (
        (scaled - normal * slope) * rstd if mask[0] else None,
        _sum(gradient * normal, outer) if mask[1] and weight is not None else None,
    )


# Group


def _per_channel(vector: _Optional, group: int) -> _Optional:
    return None if vector is None else vector.reshape(1, group, -1, 1)


@steps("native_group_norm")
def group_norm(
    x: Tensor, weight: _Optional, bias: _Optional, images: int, channels: int, size: int, group: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    normal, mean, _, inverse = _normalize(x.reshape(images, group, channels // group, size), [2, 3], eps)
    out = _scale(normal, _per_channel(weight, group), _per_channel(bias, group))
    return out.reshape(x.shape), mean.reshape(images, group), inverse.reshape(images, group)


@steps("native_group_norm_backward")
def group_norm_backward(
    gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: _Optional, images: int, channels: int, size: int,
    group: int, mask: list[bool],
) -> tuple[_Optional, ...]:  # fmt: skip
    shape = (images, group, channels // group, size)
    middle, inverse = mean.reshape(images, group, 1, 1), rstd.reshape(images, group, 1, 1)
    normal, g = (x.reshape(shape) - middle) * inverse, gradient.reshape(shape)
    scaled = _scale(g, _per_channel(weight, group), None)
    return (
        _gradient(scaled, normal, inverse, [2, 3]).reshape(x.shape) if mask[0] else None,
        (g * normal).sum([0, 3]).reshape(channels) if mask[1] else None,
        g.sum([0, 3]).reshape(channels) if mask[2] else None,
    )


# Batch


def _axes_and_shape(x: Tensor) -> tuple[list[int], list[int]]:
    return [0, *range(2, x.dim())], [1, -1, *(1 for _ in range(2, x.dim()))]


def _move(running: Tensor, batch: Tensor, momentum: float) -> None:
    running.copy_(running * (1.0 - momentum) + batch * momentum)


def _batch_norm(
    x: Tensor, weight: _Optional, bias: _Optional, running_mean: _Optional, running_var: _Optional, training: bool,
    momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    axes, shape = _axes_and_shape(x)
    count = x.numel() // max(x.shape[1], 1)
    if training:
        normal, mean, variance, inverse = _normalize(x, axes, eps)
        if running_mean is not None:
            _move(running_mean, mean.reshape(-1), momentum)
        if running_var is not None:
            unbiased = count / (count - 1) if count > 1 else float("nan")
            _move(running_var, variance.reshape(-1) * unbiased, momentum)
        saved = mean.reshape(-1), inverse.reshape(-1)
    else:
        assert running_mean is not None and running_var is not None
        normal = (x - running_mean.reshape(shape)) * (running_var.reshape(shape) + eps).rsqrt()
        saved = x.new_zeros(0), x.new_zeros(0)
    vectors = (None if vector is None else vector.reshape(shape) for vector in (weight, bias))
    return _scale(normal, *vectors), *saved


steps("native_batch_norm _native_batch_norm_legit")(_batch_norm)


def _with_reserve(train: bool) -> Callable[..., tuple[Tensor, ...]]:
    def batch_norm(
        x: Tensor, weight: _Optional, bias: _Optional, mean: _Optional, variance: _Optional, momentum: float, eps: float
    ) -> tuple[Tensor, ...]:
        return (*_batch_norm(x, weight, bias, mean, variance, train, momentum, eps), torch.empty(0, dtype=torch.uint8))

    return batch_norm


steps("_batch_norm_with_update")(_with_reserve(True))
steps("_batch_norm_no_update")(_with_reserve(False))


@steps("native_batch_norm_backward")
def batch_norm_backward(
    gradient: Tensor, x: Tensor, weight: _Optional, running_mean: _Optional, running_var: _Optional, save_mean: _Optional,
    save_invstd: _Optional, train: bool, eps: float, mask: list[bool],
) -> tuple[_Optional, ...]:  # fmt: skip
    axes, shape = _axes_and_shape(x)
    if train:
        assert save_mean is not None and save_invstd is not None
        mean, inverse = save_mean.reshape(shape), save_invstd.reshape(shape)
    else:
        assert running_mean is not None and running_var is not None
        mean, inverse = running_mean.reshape(shape), (running_var.reshape(shape) + eps).rsqrt()
    normal = (x - mean) * inverse
    scaled = _scale(gradient, None if weight is None else weight.reshape(shape), None)
    return (
        (_gradient(scaled, normal, inverse, axes) if train else scaled * inverse) if mask[0] else None,
        (gradient * normal).sum(axes) if mask[1] else None,
        gradient.sum(axes) if mask[2] else None,
    )


@steps("batch_norm_backward")
def batch_norm_backward_with_reserve(
    gradient: Tensor, x: Tensor, weight: Tensor, running_mean: _Optional, running_var: _Optional, save_mean: _Optional,
    save_var: _Optional, update: bool, eps: float, mask: list[bool], reserve: Tensor,
) -> tuple[_Optional, ...]:  # fmt: skip
    return batch_norm_backward(
        gradient, x, weight, running_mean, running_var, save_mean, save_var, update, eps, mask
    )
