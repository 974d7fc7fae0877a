"""Variances, norms, products and distances, one elementary operation after the other; sums are the accumulator's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fpsim.emulation.registry import register_steps, steps

Tensor = torch.Tensor


def _axes(x: Tensor, dim: Any) -> list[int]:
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return list(range(x.dim()))
    return [axis % max(x.dim(), 1) for axis in ([dim] if isinstance(dim, int) else dim)]


def _sum(x: Tensor, axes: list[int], keepdim: bool) -> Tensor:
    return x.sum(axes, keepdim) if x.dim() else x.clone()


# Variances: the mean, then the mean of squared differences from it


def _variance(x: Tensor, dim: Any, correction: Any, keepdim: bool) -> tuple[Tensor, Tensor]:
    axes = _axes(x, dim)
    count = math.prod(x.shape[axis] for axis in axes) if x.dim() else 1
    mean = x.mean(axes, keepdim=True) if x.dim() else x.clone()
    squares = _sum((x - mean).square(), axes, keepdim)
    variance = squares / float(max(count - (1 if correction is None else correction), 0))
    return variance, mean.reshape(variance.shape)


def _variance_steps(root: bool, with_mean: bool) -> Any:
    def steps_for(op: torch._ops.OpOverload) -> Any:
        if op._overloadname != "correction":
            return None

        def variance(x: Tensor, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Any:
            value, mean = _variance(x, dim, correction, keepdim)
            value = value.sqrt() if root else value
            return (value, mean) if with_mean else value

        return variance

    return steps_for


register_steps("var", _variance_steps(False, False))
register_steps("std", _variance_steps(True, False))
register_steps("var_mean", _variance_steps(False, True))
register_steps("std_mean", _variance_steps(True, True))


# Norms


def _norm(x: Tensor, order: Any, axes: list[int], keepdim: bool) -> Tensor:
    size = x.abs()
    if order == 0:
        return _sum((x != 0).to(x.dtype), axes, keepdim)
    if order == 1:
        return _sum(size, axes, keepdim)
    if order == 2:
        return _sum(x.square(), axes, keepdim).sqrt()
    if math.isinf(order):
        return (size.amax if order > 0 else size.amin)(axes, keepdim) if x.dim() else size
    return _sum(size.pow(float(order)), axes, keepdim).pow(1.0 / float(order))


@steps("linalg_vector_norm")
def vector_norm(x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    if dtype is torch.float64 or not x.is_floating_point():
        return NotImplemented
    return _norm(x, ord, _axes(x, dim), keepdim)


def _norm_steps(op: torch._ops.OpOverload) -> Any:
    if op._overloadname not in ("Scalar", "ScalarOpt_dim"):
        return None
    return lambda x, p=2, dim=None, keepdim=False: _norm(x, 2 if p is None else p, _axes(x, dim), keepdim)


register_steps("norm", _norm_steps)


@steps("renorm")
def renorm(x: Tensor, p: Any, dim: int, maxnorm: Any) -> Tensor:
    axes = [axis for axis in range(x.dim()) if axis != dim % x.dim()]
    sizes = _norm(x, p, axes, True)
    factors = torch.where(sizes > float(maxnorm), float(maxnorm) / (sizes + 1e-7), 1.0)
    return x * factors


# Products, from the left


@steps("cumprod")
def cumprod(x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    x = x.to(dtype) if dtype is not None and x.dtype is not dtype else x
    if not x.is_floating_point():
        return NotImplemented
    if x.dim() == 0 or x.numel() == 0:
        return x.clone()
    parts = [x.select(dim, 0)]
    for index in range(1, x.shape[dim]):
        parts.append(parts[-1] * x.select(dim, index))
    return torch.stack(parts, dim)


def _product_steps(op: torch._ops.OpOverload) -> Any:
    if op._overloadname not in ("default", "dim_int"):
        return None

    def product(x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
        x = x.to(dtype) if dtype is not None and x.dtype is not dtype else x
        if not x.is_floating_point():
            return NotImplemented
        if x.dim() == 0:
            return x.clone()
        flat = x.reshape(-1) if dim is None else x.movedim(dim, 0)
        result = flat[0].clone() if flat.shape[0] else torch.ones(flat.shape[1:], dtype=x.dtype)
        for index in range(1, flat.shape[0]):
            result = result * flat[index]
        return result.unsqueeze(dim) if keepdim and dim is not None else result

    return product


register_steps("prod", _product_steps)


# Distances


@steps("_cdist_forward")
def cdist(a: Tensor, b: Tensor, p: float, compute_mode: Any) -> Tensor:
    return _norm(a.unsqueeze(-2) - b.unsqueeze(-3), p, [-1], False)


def _distance_slope(difference: Tensor, distance: Tensor, p: float) -> Tensor:
    """How a distance changes with each coordinate of the difference; 0 where the distance is 0."""
    if p == 0:
        return torch.zeros_like(difference)
    if p == 1:
        return difference.sign()
    if math.isinf(p):
        return difference.sign() * (difference.abs() == distance)
    ratio = difference / distance
    slope = ratio if p == 2 else ratio.sign() * ratio.abs().pow(p - 1)
    return torch.where(distance == 0, 0.0, slope)


@steps("_cdist_backward")
def cdist_backward(gradient: Tensor, a: Tensor, b: Tensor, p: float, distances: Tensor) -> Tensor:
    difference = a.unsqueeze(-2) - b.unsqueeze(-3)
    return (gradient.unsqueeze(-1) * _distance_slope(difference, distances.unsqueeze(-1), p)).sum(-2)


def _pairs(count: int) -> tuple[Tensor, Tensor]:
    """The first and the second of every two, in the order of `pdist`."""
    first, second = np.triu_indices(count, 1)
    return torch.from_numpy(first), torch.from_numpy(second)


@steps("_pdist_forward")
def pdist(x: Tensor, p: float = 2) -> Tensor:
    first, second = _pairs(len(x))
    return _norm(x[first] - x[second], p, [-1], False)


@steps("_pdist_backward")
def pdist_backward(gradient: Tensor, x: Tensor, p: float, distances: Tensor) -> Tensor:
    first, second = _pairs(len(x))
    terms = gradient.unsqueeze(-1) * _distance_slope(x[first] - x[second], distances.unsqueeze(-1), p)
    return torch.zeros_like(x).index_add(0, torch.cat([first, second]), torch.cat([terms, -terms]))


@steps("dist")
def dist(a: Tensor, b: Tensor, p: Any = 2) -> Tensor:
    return _norm(a - b, p, _axes(a - b, None), False)


# Into places that indices name


def _products_into(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Multiplied one after the other, in ascending order along the axis of the index."""
    result = x.reshape(1) if x.dim() == 0 else x
    index, source = (item.reshape(1) if item.dim() == 0 else item for item in (index, source))
    source = source[tuple(slice(size) for size in index.shape)]
    reached = tuple(slice(None) if axis == dim else slice(size) for axis, size in enumerate(index.shape))
    for position in range(index.shape[dim]):
        places, factors = index.narrow(dim, position, 1), source.narrow(dim, position, 1)
        result = result.scatter(dim, places, result[reached].gather(dim, places) * factors)
    return result.reshape(x.shape)


