"""Batch and layer normalization and their gradients, float64 inside, sums over ascending indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim._kernels.compiler import kernel


@kernel
def batch_statistics(x: Any, mean: Any, variance: Any) -> None:
    """Mean and biased variance of each channel of (n, c, s), in two passes."""
    batch, channels, size = x.shape
    count = batch * size
    for c in range(channels):
        total = 0.0
        for n in range(batch):
            for s in range(size):
                total += np.float64(x[n, c, s])
        middle = total / count
        squares = 0.0
        for n in range(batch):
            for s in range(size):
                difference = np.float64(x[n, c, s]) - middle
                squares += difference * difference
        mean[c] = middle
        variance[c] = squares / count


@kernel
def batch_apply(x: Any, mean: Any, inverse: Any, weight: Any, bias: Any, out: Any) -> None:
    """((x - mean) * inverse) * weight + bias per channel of (n, c, s)."""
    batch, channels, size = x.shape
    for n in range(batch):
        for c in range(channels):
            m, v, w, b = mean[c], inverse[c], weight[c], bias[c]
            for s in range(size):
                out[n, c, s] = ((np.float64(x[n, c, s]) - m) * v) * w + b


@kernel
def batch_gradient(
    g: Any, x: Any, mean: Any, inverse: Any, weight: Any, training: bool, gx: Any, gw: Any, gb: Any
) -> None:
    """Gradients of input, weight and bias of a batch norm; in training the statistics depend on the input."""
    batch, channels, size = x.shape
    count = batch * size
    for c in range(channels):
        m, v, w = mean[c], inverse[c], weight[c]
        total = 0.0
        product = 0.0
        for n in range(batch):
            for s in range(size):
                gradient = np.float64(g[n, c, s])
                total += gradient
                product += gradient * (np.float64(x[n, c, s]) - m)
        gw[c] = product * v
        gb[c] = total
        average = total / count if training else 0.0
        slope = product * v * v / count if training else 0.0
        scale = v * w
        for n in range(batch):
            for s in range(size):
                gx[n, c, s] = ((np.float64(g[n, c, s]) - average) - (np.float64(x[n, c, s]) - m) * slope) * scale


@kernel
def layer_forward(x: Any, weight: Any, bias: Any, epsilon: float, out: Any, mean: Any, inverse: Any) -> None:
    """((x - mean) * inverse) * weight + bias over the rows of (rows, n)."""
    rows, n = x.shape
    for i in range(rows):
        total = 0.0
        for k in range(n):
            total += np.float64(x[i, k])
        middle = total / n
        squares = 0.0
        for k in range(n):
            difference = np.float64(x[i, k]) - middle
            squares += difference * difference
        v = 1.0 / np.sqrt(squares / n + epsilon)
        mean[i] = middle
        inverse[i] = v
        for k in range(n):
            out[i, k] = ((np.float64(x[i, k]) - middle) * v) * weight[k] + bias[k]


@kernel
def layer_gradient(g: Any, x: Any, mean: Any, inverse: Any, weight: Any, gx: Any, gw: Any, gb: Any) -> None:
    """Gradients of input, weight and bias of a layer norm; gw and gb start from zeros and sum over ascending rows."""
    rows, n = x.shape
    for i in range(rows):
        m, v = mean[i], inverse[i]
        total = 0.0
        product = 0.0
        for k in range(n):
            gradient = np.float64(g[i, k])
            normal = (np.float64(x[i, k]) - m) * v
            gw[k] += gradient * normal
            gb[k] += gradient
            total += gradient * weight[k]
            product += gradient * weight[k] * normal
        for k in range(n):
            normal = (np.float64(x[i, k]) - m) * v
            gx[i, k] = (np.float64(g[i, k]) * weight[k] - total / n - normal * product / n) * v
