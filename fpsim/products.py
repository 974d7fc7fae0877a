"""Matrix products and dot products with any accumulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim._product_plans import require_arithmetic
from fpsim._product_runs import Draws, add_rounded, compensated_product, exact_product, promoted_product, tree_product
from fpsim.accumulation.accumulator import Accumulator
from fpsim.formats import FP64, Format
from fpsim.rounding import Rounding, round_into

_FINAL = 0x9E3779B97F4A7C15  # the last rounding's draws are independent of the steps'


def matmul_into(
    a: np.ndarray,
    b: np.ndarray,
    out: np.ndarray,
    fmt: Format,
    accumulator: Accumulator,
    rounding: Rounding,
    key: int = 0,
    addend: np.ndarray | None = None,
    counters: Any = None,
    bias: np.ndarray | None = None,
) -> None:
    """out = a @ b, rounded to `fmt`: 2-D float32 or float64 arrays of values of `fmt`, any strides. Nothing is checked.

    `addend` (of out's shape) and `bias` (one for each column) are added to the accumulator after the sum, in its format,
    in that order; the result is then rounded to `fmt`.
    """
    draws = Draws(key, 0, out.shape[1], 1)
    require_arithmetic(fmt, rounding, "fmt")
    if accumulator.kind == "exact":
        terms = [np.broadcast_to(np.asarray(term), out.shape) for term in (addend, bias) if term is not None]
        out[...] = exact_product(a, b, fmt, fmt, rounding, terms, draws)
        return
    result, held = _accumulate(a, b, fmt, accumulator, rounding, draws)
    node = 2**30
    for term in (addend, bias):
        if term is not None:
            full = np.broadcast_to(np.asarray(term, dtype=np.float64), out.shape)
            rounded = np.empty(out.shape)
            round_into(np.ascontiguousarray(full), rounded, held, rounding, key ^ (_FINAL >> 1))
            result = add_rounded(result, rounded, held, rounding, draws, node)
            node += 1
    if held != fmt:
        rounded = np.empty(result.shape, result.dtype)
        round_into(result, rounded, fmt, rounding, key ^ _FINAL)
        result = rounded
    out[...] = result


def _accumulate(
    a: np.ndarray, b: np.ndarray, fmt: Format, accumulator: Accumulator, rounding: Rounding, draws: Draws
) -> tuple[np.ndarray, Format]:
    """The accumulated products, and the format whose values they are."""
    target = accumulator.format
    require_arithmetic(target, rounding, "accumulate")
    if accumulator.kind in ("kahan", "neumaier"):
        return compensated_product(a, b, fmt, target, rounding, accumulator.kind, draws), target
    if accumulator.kind == "native":
        return _native(a, b, rounding), FP64
    exact = accumulator.products != "rounded"
    if accumulator.promoted is not None:
        wide = accumulator.promoted
        require_arithmetic(wide, rounding, "accumulate")
        size = accumulator.order.parameters[0]
        return promoted_product(a, b, fmt, target, wide, rounding, size, exact, draws), wide
    return tree_product(a, b, fmt, target, rounding, accumulator.order(a.shape[1]), exact, draws), target


def _native(a: np.ndarray, b: np.ndarray, rounding: Rounding) -> np.ndarray:
    """NumPy's own product in float32 (float64 operands: float64), whatever its order."""
    if rounding is not Rounding.NEAREST_EVEN:
        raise ValueError(f'accumulate="native" computes in nearest-even only, not {rounding}')
    with np.errstate(all="ignore"):
        return np.matmul(a, b)
