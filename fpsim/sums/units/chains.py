"""Units that add one product at a time: chains of fused multiply-adds, with and without subnormals."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.accumulation.instructions import FLUSHED, Formats, Instruction, formats_of_both
from fpsim.backend import numba as kernels, threads
from fpsim.numbers.formats import FP32, Format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.orientation import has_few_columns
from fpsim.sums.plan import plan
from fpsim.sums.schemes import constants
from fpsim.sums.task import Draws, Sum
from fpsim.sums.trees import product
from fpsim.sums.units.packing import TILE, Packed, padded

_NEAREST = Rounding.NEAREST_EVEN
_SCALE = 24  # binades that lift every float32 whose rounding matters out of the subnormal range


def chain(
    a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, target: Format, start: np.ndarray
) -> np.ndarray:
    """One fused multiply-add a term, the later of each pair first where the instruction says so."""
    if row.swapped:
        a, b = padded(a, b, 2)
        order = np.arange(a.shape[1]) ^ 1
        a, b = a[:, order], b[order]
    if not row.flush and not start.view(np.int64).any():  # from +0: what the product kernels have fast paths for
        operand = max(formats_of_both(fmt), key=lambda held: held.precision)
        return product(plan(Sum.of(operand, _fused(target), _NEAREST), a.shape[1]), a, b, Draws())
    return chain_product(a, b, FLUSHED if row.flush else target, start, row.flush)


@lru_cache(maxsize=8)
def _fused(target: Format) -> Accumulator:
    return Accumulator(format=target, products="fma")


def chain_product(a: np.ndarray, b: np.ndarray, target: Format, start: np.ndarray, flush: bool) -> np.ndarray:
    """start + a @ b as a chain of fused multiply-adds to nearest even in `target`, in ascending k.

    `flush`: subnormal operands and addends count as zeros of their sign. Any operands, NaN and infinities included.
    """
    if has_few_columns(a, b):
        return chain_product(b.T, a.T, target, start.T, flush).T
    if flush:
        a, b, start = (without_subnormals(x) for x in (a, b, start))
    scaled = target == FLUSHED and _stays_below(a, b, start)
    element = "f4" if scaled else "f8"
    lift = 2.0**_SCALE if scaled else 1.0
    with np.errstate(invalid="ignore"):
        packed = Packed(a * a.dtype.type(lift), b, element)
        out = packed.started(start * lift)
    function = kernels.chains.make_chain(element, *TILE)
    row = constants(target, _NEAREST, "f8")
    least = out.dtype.type(FP32.min_normal * lift)

    def task(first: int, last: int) -> None:
        function(
            packed.a, packed.b, out.reshape(-1), packed.leaves, packed.panels, first, last, out.shape[1], row, least
        )  # fmt: skip

    threads.run(task, packed.parts())
    return out[: packed.rows, : packed.columns] / out.dtype.type(lift)  # exact: what is left is at least 2^-126


def without_subnormals(x: np.ndarray) -> np.ndarray:
    """x with magnitudes below fp32's least normal number as zeros of their sign."""
    return np.where(np.abs(x) < FP32.min_normal, np.copysign(x.dtype.type(0), x), x)


def _stays_below(a: np.ndarray, b: np.ndarray, start: np.ndarray) -> bool:
    """Whether no partial sum, nor an operand, leaves float32's range after the lift; False for what is not finite."""
    largest: list[Any] = [np.abs(x).max(initial=0.0) for x in (a, b, start)]
    left, right, first = (float(value) for value in largest)
    bound = 2.0 * (first + a.shape[1] * left * right)
    return bound < 2.0 ** (127 - _SCALE) and left < 2.0 ** (127 - _SCALE)
