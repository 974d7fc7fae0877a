"""Histograms: which bin an element is in, by comparison with the edges, which are values of the format; what each bin holds.

What falls into a bin, ones or weights, is added up by the accumulator in the order of the elements: in a format of p bits a
count of ones ends at 2^p unless the accumulator is wider. The last bin holds its right edge; NaN is in no bin. `histc`, which
shows no edges, has ATen's formula instead: the whole part of (x - low) * bins / (high - low).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fpsim.emulation.registry import register_steps, steps

Tensor = torch.Tensor


def _filled(places: Tensor, inside: Tensor, weight: Tensor | None, like: Tensor, size: int) -> Tensor:
    """The sums of the weights, or of ones, at the places."""
    weights = torch.ones_like(like) if weight is None else weight.reshape(-1)
    chosen = inside.nonzero().squeeze(1)
    return torch.zeros(size, dtype=like.dtype).scatter_add(0, places[chosen], weights[chosen])


@steps("histc")
def histc(x: Tensor, bins: int = 100, min: Any = 0, max: Any = 0) -> Tensor:
    flat, low, high = x.reshape(-1), float(min), float(max)
    ends: list[Any] = [low, high]
    if low == high and flat.numel():
        ends = [flat.amin(), flat.amax()]
        if bool(ends[0] == ends[1]):
            ends = [ends[0] - 1.0, ends[1] + 1.0]
    elif low == high:
        ends = [low - 1.0, high + 1.0]
    if not all(math.isfinite(end) for end in ends):
        return NotImplemented
    first, last = (torch.as_tensor(end, dtype=x.dtype) + 0.0 for end in ends)
    inside = (flat >= first) & (flat <= last)
    places = torch.where(inside, (flat - first) * float(bins) / (last - first), 0.0).long()
    return _filled(places.clamp(max=bins - 1), inside, None, flat, bins)


def _histogram(rows: Tensor, edges: Sequence[Tensor], weight: Tensor | None, density: bool) -> Tensor:
    """Of (elements, dimensions)."""
    counts = [len(edge) - 1 for edge in edges]
    inside = torch.ones(len(rows)).bool()
    places = torch.zeros(len(rows), dtype=torch.int64)
    for axis, (edge, count) in enumerate(zip(edges, counts, strict=True)):
        column = rows[:, axis].contiguous()
        inside = inside & (column >= edge[0]) & (column <= edge[-1])
        place = torch.searchsorted(edge.contiguous(), column, right=True) - 1
        places = places * count + place.clamp(0, count - 1)
    result = _filled(places, inside, weight, rows[:, 0], math.prod(counts)).reshape(counts)
    if density:
        result = result / result.sum()
        for axis, edge in enumerate(edges):
            result = result / edge.diff().reshape([-1 if i == axis else 1 for i in range(len(edges))])
    return result


def _edges(rows: Tensor, bins: Sequence[int], ranges: Any) -> list[Tensor]:
    """Equally spaced over the range that is given, or that the elements have."""
    edges = []
    for axis, count in enumerate(bins):
        if ranges is not None:
            low, high = float(ranges[2 * axis]), float(ranges[2 * axis + 1])
        elif len(rows):
            low, high = (float(end) for end in rows[:, axis].aminmax())
        else:
            low, high = 0.0, 1.0
        if low == high:
            low, high = low - 0.5, high + 0.5
        edges.append(torch.linspace(low, high, count + 1, dtype=rows.dtype))
    return edges


def _histogram_steps(op: torch._ops.OpOverload) -> Any:
    def histogram(
        x: Tensor, bins: Any = 100, *, range: Any = None, weight: Tensor | None = None, density: bool = False
    ) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, 1)
        edges = bins if isinstance(bins, Tensor) else _edges(rows, [bins], range)[0]
        return _histogram(rows, [edges], weight, density), edges.clone() if isinstance(bins, Tensor) else edges

    return histogram


register_steps("histogram", _histogram_steps)


@steps("_histogramdd_bin_edges")
def bin_edges(
    x: Tensor, bins: list[int], *, range: Any = None, weight: Tensor | None = None, density: bool = False
) -> list[Tensor]:
    return _edges(x.reshape(-1, x.shape[-1]), bins, range)


@steps("_histogramdd_from_bin_cts")
def histogramdd_of_counts(
    x: Tensor, bins: list[int], *, range: Any = None, weight: Tensor | None = None, density: bool = False
) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return _histogram(rows, _edges(rows, bins, range), weight, density)


@steps("_histogramdd_from_bin_tensors")
def histogramdd_of_edges(x: Tensor, bins: list[Tensor], *, weight: Tensor | None = None, density: bool = False) -> Tensor:
    return _histogram(x.reshape(-1, x.shape[-1]), bins, weight, density)
