"""Reductions of segments of an axis, one elementary operation after the other; sums are the accumulator's."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fpsim.emulation.registry import steps

Tensor = torch.Tensor
_EMPTY = {"sum": 0.0, "mean": math.nan, "max": -math.inf, "min": math.inf, "prod": 1.0}


def _starts_and_ends(lengths: Tensor | None, offsets: Tensor | None, outer: int) -> np.ndarray:
    """(outer, segments, 2): where each segment of each row begins and ends."""
    if offsets is not None:
        bounds = offsets.numpy().reshape(outer, -1)
    else:
        assert lengths is not None
        sizes = lengths.numpy().reshape(outer, -1)
        bounds = np.concatenate([np.zeros((outer, 1), sizes.dtype), np.cumsum(sizes, 1)], 1)
    return np.stack([bounds[:, :-1], bounds[:, 1:]], 2)


def _reduced(part: Tensor, reduce: str, initial: float | None) -> Tensor:
    """A segment (n, d) in one row."""
    if initial is not None and reduce != "mean":
        part = torch.cat([torch.full((1, part.shape[1]), float(initial), dtype=part.dtype), part])
    if not len(part):
        empty = _EMPTY[reduce] if initial is None else float(initial)
        return torch.full(part.shape[1:], empty, dtype=part.dtype)
    if reduce == "mean":
        total = part.sum(0) if initial is None else part.sum(0) + float(initial)
        return total / float(len(part))
    return getattr(part, {"max": "amax", "min": "amin"}.get(reduce, reduce))(0)


@steps("segment_reduce")
def segment_reduce(
    data: Tensor, reduce: str, *, lengths: Tensor | None = None, indices: Tensor | None = None, offsets: Tensor | None = None,
    axis: int = 0, unsafe: bool = False, initial: Any = None,
) -> Tensor:  # fmt: skip
    outer, inner = math.prod(data.shape[:axis]), math.prod(data.shape[axis + 1 :])
    rows = data.reshape(outer, data.shape[axis], inner)
    bounds = _starts_and_ends(lengths, offsets, outer)
    parts = [_reduced(rows[i, start:end], reduce, initial) for i in range(outer) for start, end in bounds[i].tolist()]
    shape = [*data.shape[:axis], bounds.shape[1], *data.shape[axis + 1 :]]
    return torch.stack(parts).reshape(shape) if parts else data.new_zeros(shape)


def _shared(gradient: Tensor, output: Tensor, part: Tensor, reduce: str) -> Tensor:
    """The gradient (d) of a segment's result, handed to its elements (n, d)."""
    if reduce == "sum":
        return gradient.expand(part.shape)
    if reduce == "mean":
        return (gradient / float(len(part))).expand(part.shape)
    if reduce == "prod":
        return torch.stack([gradient * torch.cat([part[:k], part[k + 1 :]]).prod(0) for k in range(len(part))])
    chosen = (part == output) | part.isnan()
    return torch.where(chosen, gradient / chosen.sum(0).to(gradient.dtype), 0.0)


@steps("_segment_reduce_backward")
def segment_reduce_backward(
    gradient: Tensor, output: Tensor, data: Tensor, reduce: str, *, lengths: Tensor | None = None,
    offsets: Tensor | None = None, axis: int = 0, initial: Any = None,
) -> Tensor:  # fmt: skip
    outer, inner = math.prod(data.shape[:axis]), math.prod(data.shape[axis + 1 :])
    rows = data.reshape(outer, data.shape[axis], inner)
    bounds = _starts_and_ends(lengths, offsets, outer)
    of_parts, results = (item.reshape(outer, bounds.shape[1], inner) for item in (gradient, output))
    result = torch.zeros_like(rows)
    for i in range(outer):
        for j, (start, end) in enumerate(bounds[i].tolist()):
            if end > start:
                result[i, start:end] = _shared(of_parts[i, j], results[i, j], rows[i, start:end], reduce)
    return result.reshape(data.shape)
