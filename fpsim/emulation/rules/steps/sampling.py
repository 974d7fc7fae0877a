"""grid_sample and its gradients, in the order of operations of ATen's `native/GridSampler.h` and `GridSampler.cpp`.

A coordinate c of a grid becomes (c + 1) / 2 * (size - 1) with align_corners, else ((c + 1) * size - 1) / 2, then is clipped or
reflected. Each axis gives factors for its neighbors; a corner's weight is their product (x, y, z). A result is the sum of
values times weights over the corners (bicubic: over the four along x, then along y). Gradients of the input meet in the order
of outputs, then corners; that of a coordinate is a sum over (channel, corner). What lies outside counts as 0, and so does
what is NaN or too large to be an index. Sums are the accumulator's.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import torch

from fpsim.emulation.registry import steps
from fpsim.emulation.rules.steps.interpolation import BICUBIC, keys_far, keys_near

Tensor = torch.Tensor
_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)
_FAR = 2.0**31  # no tensor is as large


def _reflected(c: Tensor, twice_low: int, twice_high: int) -> tuple[Tensor, Tensor]:
    """The coordinate between the bounds, and its slope, 1 or -1."""
    ones = torch.ones_like(c)
    if twice_low == twice_high:
        return torch.zeros_like(c), ones
    low, span = twice_low / 2, (twice_high - twice_low) / 2
    shifted = c - low
    distance = shifted.abs()
    extra = torch.fmod(distance, span)
    odd = torch.fmod((distance / span).floor(), 2.0) != 0
    return torch.where(odd, span - extra + low, extra + low), torch.where((shifted < 0) ^ odd, -ones, ones)


def _padded(c: Tensor, size: int, padding: int, align_corners: bool) -> tuple[Tensor, Tensor]:
    """Where the coordinate reads, and its slope there: -1, 0 or 1."""
    if padding == _ZEROS:
        return c, torch.ones_like(c)
    slope = torch.ones_like(c)
    if padding == _REFLECTION:
        c, slope = _reflected(c, *((0, 2 * (size - 1)) if align_corners else (-1, 2 * size - 1)))
    return c.clamp(0.0, float(size - 1)), torch.where((c <= 0) | (c >= size - 1), 0.0, slope)


def _keys(t: Tensor) -> list[Tensor]:
    """Keys' kernel at t + 1, t, 1 - t and 2 - t."""
    rest = 1.0 - t
    return [keys_far(t + 1.0, BICUBIC), keys_near(t, BICUBIC), keys_near(rest, BICUBIC), keys_far(rest + 1.0, BICUBIC)]


def _slopes_of_keys(t: Tensor) -> list[Tensor]:
    """Minus their derivatives."""
    a = BICUBIC
    first, second, third, fourth = -1.0 - t, -t, 1.0 - t, 2.0 - t
    return [
        (-3 * a * first - 10 * a) * first - 8 * a,
        (-3 * (a + 2) * second - 2 * (a + 3)) * second,
        (3 * (a + 2) * third - 2 * (a + 3)) * third,
        (3 * a * fourth - 10 * a) * fourth + 8 * a,
    ]


@dataclass
class _Axis:
    """The neighbors of every position along an axis, (images, positions) each, and what they weigh."""

    size: int
    scale: Tensor  # of the coordinate, by that of the grid
    neighbors: list[Tensor]
    factors: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)  # minus the factors' derivatives; none where they are 1 and -1

    @staticmethod
    def of(coordinate: Tensor, size: int, mode: int, padding: int, align_corners: bool) -> _Axis:
        if align_corners:
            c, step = (coordinate + 1.0) / 2.0 * float(size - 1), (size - 1) / 2
        else:
            c, step = ((coordinate + 1.0) * float(size) - 1.0) / 2.0, size / 2
        if mode == _BICUBIC:
            low = c.floor()
            around = [_padded(low + float(k), size, padding, align_corners)[0].trunc() for k in (-1, 0, 1, 2)]
            return _Axis(size, torch.full_like(c, step), around, _keys(c - low), _slopes_of_keys(c - low))
        c, slope = _padded(c, size, padding, align_corners)
        if mode == _NEAREST:
            return _Axis(size, slope * step, [c.round()])
        low = c.floor()
        high = (_index(low) + 1).to(c.dtype)
        return _Axis(size, slope * step, [low, high], [high - c, c - low])


def _index(c: Tensor) -> Tensor:
    """Whole coordinates as integers; -100, which is outside, for what can be none."""
    return torch.where(c.abs() < _FAR, c, -100.0).long()


