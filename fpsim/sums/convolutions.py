"""Convolutions, forward and both backward products, on the kernels of matrix products.

Each is a product of matrices one of which, taps by positions, is never whole in memory: it is gathered tile by tile.
The order of k is that of the taps: forward (channel, kernel position), gradient of the input one chain over (output
channel, kernel position), gradient of the weight (image, output position), each row-major. What padding, or the gaps
between strides, stand for is a zero that is multiplied like any other term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import numpy as np

from fpsim.accumulation.kinds import TREE
from fpsim.accumulation.orders import sequential
from fpsim.backend import threads
from fpsim.numbers.rounding import Rounding
from fpsim.sums import grouped
from fpsim.sums.geometry import Geometry
from fpsim.sums.joined import Products
from fpsim.sums.phases import phases, slices, whole
from fpsim.sums.splitting import Along, in_parts
from fpsim.sums.taps import COLUMNS, Taps, length_of

#: Bytes of a gathered tile. A product holds it once more, so that a call stays below 64 MB a thread; a smaller tile of
#: positions is near when it is read again, a tile of taps is as wide as what it repays to pack the gradient for.
_POSITIONS_BYTES = 4 << 20
_TAPS_BYTES = 12 << 20
_ROWS = 16  # threads that share the rows of a product take multiples of this many


def forward_into(
    x: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    geometry: Geometry,
    products: Products,
    bias: np.ndarray | None = None,
) -> None:
    """The convolution of x (N, C, ...) with weight (O, C/groups, ...) into out (N, O, ...); nothing is checked.

    Arrays of one dtype, float32 or float64, of values of the format, with five axes each (`Geometry.input_shape` and
    so on); operands have any strides, results are contiguous. The bias (O) is added to the accumulator after the sum, in
    its format, before the one rounding to the format.
    """
    if products.task.split is not None:
        task, weight, x = in_parts(products.task, Along(weight, 1), Along(x, 1, geometry.groups), prod(geometry.kernel))
        products, geometry = replace(products, task=task), replace(geometry, channels=x.shape[1])
    inner, outer = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    if products.joined(geometry.groups, outer, inner * prod(geometry.kernel), geometry.images * prod(geometry.grid)):
        grouped.forward_into(x, weight, out, geometry, products, bias)
        return
    for group in range(geometry.groups):
        rows = slice(group * outer, (group + 1) * outer)
        source = x[:, group * inner : (group + 1) * inner]
        taps = Taps(source, geometry.kernel, geometry.grid, geometry.forward_axes)
        _columns_into(weight[rows].reshape(outer, taps.count), taps, out, rows, products, bias)


def input_gradient_into(
    gradient: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    geometry: Geometry,
    products: Products,
    bias: np.ndarray | None = None,
) -> None:
    """The gradient of the input from that of the output, (N, O, ...), into out (N, C, ...); nothing is checked.

    The same operation is the forward pass of a transposed convolution, which is what the bias (C) is for.
    """
    if products.task.split is not None:
        factors = Along(weight, 0, geometry.groups), Along(gradient, 1, geometry.groups)
        task, weight, gradient = in_parts(products.task, *factors, prod(geometry.kernel))
        products, geometry = replace(products, task=task), replace(geometry, outputs=gradient.shape[1])
    inner, outer = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    everything = whole(geometry.kernel, geometry.size, geometry.backward_axes)
    parts = phases(geometry) if _zeros_can_be_left_out(weight, geometry, products, out) else (everything,)
    columns = geometry.images * prod(geometry.size)
    if products.joined(geometry.groups, inner, outer * prod(geometry.kernel) // len(parts), columns):
        grouped.input_gradient_into(gradient, weight, out, geometry, parts, products, bias)
        return
    for part in parts:
        part_out = out if part is everything else np.empty((geometry.images, geometry.channels, *part.grid), dtype=out.dtype)
        factors, axes = weight[slices(part.taps)], np.array(part.axes, dtype=np.int64)
        for group in range(geometry.groups):
            rows = slice(group * inner, (group + 1) * inner)
            mine = slice(group * outer, (group + 1) * outer)
            taps = Taps(gradient[:, mine], part.kernel, part.grid, axes)
            _columns_into(factors[mine].swapaxes(0, 1).reshape(inner, taps.count), taps, part_out, rows, products, bias)
        if part_out is not out:
            out[slices(part.positions)] = part_out


def _zeros_can_be_left_out(weight: np.ndarray, geometry: Geometry, products: Products, out: np.ndarray) -> bool:
    """Whether the zero terms between strides change no bit, so that each phase of the strides can be computed without.

    True of an unfused chain from +0 to nearest even with subnormals kept, whose sum is never -0; but zero times infinity
    is NaN, and observers are told of every addition.
    """
    task = products.task
    chain = task.accumulator.kind is TREE and task.accumulator.order == sequential and not task.exact_products
    nearest = task.rounding is Rounding.NEAREST_EVEN and task.target.flush is None
    small = out.nbytes // prod(geometry.stride) <= _TAPS_BYTES
    if products.observer is not None or max(geometry.stride) == 1:
        return False
    return chain and nearest and small and task.split is None and bool(np.isfinite(weight).all())


def weight_gradient_into(
    gradient: np.ndarray, x: np.ndarray, out: np.ndarray, geometry: Geometry, products: Products
) -> None:
    """The gradient of the weight from that of the output, (N, O, ...), and x, into out (O, C/groups, ...).

    Nothing is checked.
    """
    if products.task.split is not None:
        task, gradient, x = in_parts(products.task, Along(gradient, 0), Along(x, 0), prod(geometry.grid))
        products, geometry = replace(products, task=task), replace(geometry, images=len(x))
    inner, outer = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    if products.joined(geometry.groups, outer, geometry.images * prod(geometry.grid), inner * prod(geometry.kernel)):
        grouped.weight_gradient_into(gradient, x, out, geometry, products)
        return
    for group in range(geometry.groups):
        source = x[:, group * inner : (group + 1) * inner]
        taps = Taps(source, geometry.kernel, geometry.grid, geometry.forward_axes)
        at_once = max(1, _TAPS_BYTES // max(1, taps.positions * x.itemsize))
        flat = out.reshape(geometry.outputs, taps.count)
        for rows in _ranges(group * outer, (group + 1) * outer, at_once):
            left = gradient[:, rows].swapaxes(0, 1).reshape(rows.stop - rows.start, taps.positions)
            _tap_columns_into(left, taps, flat, rows, at_once, products)


def _tap_columns_into(
    left: np.ndarray, taps: Taps, out: np.ndarray, rows: slice, at_once: int, products: Products
) -> None:
    """out[rows] = left @ (what each tap reads, a column each), tile by tile of taps."""
    tiles = _tiles(slice(0, taps.count), at_once, taps.sharers(len(left), taps.count), COLUMNS)

    def some(first: int, last: int) -> None:
        buffer = taps.buffer(max(map(length_of, tiles)) * taps.positions)
        for columns in tiles[first:last]:
            right = taps.gather(columns, slice(0, taps.positions), buffer)
            elements = (rows.start * taps.count + columns.start, taps.count)
            products.product(left, right.T, out[rows, columns], elements)

    taps.share(some, len(tiles), len(left), taps.count)


def _columns_into(
    factors: np.ndarray, taps: Taps, out: np.ndarray, rows: slice, products: Products, bias: np.ndarray | None
) -> None:
    """out[n, rows, p] = factors @ (what the taps read at position p of image n), tile by tile of positions."""
    images, channels = out.shape[:2]
    addend = None if bias is None else bias[rows, None]
    positions = prod(out.shape[2:])
    room = min(max(_POSITIONS_BYTES, factors.nbytes // 2), _TAPS_BYTES)  # every tile packs the factors again
    at_once = _whole_panels(max(1, room // max(1, taps.count * out.itemsize)))
    together = max(1, min(images, at_once // max(1, positions)))
    if products.task.rounding is Rounding.STOCHASTIC or positions >= at_once:
        together = 1  # within one image the numbers of elements are affine in row and column
    sharers = taps.sharers(len(factors), taps.positions)
    pieces = []
    for group in _tiles(slice(0, images), together, sharers if positions < at_once else 1):
        whole = slice(group.start * positions, group.stop * positions)
        parts = [whole] if together > 1 else _tiles(whole, at_once, sharers, COLUMNS)
        pieces += [(group, columns) for columns in parts]

    def some(first: int, last: int) -> None:
        buffer = taps.buffer(max(length_of(columns) for _, columns in pieces) * taps.count)
        for group, columns in pieces[first:last]:
            right = taps.gather(slice(0, taps.count), columns, buffer)
            result = np.empty((len(factors), right.shape[1]), dtype=out.dtype)
            start = columns.start - group.start * positions
            first_element = (group.start * channels + rows.start) * positions + start

            def product(
                i: int, j: int, right: np.ndarray = right, result: np.ndarray = result, first_element: int = first_element
            ) -> None:
                added = None if addend is None else addend[i:j]
                products.product(factors[i:j], right, result[i:j], (first_element + i * positions, positions), added)

            threads.run(product, threads.parts(len(factors), len(factors) * right.size, _ROWS))
            if together == 1:
                place = out[group.start, rows].reshape(len(factors), positions)
                place[:, start : start + right.shape[1]] = result
            else:
                out[group, rows] = result.reshape(len(factors), length_of(group), *out.shape[2:]).swapaxes(0, 1)

    taps.share(some, len(pieces), len(factors), taps.positions)


def _ranges(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _tiles(whole: slice, at_most: int, sharers: int = 1, granule: int = 1) -> list[slice]:
    """Ranges of at most `at_most`, of multiples of the granule where they can be, as many as threads share evenly."""
    count = -(-length_of(whole) // at_most)
    count = -(-count // max(1, sharers)) * max(1, sharers)
    size = -(-length_of(whole) // max(1, count))
    multiple = -(-size // granule) * granule
    return list(_ranges(whole.start, whole.stop, max(1, multiple if multiple <= at_most else size)))


def _whole_panels(columns: int) -> int:
    return columns // COLUMNS * COLUMNS or columns
