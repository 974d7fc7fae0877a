"""Elementwise operations in one pass over memory: computed, counted, rounded and stored block by block."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.counting import BLOCK, count_block
from fpsim.backend.numba.intrinsics import as_bits, as_float, int_min, uninitialized
from fpsim.backend.numba.rounding import load, round_bits

#: What is computed of x, y, z and a factor f, every operation rounded in float32 (no fused multiply-add).
OPERATIONS = (
    "x + f y",
    "x + f",
    "x y",
    "x f",
    "x / y",
    "x / f",
    "x + (f y) z",
    "x + (f y) / z",
    "x + f (y - x)",
    "y - f (y - x)",
    "sqrt x",
)
(
    ADD_SCALED, ADD_FACTOR, MULTIPLY, SCALE, DIVIDE, DIVIDE_BY_FACTOR, ADD_PRODUCT, ADD_QUOTIENT, TOWARD, BACK_FROM,
    SQUARE_ROOT,
) = range(len(OPERATIONS))  # fmt: skip


@inlined
def _compute(operation: Any, x: Any, y: Any, z: Any, f: Any, out: Any) -> None:
    if operation == ADD_SCALED:
        for i in range(x.size):
            out[i] = x[i] + f * y[i]
    elif operation == ADD_FACTOR:
        for i in range(x.size):
            out[i] = x[i] + f
    elif operation == MULTIPLY:
        for i in range(x.size):
            out[i] = x[i] * y[i]
    elif operation == SCALE:
        for i in range(x.size):
            out[i] = x[i] * f
    elif operation == DIVIDE:
        for i in range(x.size):
            out[i] = x[i] / y[i]
    elif operation == DIVIDE_BY_FACTOR:
        for i in range(x.size):
            out[i] = x[i] / f
    elif operation == ADD_PRODUCT:
        for i in range(x.size):
            out[i] = x[i] + (f * y[i]) * z[i]
    elif operation == ADD_QUOTIENT:
        for i in range(x.size):
            out[i] = x[i] + (f * y[i]) / z[i]
    elif operation == TOWARD:
        for i in range(x.size):
            out[i] = x[i] + f * (y[i] - x[i])
    elif operation == BACK_FROM:
        for i in range(x.size):
            out[i] = y[i] - f * (y[i] - x[i])
    else:
        for i in range(x.size):
            out[i] = np.sqrt(x[i])


@lru_cache(maxsize=64)
def make_pass(mode: int, plain: bool) -> Any:
    """The kernel `(operation, x, y, z, f, out, constants, limits, row) -> None` over flat float32 arrays of one size.

    `out` may be any of x, y and z; those that the operation does not use may be any array of that size.
    """

    @kernel
    def one_pass(
        operation: int, x: Any, y: Any, z: Any, f: Any, out: Any, constants: Any, limits: Any, row: Any
    ) -> None:
        c = load(constants)
        buffer = uninitialized(int_min(BLOCK, x.size), np.float32)
        for start in range(0, x.size, BLOCK):
            stop = int_min(start + BLOCK, x.size)
            values = buffer[: stop - start]
            _compute(operation, x[start:stop], y[start:stop], z[start:stop], f, values)
            count_block(values, limits, row)
            target = out[start:stop]
            for i in range(values.size):
                target[i] = as_float(round_bits(as_bits(values[i]), c, mode, plain))

    return one_pass


@lru_cache(maxsize=64)
def make_tanh_gradient(mode: int, plain: bool) -> Any:
    """The kernel `(g, y, out, constants, limits, row) -> None`: g (1 - y y) in float64, then as `make_pass`."""

    @kernel
    def tanh_gradient(g: Any, y: Any, out: Any, constants: Any, limits: Any, row: Any) -> None:
        c = load(constants)
        buffer = uninitialized(int_min(BLOCK, g.size), np.float64)
        for start in range(0, g.size, BLOCK):
            stop = int_min(start + BLOCK, g.size)
            values, gradients, results = buffer[: stop - start], g[start:stop], y[start:stop]
            for i in range(values.size):  # a float32's square is exact in float64: whether it is fused makes no difference
                result = np.float64(results[i])
                values[i] = np.float64(gradients[i]) * (1.0 - result * result)
            count_block(values, limits, row)
            target = out[start:stop]
            for i in range(values.size):
                target[i] = as_float(round_bits(as_bits(values[i]), c, mode, plain))

    return tanh_gradient
