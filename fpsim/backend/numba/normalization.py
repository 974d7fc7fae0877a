"""Batch and layer normalization and their gradients, float64 inside, sums in the order of `sums64.total`.

What belongs to a channel or a row is computed for ranges of them, so that threads can share the work.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.intrinsics import uninitialized
from fpsim.backend.numba.sums64 import total

# Batch normalization: x is (images, channels, size); sums run over each image's plane, then over the images.


@kernel
def batch_statistics(x: Any, mean: Any, variance: Any, first: int, last: int) -> None:
    """Mean and biased variance of the channels first ... last - 1, in two passes."""
    images, _, size = x.shape
    count = images * size
    terms = uninitialized(size, np.float64)
    for c in range(first, last):
        summed = 0.0
        for n in range(images):
            plane = x[n, c]
            for s in range(plane.size):
                terms[s] = plane[s]
            summed += total(terms)
        middle = summed / count
        squares = 0.0
        for n in range(images):
            plane = x[n, c]
            for s in range(plane.size):
                difference = np.float64(plane[s]) - middle
                terms[s] = difference * difference
            squares += total(terms)
        mean[c] = middle
        variance[c] = squares / count


@kernel
def batch_apply(x: Any, first: int, mean: Any, inverse: Any, weight: Any, bias: Any, out: Any) -> None:
    """((x - mean) * inverse) * weight + bias for planes (planes, size) of which the first is number `first` of x's."""
    for i in range(x.shape[0]):
        c = (first + i) % mean.size
        m, v, w, b = mean[c], inverse[c], weight[c], bias[c]
        plane, target = x[i], out[i]
        for s in range(plane.size):
            target[s] = ((np.float64(plane[s]) - m) * v) * w + b


@kernel
def batch_gradient_sums(g: Any, x: Any, mean: Any, summed: Any, products: Any, first: int, last: int) -> None:
    """Sums of g and of g * (x - mean) over the channels first ... last - 1."""
    images, _, size = x.shape
    terms = uninitialized(size, np.float64)
    for c in range(first, last):
        m = mean[c]
        gradients = scaled = 0.0
        for n in range(images):
            plane, values = g[n, c], x[n, c]
            for s in range(plane.size):
                terms[s] = plane[s]
            gradients += total(terms)
            for s in range(plane.size):
                terms[s] = np.float64(plane[s]) * (np.float64(values[s]) - m)
            scaled += total(terms)
        summed[c] = gradients
        products[c] = scaled


@kernel
def batch_gradient(
    g: Any, x: Any, first: int, mean: Any, average: Any, slope: Any, scale: Any, out: Any
) -> None:
    """((g - average) - (x - mean) * slope) * scale for planes (planes, size), numbered as in `batch_apply`."""
    for i in range(x.shape[0]):
        c = (first + i) % mean.size
        m, a, t, w = mean[c], average[c], slope[c], scale[c]
        plane, values, target = g[i], x[i], out[i]
        for s in range(plane.size):
            target[s] = ((np.float64(plane[s]) - a) - (np.float64(values[s]) - m) * t) * w


# Layer normalization: rows of (rows, n).


@kernel
def layer_forward(x: Any, weight: Any, bias: Any, epsilon: float, out: Any, mean: Any, inverse: Any) -> None:
    """((x - mean) * inverse) * weight + bias."""
    rows, n = x.shape
    for i in range(rows):
        row, target = x[i], out[i]
        for k in range(row.size):
            target[k] = row[k]
        middle = total(target) / n
        for k in range(row.size):
            difference = np.float64(row[k]) - middle
            target[k] = difference * difference
        v = 1.0 / np.sqrt(total(target) / n + epsilon)
        mean[i] = middle
        inverse[i] = v
        for k in range(row.size):
            target[k] = ((np.float64(row[k]) - middle) * v) * weight[k] + bias[k]


@kernel
def layer_gradient(g: Any, x: Any, mean: Any, inverse: Any, weight: Any, out: Any) -> None:
    """The gradient of the input."""
    rows, n = x.shape
    for i in range(rows):
        gradient, row, target = g[i], x[i], out[i]
        m, v = mean[i], inverse[i]
        for k in range(row.size):
            target[k] = np.float64(gradient[k]) * weight[k]
        average = total(target) / n
        for k in range(row.size):
            target[k] = (np.float64(gradient[k]) * weight[k]) * ((np.float64(row[k]) - m) * v)
        slope = total(target) / n
        for k in range(row.size):
            normal = (np.float64(row[k]) - m) * v
            target[k] = ((np.float64(gradient[k]) * weight[k] - average) - normal * slope) * v


@kernel
def layer_gradient_sums(g: Any, x: Any, mean: Any, inverse: Any, gw: Any, gb: Any, first: int, last: int) -> None:
    """The gradients of weight and bias, from zeros over ascending rows, for the columns first ... last - 1."""
    for i in range(x.shape[0]):
        _add_row(g[i, first:last], x[i, first:last], mean[i], inverse[i], gw[first:last], gb[first:last])


@inlined
def _add_row(gradient: Any, row: Any, m: Any, v: Any, gw: Any, gb: Any) -> None:
    for k in range(row.size):
        value = np.float64(gradient[k])
        gw[k] += value * ((np.float64(row[k]) - m) * v)
        gb[k] += value
