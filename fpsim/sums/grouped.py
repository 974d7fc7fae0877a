"""Convolutions of many groups: their sums lane by lane, the groups being the lanes, so that no group is a job of its own.

Operands are laid out with groups last, in blocks of LANES, and the one that is read tap by tap with its padding, and with
zeros between its elements where strides leave gaps. Results are those of the products group by group, bit for bit.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod

import numpy as np

from fpsim.numbers.operands import as_read
from fpsim.sums.geometry import Geometry
from fpsim.sums.joined import JoinedSums, Places, Products
from fpsim.sums.lanes import LANES
from fpsim.sums.layout import by_groups, laid_out
from fpsim.sums.phases import Phase, slices, whole
from fpsim.sums.windows import Reading, reading, table


def forward_into(
    x: np.ndarray, weight: np.ndarray, out: np.ndarray, geometry: Geometry, products: Products, bias: np.ndarray | None
) -> None:
    """As `sums.convolutions.forward_into`."""
    phase = whole(geometry.kernel, geometry.grid, geometry.forward_axes)
    _columns_into(_by_outputs(weight, geometry), x, out, geometry.kernel, (phase,), products, bias)


def input_gradient_into(
    gradient: np.ndarray, weight: np.ndarray, out: np.ndarray, geometry: Geometry, phases: tuple[Phase, ...],
    products: Products, bias: np.ndarray | None,
) -> None:  # fmt: skip
    """As `sums.convolutions.input_gradient_into`, in these phases."""
    _columns_into(_by_outputs(weight, geometry).swapaxes(1, 2), gradient, out, geometry.kernel, phases, products, bias)


def weight_gradient_into(gradient: np.ndarray, x: np.ndarray, out: np.ndarray, geometry: Geometry, products: Products) -> None:
    """As `sums.convolutions.weight_gradient_into`."""
    groups, outer, inner = geometry.groups, geometry.outputs // geometry.groups, geometry.channels // geometry.groups
    images, taps, leaves = geometry.images, prod(geometry.kernel), geometry.images * prod(geometry.grid)
    read = reading(geometry.size, geometry.kernel, (whole(geometry.kernel, geometry.grid, geometry.forward_axes),))
    places = _weight_places(read, outer, inner, images)
    sums = JoinedSums(products, leaves, out.reshape(1, geometry.outputs, inner * taps), groups, None)
    gradient, x = as_read(gradient, products.task.left.enclosing), as_read(x, products.task.right.enclosing)
    for some, image in sums.pieces(images * inner * read.plane + outer * leaves):
        left = laid_out(by_groups(gradient, groups)[some], sums.dtype, zeros=1)
        right = laid_out(by_groups(x, groups)[some], sums.dtype, read.windows)
        sums.add(leaves, left, right, places, some, image)
    sums.finish()


def _by_outputs(weight: np.ndarray, geometry: Geometry) -> np.ndarray:
    """(groups, outputs of a group, channels of a group, taps)."""
    shape = (geometry.groups, geometry.outputs // geometry.groups, geometry.channels // geometry.groups)
    return weight.reshape(*shape, prod(geometry.kernel))


def _columns_into(
    factors: np.ndarray, source: np.ndarray, out: np.ndarray, kernel: tuple[int, ...], phases: tuple[Phase, ...],
    products: Products, bias: np.ndarray | None,
) -> None:  # fmt: skip
    """out[n, (g, i), p] = sum over (c, t) of factors[g, i, c, t] * what tap t of channel (g, c) of the source reads at p."""
    groups, rows, channels, taps = factors.shape
    grid = out.shape[2:]
    read = reading(source.shape[2:], kernel, phases)
    sums = JoinedSums(products, channels * taps, out, groups, bias)
    factors, source = as_read(factors, products.task.left.enclosing), as_read(source, products.task.right.enclosing)
    for some, images in sums.pieces(channels * read.plane + rows * prod(grid)):
        left = laid_out(factors[some], sums.dtype, zeros=1)
        right = laid_out(by_groups(source[images], groups)[some], sums.dtype, read.windows)
        columns = _column_places(read, rows, channels, taps, right.shape[2])
        for phase, places in zip(phases, columns, strict=True):
            sums.add(places[2].size, left, right, places, some, images, slices(phase.positions))
    sums.finish()


@lru_cache(maxsize=64)
def _column_places(read: Reading, rows: int, channels: int, taps: int, images: int) -> list[Places]:
    """For each phase what (row, image, position) and (channel, tap) add to a place in the left and in the right factor."""
    return [
        (
            table((rows, channels * taps), (images * places.positions.size, 0)) * LANES,
            table((rows, 0), (images, read.plane), places.positions) * LANES,
            table((channels, taps), places.which) * LANES,
            table((channels, images * read.plane), places.taps) * LANES,
        )
        for places in read.places
    ]


@lru_cache(maxsize=64)
def _weight_places(read: Reading, outer: int, inner: int, images: int) -> Places:
    """What (output, channel, tap) and (image, position) add to a place in the gradient and in the input."""
    (places,) = read.places
    leaves = images * places.positions.size
    return (
        table((outer, leaves), (inner * places.taps.size, 0)) * LANES,
        table((outer, 0), (inner, images * read.plane), places.taps) * LANES,
        table((leaves, 1)) * LANES,
        table((images, read.plane), places.positions) * LANES,
    )
