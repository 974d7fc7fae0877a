"""Products of many pairs of small matrices: all their sums lane by lane, so that no pair is a job of its own."""

from __future__ import annotations

import numpy as np

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.sums import grouped
from fpsim.sums.geometry import Geometry
from fpsim.sums.joined import Products

_SMALL = 4096  # numbers of the factors of a pair: with more, laying them out was seen to cost more than a product of its own


def together(products: Products, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the products of (n, i, k) and (n, k, j) are quicker in one call than pair by pair."""
    pairs, rows, leaves = a.shape
    columns = b.shape[2]
    return leaves * (rows + columns) <= _SMALL and products.joined(pairs, rows, leaves, columns)


def pairs_into(products: Products, a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    """out[n] = a[n] @ b[n] for every pair, bit for bit as `product_into`; elements are numbered in out's row-major order.

    A pair is a group of a convolution with one tap. float32 or float64 arrays of values of the formats, `out` contiguous;
    operands are not checked.
    """
    refuse_flush_to_zero()
    products.task.require_arithmetic()
    (pairs, rows, leaves), columns = a.shape, b.shape[2]
    geometry = Geometry.of((1, pairs * leaves, columns), (pairs * rows, leaves, 1), groups=pairs)
    left, right = a.reshape(geometry.weight_shape), b.reshape(geometry.input_shape)
    grouped.forward_into(right, left, out.reshape(geometry.output_shape), geometry, products, None)
