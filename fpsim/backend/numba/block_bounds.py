"""What bounds a product's leaves and sums over a few terms at a time, from float32 operands as products pack them."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_add, int_and, int_sub, prefer_wide_vectors, uninitialized
from fpsim.backend.numba.rounding import NEAREST_EVEN

LANES = 16  # terms of a block
SLACK = 2.0**-12  # more than what the roundings of a block's sums, and of the bounds themselves, amount to

LEAST = np.float32(2.0**-149)

_SIGN, _INFINITY, _FRACTION = np.int32(-(2**31)), np.int32(0x7F800000), np.int32(0x7FFFFF)
_TINY = np.float32(2.0**-137)  # more than what a block's products and sums lose below the smallest number
_TINY_SQUARES = np.float32(2.0**-144)  # the same of squares


def swamped_share(mode: int) -> np.float32:
    """No sum swamps more than this share of the power of two below it, or LEAST.

    It is half an ulp, or one where rounding is directed.
    """
    return np.float32(2.0 ** (-24 if mode == NEAREST_EVEN else -23))


@inlined
def _magnitude(x: Any) -> Any:
    """A magnitude's bits; of zero, infinity's."""
    bits = as_bits(x)
    magnitude = int_sub(bits, int_and(bits, _SIGN))
    return magnitude if magnitude != 0 else _INFINITY


@kernel(fastmath={"reassoc", "contract"})
def extents_of_panels(
    packed: Any, panel_stride: int, leaf_stride: int, width: int, blocks: Any, least: Any, by_place: Any, norms: Any
) -> Any:
    """Of an operand packed in panels or groups of `width` columns or rows: the smallest nonzero magnitude in each term
    (infinity if there is none), (panel, block, term) and (panel, term, block), and the largest Euclidean norm that one column
    or row has in each block, (panel, block). A block is (first term, number of terms, stride); infinity fills it up.

    Returns a sum of all squares, which is finite only if all numbers are.
    """
    prefer_wide_vectors()
    squares = uninitialized(width, np.float32)
    total = np.float32(0)
    for panel in range(norms.shape[0]):
        for block in range(blocks.shape[0]):
            squares[:] = 0
            minima = least[panel, block]
            minima[:] = np.inf
            for k in range(blocks[block, 1]):
                start = panel * panel_stride + (blocks[block, 0] + k * blocks[block, 2]) * leaf_stride
                numbers = packed[start : start + width]
                smallest = _INFINITY
                for i in range(width):
                    squares[i] += numbers[i] * numbers[i]
                    smallest = min(smallest, _magnitude(numbers[i]))
                minima[k] = as_float(smallest)
            norms[panel, block] = np.sqrt(squares.max() + _TINY_SQUARES)
            total += squares.sum()
            for k in range(LANES):
                by_place[panel, k, block] = minima[k]
    return total


@kernel(fastmath={"reassoc", "contract"})
def extents_of_fours(packed: Any, leaves: int, blocks: Any, least: Any, by_place: Any, norms: Any) -> Any:
    """`extents_of_panels` of rows in groups of four, by vectors along the terms: for blocks of stride 1."""
    prefer_wide_vectors()
    total = np.float32(0)
    for group in range(norms.shape[0]):
        for block in range(blocks.shape[0]):
            count = blocks[block, 1]
            start = (group * leaves + blocks[block, 0]) * 4
            line = packed[start : start + count * 4]
            minima = least[group, block]
            minima[:] = np.inf
            one = two = three = four = np.float32(0)
            for k in range(count):
                x, y, z, w = line[4 * k], line[4 * k + 1], line[4 * k + 2], line[4 * k + 3]
                one += x * x
                two += y * y
                three += z * z
                four += w * w
                minima[k] = as_float(min(min(_magnitude(x), _magnitude(y)), min(_magnitude(z), _magnitude(w))))
            norms[group, block] = np.sqrt(max(max(one, two), max(three, four)) + _TINY_SQUARES)
            total += (one + two) + (three + four)
            for k in range(LANES):
                by_place[group, k, block] = minima[k]
    return total


@kernel
def bounds_of_product(
    left: Any, groups: int, rows: int, right: Any, panels: int, panel_stride: int, leaf_stride: int, width: int, leaves: int,
    blocks: Any, share: float,
) -> Any:  # fmt: skip
    """Of operands packed in groups of `rows` and panels of `width`: what `extents_of_panels` calls least, flat, of both, what
    `bounds_of_tiles` finds, in how many blocks of tiles a sum as large as what they add may be swamped, and whether both
    operands are finite, and so small that sums of their squares are.
    """
    count, is_dense = blocks.shape[0], rows == 4
    for block in range(count):
        is_dense &= blocks[block, 2] == 1
    least_a, places_a = np.empty((groups, count, LANES), np.float32), np.empty((groups, LANES, count), np.float32)
    least_b, places_b = np.empty((panels, count, LANES), np.float32), np.empty((panels, LANES, count), np.float32)
    norms_a, norms_b = np.empty((groups, count), np.float32), np.empty((panels, count), np.float32)
    ceilings, growths = np.empty((panels, groups, count), np.float32), np.empty((panels, groups, count), np.float32)
    if is_dense:
        total = extents_of_fours(left, leaves, blocks, least_a, places_a, norms_a)
    else:
        total = extents_of_panels(left, rows * leaves, rows, rows, blocks, least_a, places_a, norms_a)
    other = extents_of_panels(right, panel_stride, leaf_stride, width, blocks, least_b, places_b, norms_b)
    bounds_of_tiles(places_a, places_b, norms_a, norms_b, share, ceilings, growths)
    low, high = ceilings.reshape(-1), growths.reshape(-1)
    doubtful = 0
    for place in range(low.size):
        doubtful += low[place] < high[place]
    return least_a.reshape(-1), least_b.reshape(-1), ceilings, growths, doubtful, total < np.inf and other < np.inf


@kernel
def bounds_of_tiles(
    small_a: Any, small_b: Any, norms_a: Any, norms_b: Any, share: float, ceilings: Any, growths: Any
) -> None:
    """For each block of a tile's terms, (panel, group, block): the magnitude up to which no sum before it lets one be swamped
    in it, and by how much a sum's magnitude may grow (Cauchy and Schwarz).

    Given are arrays (group or panel, term, block) of smallest magnitudes and (group or panel, block) of norms.
    """
    prefer_wide_vectors()
    none, scale = np.int32(0), np.float32((1 - SLACK) / share)
    less, more = np.float32(1 - SLACK), np.float32(1 + SLACK)
    for panel in range(small_b.shape[0]):
        other, others = small_b[panel], norms_b[panel]
        for group in range(small_a.shape[0]):
            line, norms = small_a[group], norms_a[group]
            ceiling, growth = ceilings[panel, group], growths[panel, group]
            for block in range(norms.size):
                best = line[0, block] * other[0, block]
                for k in range(1, LANES):
                    product = line[k, block] * other[k, block]
                    best = product if product < best else best
                grows = norms[block] * others[block] * more + _TINY
                growth[block] = grows
                # What a sum swamps grows at powers of two alone: the next one after this leaf is the first that may swamp it.
                bits = int_and(int_add(max(as_bits((best - LEAST) * scale), none), _FRACTION), _INFINITY)
                ceiling[block] = as_float(bits) * less - grows if grows < np.inf else np.float32(-1)