@steps("scatter_reduce")
def scatter_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Means divide a sum by the number of its terms; sums and extremes are elementary."""
    dim %= max(x.dim(), 1)
    if reduce not in ("mean", "prod"):
        return NotImplemented
    base = x if include_self else x.scatter(dim, index, 1.0 if reduce == "prod" else 0.0)
    if reduce == "prod":
        return _products_into(base, dim, index, source)
    ones = torch.ones_like(x, dtype=torch.float64)
    ones = ones if include_self else ones.scatter(dim, index, 0.0)
    counts = ones.scatter_add(dim, index, torch.ones_like(source, dtype=torch.float64)).clamp(min=1.0)
    return base.scatter_add(dim, index, source) / counts.to(x.dtype)


@steps("index_reduce")
def index_reduce(
    x: Tensor, dim: int, index: Tensor, source: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    shape = [1] * source.dim()
    if source.dim():
        shape[dim] = -1
    places = index.reshape(shape).expand(source.shape)
    return x.scatter_reduce(dim, places, source, reduce, include_self=include_self)


def _multiplying_scatter(op: torch._ops.OpOverload) -> Any:
    if op._overloadname not in ("reduce", "value_reduce"):
        return None

    def scatter(x: Tensor, dim: int, index: Tensor, source: Any, *, reduce: str) -> Tensor:
        if reduce != "multiply":
            return NotImplemented
        factors = source if isinstance(source, Tensor) else torch.full(index.shape, float(source), dtype=x.dtype)
        return _products_into(x, dim % max(x.dim(), 1), index, factors)

    return scatter


register_steps("scatter", _multiplying_scatter)
