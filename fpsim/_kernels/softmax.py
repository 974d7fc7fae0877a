"""softmax, log_softmax and their gradients over the middle axis of (outer, n, inner) arrays, float64 inside.

Sums run over ascending indices; nothing comes from a vector math library.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim._kernels.compiler import kernel
from fpsim._kernels.transcendental import exp64, log64


@kernel
def softmax(x: Any, logarithm: bool, out: Any) -> None:
    """exp(x - max) / sum, or x - max - log(sum), unrounded in float64. A row of -inf gives NaN, as torch has it."""
    outer, n, inner = x.shape
    for i in range(outer):
        for j in range(inner):
            largest = -np.inf
            for k in range(n):
                value = np.float64(x[i, k, j])
                if value > largest or value != value:
                    largest = value
            total = 0.0
            for k in range(n):
                term = exp64(np.float64(x[i, k, j]) - largest)
                total += term
                out[i, k, j] = term
            if logarithm:
                shift = log64(total)
                for k in range(n):
                    out[i, k, j] = (np.float64(x[i, k, j]) - largest) - shift
            else:
                for k in range(n):
                    out[i, k, j] /= total


@kernel
def softmax_gradient(gradient: Any, output: Any, logarithm: bool, out: Any) -> None:
    """y (g - sum(g y)) for softmax, g - exp(y) sum(g) for log_softmax."""
    outer, n, inner = output.shape
    for i in range(outer):
        for j in range(inner):
            total = 0.0
            for k in range(n):
                g = np.float64(gradient[i, k, j])
                total += g if logarithm else g * np.float64(output[i, k, j])
            for k in range(n):
                g, y = np.float64(gradient[i, k, j]), np.float64(output[i, k, j])
                out[i, k, j] = g - exp64(y) * total if logarithm else y * (g - total)


@kernel
def chain(x: Any, out: Any) -> None:
    """Sums of the rows of (rows, n) over ascending indices, in float64 from +0."""
    for i in range(x.shape[0]):
        total = 0.0
        for k in range(x.shape[1]):
            total += np.float64(x[i, k])
        out[i] = total


@kernel
def chain_of_squares(x: Any, out: Any) -> None:
    """Sums of the squares of the rows of (rows, n) over ascending indices, in float64 from +0."""
    for i in range(x.shape[0]):
        total = 0.0
        for k in range(x.shape[1]):
            total += np.float64(x[i, k]) * np.float64(x[i, k])
        out[i] = total


@kernel
def log_of_sum(x: Any, out: Any) -> None:
    """max + log(sum(exp(x - max))) of the rows of (rows, n); max itself where it is infinite, -inf for n = 0."""
    for i in range(x.shape[0]):
        largest = -np.inf
        for k in range(x.shape[1]):
            value = np.float64(x[i, k])
            if value > largest or value != value:
                largest = value
        total = 0.0
        for k in range(x.shape[1]):
            total += exp64(np.float64(x[i, k]) - largest)
        out[i] = largest if abs(largest) == np.inf else largest + log64(total)
