"""Convolutions, forward and both backward products, on the kernels of matrix products.

Each is a product of matrices one of which, taps by positions, is never whole in memory: it is gathered tile by tile.
The order of k is that of the taps: forward (channel, kernel position), gradient of the input one chain over (output
channel, kernel position), gradient of the weight (image, output position), each row-major. What padding, or the gaps
between strides, stand for is a zero that is multiplied like any other term.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import gcd, prod
from typing import Any

import numpy as np

from fpsim._geometry import Geometry
from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.orders import sequential
from fpsim.counters import Counters
from fpsim.formats import Format
from fpsim.products import matmul_into
from fpsim.rounding import Rounding

#: Bytes of a gathered tile. A product may hold its operands once more, so that a call stays below 64 MB.
_TILE_BYTES = 12 << 20
_COLUMNS = 64  # tiles are whole multiples of this many columns where they can be


@dataclass(frozen=True)
class Arithmetic:
    """How the sums of a convolution are made: what `matmul_into` takes beside its arrays."""

    fmt: Format
    accumulator: Accumulator
    rounding: Rounding
    key: int = 0
    counters: Any = None
    result_format: Format | None = None

    def product(
        self,
        left: np.ndarray,
        right: np.ndarray,
        out: np.ndarray,
        elements: tuple[int, int],
        addend: np.ndarray | None = None,
    ) -> None:
        """out = left @ right (+ addend); element (i, j) draws as number elements[0] + i * elements[1] + j."""
        matmul_into(
            left,
            right,
            out,
            self.fmt,
            self.accumulator,
            self.rounding,
            self.key,
            addend=None if addend is None else np.broadcast_to(addend, out.shape),
            counters=self.counters,
            first_element=elements[0],
            row_elements=elements[1],
            result_format=self.result_format,
        )


@dataclass(frozen=True)
class _Phase:
    """Positions of the input, the kernel positions that they meet, and where those read the gradient."""

    positions: tuple[slice, ...]
    taps: tuple[slice, ...]
    grid: tuple[int, ...]
    axes: np.ndarray


def forward_into(
    x: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    geometry: Geometry,
    how: Arithmetic,
    bias: np.ndarray | None = None,
) -> None:
    """The convolution of x (N, C, ...) with weight (O, C/groups, ...) into out (N, O, ...); nothing is checked.

    Arrays of one dtype, float32 or float64, of values of the format, with five axes each (`Geometry.input_shape` and
    so on); operands have any strides, results are contiguous. The bias (O) is added to the accumulator after the sum, in
    its format, before the one rounding to the format.
    """
    inner, outer = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    for group in range(geometry.groups):
        rows = slice(group * outer, (group + 1) * outer)
        source = x[:, group * inner : (group + 1) * inner]
        taps = _Taps(source, geometry.kernel, geometry.grid, geometry.forward_axes)
        _columns_into(weight[rows].reshape(outer, taps.count), taps, out, rows, how, bias)


def input_gradient_into(
    gradient: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    geometry: Geometry,
    how: Arithmetic,
    bias: np.ndarray | None = None,
) -> None:
    """The gradient of the input from that of the output, (N, O, ...), into out (N, C, ...); nothing is checked.

    The same operation is the forward pass of a transposed convolution, which is what the bias (C) is for.
    """
    if _zeros_can_be_left_out(weight, geometry, how, out):
        for phase in _phases(geometry):
            part = np.empty((geometry.images, geometry.channels, *phase.grid), dtype=out.dtype)
            _input_gradient_part(gradient, weight[phase.taps], part, geometry, phase.axes, how, bias)
            out[phase.positions] = part
        return
    _input_gradient_part(gradient, weight, out, geometry, geometry.backward_axes, how, bias)


def _input_gradient_part(
    gradient: np.ndarray,
    weight: np.ndarray,
    out: np.ndarray,
    geometry: Geometry,
    axes: np.ndarray,
    how: Arithmetic,
    bias: np.ndarray | None,
) -> None:
    """The gradient at the positions that `out` has, from the kernel positions that `weight` has."""
    inner, outer = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    for group in range(geometry.groups):
        rows = slice(group * inner, (group + 1) * inner)
        mine = slice(group * outer, (group + 1) * outer)
        taps = _Taps(gradient[:, mine], weight.shape[2:], out.shape[2:], axes)
        _columns_into(weight[mine].swapaxes(0, 1).reshape(inner, taps.count), taps, out, rows, how, bias)


def _zeros_can_be_left_out(weight: np.ndarray, geometry: Geometry, how: Arithmetic, out: np.ndarray) -> bool:
    """Whether the zero terms between strides change no bit, so that each phase of the strides can be computed without.

    True of an unfused chain from +0 to nearest even with subnormals kept, whose sum is never -0; but zero times infinity
    is NaN, and counters count every addition.
    """
    accumulator = how.accumulator
    chain = accumulator.kind == "tree" and accumulator.order == sequential and accumulator.products == "rounded"
    nearest = how.rounding is Rounding.NEAREST_EVEN and accumulator.format.flush is None
    small = out.nbytes // prod(geometry.stride) <= _TILE_BYTES
    if isinstance(how.counters, Counters) or max(geometry.stride) == 1:
        return False
    return chain and nearest and small and bool(np.isfinite(weight).all())


def _phases(geometry: Geometry) -> Iterator[_Phase]:
    """The positions of the input in classes that meet the same kernel positions, each a convolution of stride 1."""
    choices = []
    for axis in range(3):
        stride, padding, dilation = geometry.stride[axis], geometry.padding[axis], geometry.dilation[axis]
        rows = []
        for first in range(min(stride, geometry.size[axis])):
            met = [tap for tap in range(geometry.kernel[axis]) if (first + padding - tap * dilation) % stride == 0]
            start, step = (met[0], stride // gcd(stride, dilation)) if met else (geometry.kernel[axis], 1)
            # Position first + stride * j and tap start + step * t read the gradient at j + offset + t * backward.
            offset, backward = (first + padding - start * dilation) // stride, -(step * dilation // stride)
            rows.append((slice(first, None, stride), slice(start, None, step), (1, offset, backward, 1)))
        choices.append(rows)
    for combination in product(*choices):
        positions, taps, axes = zip(*combination, strict=True)
        grid = tuple(len(range(*places.indices(size))) for places, size in zip(positions, geometry.size, strict=True))
        everything = (slice(None), slice(None))
        yield _Phase(everything + positions, everything + taps, grid, np.array(axes, dtype=np.int64))


def weight_gradient_into(
    gradient: np.ndarray, x: np.ndarray, out: np.ndarray, geometry: Geometry, how: Arithmetic
) -> None:
    """The gradient of the weight from that of the output, (N, O, ...), and x, into out (O, C/groups, ...).

    Nothing is checked.
    """
    inner, outer = geometry.channels // geometry.groups, geometry.outputs // geometry.groups
    for group in range(geometry.groups):
        source = x[:, group * inner : (group + 1) * inner]
        taps = _Taps(source, geometry.kernel, geometry.grid, geometry.forward_axes)
        at_once = max(1, _TILE_BYTES // max(1, taps.positions * x.itemsize))
        flat = out.reshape(geometry.outputs, taps.count)
        for rows in _ranges(group * outer, (group + 1) * outer, at_once):
            left = gradient[:, rows].swapaxes(0, 1).reshape(rows.stop - rows.start, taps.positions)
            for columns in _ranges(0, taps.count, _whole_panels(at_once)):
                right = taps.gather(columns, slice(0, taps.positions))
                elements = (rows.start * taps.count + columns.start, taps.count)
                how.product(left, right.T, flat[rows, columns], elements)


def _columns_into(
    factors: np.ndarray, taps: _Taps, out: np.ndarray, rows: slice, how: Arithmetic, bias: np.ndarray | None
) -> None:
    """out[n, rows, p] = factors @ (what the taps read at position p of image n), tile by tile of positions."""
    images, channels = out.shape[:2]
    addend = None if bias is None else bias[rows, None]
    positions = prod(out.shape[2:])
    at_once = _whole_panels(max(1, _TILE_BYTES // max(1, taps.count * out.itemsize)))
    together = max(1, min(images, at_once // max(1, positions)))
    if how.rounding is Rounding.STOCHASTIC or positions >= at_once:
        together = 1  # within one image the numbers of elements are affine in row and column
    every_tap = slice(0, taps.count)
    for group in _ranges(0, images, together):
        count = group.stop - group.start
        for columns in _ranges(group.start * positions, group.stop * positions, at_once):
            right = taps.gather(every_tap, columns)
            result = np.empty((len(factors), right.shape[1]), dtype=out.dtype)
            first = columns.start - group.start * positions
            elements = ((group.start * channels + rows.start) * positions + first, positions)
            how.product(factors, right, result, elements, addend)
            if count == 1:
                place = out[group.start, rows].reshape(len(factors), positions)
                place[:, first : first + right.shape[1]] = result
            else:
                out[group, rows] = result.reshape(len(factors), count, *out.shape[2:]).swapaxes(0, 1)


class _Taps:
    """The matrix of taps by positions of one group, gathered piece by piece into one buffer."""

    def __init__(self, source: np.ndarray, kernel: tuple[int, ...], grid: tuple[int, ...], axes: np.ndarray) -> None:
        if any(stride < 0 or stride % source.itemsize for stride in source.strides):
            source = np.ascontiguousarray(source)
        self.count = source.shape[1] * prod(kernel)
        self.positions = source.shape[0] * prod(grid)
        self.kernel, self.grid, self.axes = np.array(kernel), np.array(grid), axes
        self.sizes = np.array(source.shape[2:])
        self.strides = np.array(source.strides) // source.itemsize
        self.line = _as_line(source)
        self.buffer = np.empty(0, dtype=source.dtype)

    def gather(self, taps: slice, positions: slice) -> np.ndarray:
        """A (taps, positions) piece; it lasts until the next one is gathered."""
        from fpsim._kernels.patches import gather_taps

        rows, columns = taps.stop - taps.start, positions.stop - positions.start
        if self.buffer.size < rows * columns:
            self.buffer = np.empty(rows * columns, dtype=self.buffer.dtype)
        piece = self.buffer[: rows * columns].reshape(rows, columns)
        if piece.size:
            where = (self.line, self.strides, self.sizes)
            gather_taps(*where, piece, taps.start, positions.start, self.grid, self.kernel, self.axes)
        return piece


def _as_line(source: np.ndarray) -> np.ndarray:
    """All of the memory of an array with positive strides as one line of elements, from element (0, ..., 0) on."""
    if source.size == 0:
        return np.empty(0, dtype=source.dtype)
    reach = sum((size - 1) * stride for size, stride in zip(source.shape, source.strides, strict=True))
    count = reach // source.itemsize + 1
    return np.lib.stride_tricks.as_strided(source, (count,), (source.itemsize,), writeable=False)


def _ranges(start: int, stop: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def _whole_panels(columns: int) -> int:
    return columns // _COLUMNS * _COLUMNS or columns
