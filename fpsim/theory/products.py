"""A-priori bounds of products whose operands are known."""

from __future__ import annotations

from typing import Any

import numpy as np

from fpsim.accumulation.accumulator import get_accumulator
from fpsim.numbers.formats import get_format
from fpsim.numbers.modes import get_rounding
from fpsim.numbers.operands import operand
from fpsim.theory.accumulations import accumulation_bound
from fpsim.theory.powers import inflated, magnitudes
from fpsim.theory.probabilistic import probabilistic_bound
from fpsim.theory.roundings import rounding_bound


def matmul(
    a: Any, b: Any, *, fmt: Any, accumulate: Any = None, rounding: Any = "nearest-even", confidence: float | None = None
) -> Any:
    """A bound of |fpsim.matmul(a, b, ...) - a @ b| for each element, from |a| @ |b| alone: a float64 array.

    Parameters
    ----------
    a, b : (m, k) or (k,), and (k, n) or (k,): matrices and vectors of values of `fmt`; two vectors give a dot product's bound.
    fmt, accumulate, rounding : as for `fpsim.matmul`.
    confidence : the probability with which each element keeps its bound (see `probabilistic_bound`); left out, always.

    The accumulation's bound and that of the last rounding. inf where |a| @ |b| is so large that something might overflow.
    Raises ValueError for what `fpsim.matmul` and `accumulation_bound` refuse.
    """
    target, accumulator, mode = get_format(fmt), get_accumulator(accumulate), get_rounding(rounding)
    (left, _), (right, _) = operand(a, target, "a"), operand(b, target, "b")
    if left.ndim not in (1, 2) or right.ndim not in (1, 2) or left.shape[-1] != right.shape[0]:
        raise ValueError(f"a and b must be (m, k) or (k,), and (k, n) or (k,), got {left.shape} and {right.shape}")
    terms = left.shape[-1]
    largest = max(float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x in (left, right))
    bound = accumulation_bound(target, accumulator, terms, mode, operand_largest=largest)
    if bound.zero_below and any(np.any((x != 0) & (np.abs(x) < bound.zero_below)) for x in (left, right)):
        raise ValueError(f"operands below {bound.zero_below!r} count as zeros; set them to zero first")
    if confidence is not None:
        bound = probabilistic_bound(target, accumulator, terms, mode, confidence=confidence)
    sizes = magnitudes(left.reshape(-1, terms), right.reshape(terms, -1))
    error = np.asarray(bound.error(sizes))
    accumulated = inflated(sizes + error, 2)
    store = rounding_bound(target, mode, held=bound.format)
    total = inflated(error + np.asarray(store.error(accumulated)), 2)
    return total.reshape((*left.shape[:-1], *right.shape[1:]))[()]
