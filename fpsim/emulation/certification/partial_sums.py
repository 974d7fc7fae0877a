"""Tighter than a bound by magnitudes alone: what the roundings of a tree may add, from the partial sums of these very data.

With exact partial sums s and bounds e on their errors, an addition of two parts gives

    s = s1 + s2,    e = e1 + e2 + v (|s| + e1 + e2) + a        (v, a: one rounding of the accumulator's format)

and where both parts are multiples of the format's smallest number a is 0 (the sum is exact below 2^emin). Where an operand
is +0 nothing is rounded. `squares` adds the squares of what each rounding may do: for bounds that hold with a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fpsim.accumulation.accumulator import Accumulator
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.theory.roundings import holds_products, rounding_bound

_EPSILON = 2.0**-52


@dataclass(frozen=True)
class Part:
    """A partial sum for each element of a result: exact value (to float64), bounds on its error, whether it is exactly 0."""

    total: np.ndarray
    error: np.ndarray
    squares: np.ndarray
    size: np.ndarray
    zero: np.ndarray


class _Leaves(Sequence[Part]):
    """Products of column k of a and row k of b, made when asked for."""

    def __init__(self, a: np.ndarray, b: np.ndarray, relative: float, absolute: float):
        self.a, self.b, self.relative, self.absolute = a, b, relative, absolute

    def __len__(self) -> int:
        return self.a.shape[1]

    def __getitem__(self, k: int) -> Part:  # type: ignore[override]
        product = self.a[:, k, None] * self.b[k]
        size, zero = np.abs(product), product == 0
        error = np.where(zero, 0.0, self.relative * size + self.absolute)
        return Part(product, error, error * error, size, zero)


def tree_errors(
    a: np.ndarray, b: np.ndarray, fmt: Format, accumulator: Accumulator, rounding: Rounding, addend: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds for a @ b + addend accumulated: of the error before the last rounding, and of the sum of squares of roundings.

    a (m, k), b (k, n) and addend (m, n) are float64 arrays of values of `fmt`, whose products float64 holds for p <= 26.
    """
    held = accumulator.format
    bound = rounding_bound(held, rounding)
    exact_leaves = accumulator.products != "rounded" or holds_products(held, fmt)
    leaves = _Leaves(a, b, *((0.0, 0.0) if exact_leaves else (bound.relative, bound.absolute)))
    values = accumulator.products == "rounded" or holds_products(held, fmt)
    slack = 64 * _EPSILON * max(a.shape[1], 1)

    def add(*parts: Part | None) -> Part | None:
        kept = [part for part in parts if part is not None]
        if not kept or (len(kept) == 1 and values):
            return kept[0] if kept else None
        total, error, squares, size = (
            sum(getattr(part, name) for part in kept) for name in ("total", "error", "squares", "size")
        )
        zeros = np.sum([part.zero for part in kept], axis=0)
        rounding_error = bound.relative * (np.abs(total) + slack * size + error) + bound.absolute
        rounding_error = np.where(zeros >= len(kept) - values, 0.0, rounding_error)  # one value and zeros: nothing to round
        return Part(total, error + rounding_error, squares + rounding_error * rounding_error, size, zeros == len(kept))

    total = accumulator(a.shape[1]).evaluate(leaves, add, zero=None)
    if addend is not None:
        size = np.abs(addend)
        extra = rounding_bound(held, rounding, held=fmt)
        error = np.where(addend == 0, 0.0, extra.relative * size + extra.absolute)
        total, values = add(total, Part(addend, error, error * error, size, addend == 0)), True
    if total is None:
        return np.zeros((a.shape[0], b.shape[1])), np.zeros((a.shape[0], b.shape[1]))
    growth = 1 + (8 * a.shape[1] + 64) * _EPSILON
    return total.error * growth, total.squares * growth**2