class _Corners:
    """All corners of every position: one neighbor along each axis (x, y, z), those along `order`'s last axis side by side."""

    def __init__(self, axes: list[_Axis], order: list[int]):
        self.axes = axes
        counts = [range(len(axes[axis].neighbors)) for axis in order]
        self.choices = [dict(zip(order, chosen, strict=True)) for chosen in itertools.product(*counts)]
        indices = [[_index(item) for item in axis.neighbors] for axis in axes]
        self.inside: list[Tensor] = []  # (images, 1, positions)
        self.flat: list[Tensor] = []
        for choice in self.choices:
            inside, flat = torch.ones(()).bool(), torch.zeros((), dtype=torch.int64)
            for axis in reversed(range(len(axes))):
                index, size = indices[axis][choice[axis]], axes[axis].size
                inside, flat = inside & (index >= 0) & (index < size), flat * size + index.clamp(0, size - 1)
            self.inside.append(inside.unsqueeze(1))
            self.flat.append(flat.unsqueeze(1))

    def read(self, x: Tensor, corner: int) -> Tensor:
        """(images, channels, positions) of (images, channels, elements)."""
        return self._masked(x.gather(2, self.flat[corner].expand(-1, x.shape[1], -1)), corner)

    def _masked(self, values: Tensor, corner: int) -> Tensor:
        return torch.where(self.inside[corner], values, 0.0)

    def factors(self, corner: int, but: int = -1) -> list[Tensor]:
        """What the corner weighs along each axis, or each but one."""
        chosen = self.choices[corner]
        return [axis.factors[chosen[i]].unsqueeze(1) for i, axis in enumerate(self.axes) if i != but and axis.factors]

    def weighted(self, x: Tensor) -> list[Tensor]:
        """Values times weights."""
        return [self._masked(self.read(x, k) * _product(self.factors(k)), k) for k in range(len(self.choices))]

    def input_gradient(self, gradient: Tensor, shape: torch.Size, cubic: bool) -> Tensor:
        images, channels = gradient.shape[:2]
        terms, places = [], []
        for k in range(len(self.choices)):
            factors = self.factors(k)
            term = _product([gradient, *factors]) if cubic or not factors else _product([_product(factors), gradient])
            terms.append(self._masked(term, k))
            places.append(self.flat[k].expand(-1, channels, -1))
        zeros = torch.zeros(images, channels, shape[2:].numel(), dtype=gradient.dtype)
        return zeros.scatter_add(2, torch.stack(places, -1).flatten(2), torch.stack(terms, -1).flatten(2)).reshape(shape)

    def coordinate_gradient(self, gradient: Tensor, x: Tensor, axis: int) -> Tensor:
        """(images, positions)."""
        terms, this = [], self.axes[axis]
        for k, choice in enumerate(self.choices):
            slopes = [this.slopes[choice[axis]].unsqueeze(1)] if this.slopes else []
            term = _product([self.read(x, k), *slopes, *self.factors(k, but=axis), gradient])
            terms.append(self._masked(term if choice[axis] == 1 and not slopes else -term, k))
        total = torch.stack(terms, 2).flatten(1, 2).sum(1)  # (images, channels, corners, positions)
        return total * this.scale


def _product(items: list[Tensor]) -> Tensor:
    result = items[0]
    for item in items[1:]:
        result = result * item
    return result


def _corners(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> _Corners:
    flat = grid.flatten(1, -2)
    axes = [
        _Axis.of(flat[..., i].contiguous(), size, mode, padding, align_corners) for i, size in enumerate(reversed(x.shape[2:]))
    ]
    return _Corners(axes, [0, 1] if mode == _BICUBIC else list(reversed(range(len(axes)))))


@steps("grid_sampler_2d grid_sampler_3d")
def grid_sample(x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool) -> Tensor:
    corners, source = _corners(x, grid, mode, padding, align_corners), x.flatten(2)
    shape = [*x.shape[:2], *grid.shape[1:-1]]
    if mode == _NEAREST:
        return corners.read(source, 0).reshape(shape)
    if mode == _BILINEAR:
        return torch.stack(corners.weighted(source), -1).sum(-1).reshape(shape)
    along_x, along_y = (torch.stack(axis.factors, -1).unsqueeze(1) for axis in corners.axes)
    rows = []
    for row in range(4):
        values = [corners.read(source, k) for k, choice in enumerate(corners.choices) if choice[1] == row]
        rows.append((torch.stack(values, -1) * along_x).sum(-1))
    return (torch.stack(rows, -1) * along_y).sum(-1).reshape(shape)


@steps("grid_sampler_2d_backward grid_sampler_3d_backward")
def grid_sample_backward(
    gradient: Tensor, x: Tensor, grid: Tensor, mode: int, padding: int, align_corners: bool, mask: list[bool]
) -> tuple[Tensor | None, Tensor | None]:
    corners, g = _corners(x, grid, mode, padding, align_corners), gradient.flatten(2)
    of_input = corners.input_gradient(g, x.shape, mode == _BICUBIC) if mask[0] else None
    if not mask[1]:
        return of_input, None
    if mode == _NEAREST:
        return of_input, torch.zeros_like(grid, memory_format=torch.contiguous_format)
    source = x.flatten(2)
    parts = [corners.coordinate_gradient(g, source, axis) for axis in range(len(corners.axes))]
    return of_input, torch.stack(parts, -1).reshape(grid.shape)
