"""Units whose additions are made a step at a time over whole matrices: right, portable, and slower than kernels of their own.

Each function takes finite or other operands, the operand format, the instruction's row and the addend in float64, and returns
the sums in float64. NaN and infinities follow IEEE 754 at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from fpsim.accumulation.accumulator import get_accumulator
from fpsim.accumulation.instructions import FLUSHED, Formats, Instruction, formats_of_both
from fpsim.backend.numba.products import make_add
from fpsim.backend.numba.sums_rounding import OVERFLOW_NEGATIVE, OVERFLOW_POSITIVE
from fpsim.numbers.formats import FP32, Format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.exact import exact_product
from fpsim.sums.schemes import careful_scheme, constants
from fpsim.sums.task import Draws, Sum
from fpsim.sums.units.chains import chain_product, without_subnormals
from fpsim.sums.units.specials import decided

_NEAREST = Rounding.NEAREST_EVEN
_EXACT = get_accumulator("exact")
_FLUSHED_BEFORE = FP32.replace(name="fp32 without subnormals", flush="before")
_FLOOR, _SUM_FLOOR = 2.0**24, 2.0**32  # of an addend, and of a sum of products, below the largest power


def _add(x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding = _NEAREST) -> np.ndarray:
    """x + y, any float64 values, rounded once to the format; to odd, what overflows becomes infinity."""
    scheme = careful_scheme(target, rounding, True)
    row = constants(target, rounding, "f8")
    if rounding is Rounding.ODD:
        row = row.copy()
        row[OVERFLOW_POSITIVE], row[OVERFLOW_NEGATIVE] = np.inf, -np.inf
    size = -(-x.size // 8) * 8
    left, right = np.zeros(size), np.zeros(size)
    left[: x.size], right[: x.size] = x.reshape(-1), y.reshape(-1)
    hashes = np.zeros(size, np.uint32)
    make_add(rounding.code, scheme.flags)(left, right, row, hashes, 0)
    return left[: x.size].reshape(x.shape)


def _products(a: np.ndarray, b: np.ndarray, together: int) -> Iterator[list[np.ndarray]]:
    """The exact products of each `together` terms as float64 matrices; what is missing at the end is +0."""
    wide, other = a.astype(np.float64), b.astype(np.float64)
    nothing = np.zeros((a.shape[0], b.shape[1]))
    for first in range(0, a.shape[1], together):
        places = range(first, min(first + together, a.shape[1]))
        with np.errstate(invalid="ignore"):
            products = [np.multiply.outer(wide[:, k], other[k]) for k in places]
        yield products + [nothing] * (together - len(products))


def halves(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray) -> np.ndarray:
    """Chains over even and over odd k of each block, both from +0; their sum, then the addend's, each rounded."""
    target = FLUSHED if row.flush else FP32
    total = without_subnormals(start) if row.flush else start
    nothing = np.zeros(start.shape)
    for first in range(0, a.shape[1], row.block):
        block, other = a[:, first : first + row.block], b[first : first + row.block]
        even, odd = (chain_product(block[:, i::2], other[i::2], target, nothing, row.flush) for i in (0, 1))
        total = _add(total, _add(even, odd, target), target)
    return total


def odd_pairs(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray) -> np.ndarray:
    """Both products rounded, their sum rounded, then added and rounded, all to odd; flushed as judged before rounding."""
    target, nothing = _FLUSHED_BEFORE, np.zeros(start.shape)
    total = without_subnormals(start)
    for pair in _products(without_subnormals(a), without_subnormals(b), 2):
        left, right = (_add(product, nothing, target, Rounding.ODD) for product in pair)
        total = _add(total, _add(left, right, target, Rounding.ODD), target, Rounding.ODD)
    return total


def fused_pairs(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray) -> np.ndarray:
    """The exact sum of two products rounded once, then added and rounded, to nearest even with subnormals kept."""
    total = start
    for left, right in _products(a, b, 2):
        total = _add(total, _add(left, right, FP32), FP32)
    return total


def quads(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray) -> np.ndarray:
    """Products and sums rounded to fp32 and flushed, (p0 + p1) + (p2 + p3), then the addend; subnormal inputs count as +0."""
    a, b = (np.where(np.abs(x) < operand.min_normal, 0, x) for x, operand in zip((a, b), formats_of_both(fmt), strict=True))
    total = np.where(np.abs(start) < FP32.min_normal, 0, start)
    nothing = np.zeros(start.shape)
    for group in _products(a, b, row.block):
        p0, p1, p2, p3 = (_add(product, nothing, FLUSHED) for product in group)
        pairs = _add(_add(p0, p1, FLUSHED), _add(p2, p3, FLUSHED), FLUSHED)
        total = _add(total, pairs, FLUSHED)
    return total


def exact(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray) -> np.ndarray:
    """The exact sum of each block and the addend, rounded once."""
    left_format, right_format = formats_of_both(fmt)
    task, total = Sum.of(left_format, _EXACT, _NEAREST, FP32, right_format), start
    for first in range(0, a.shape[1], row.block):
        left, right = a[:, first : first + row.block], b[first : first + row.block]
        total = exact_product(task, left, right, [total], Draws())
    return total


def floored(a: np.ndarray, b: np.ndarray, fmt: Formats, row: Instruction, start: np.ndarray) -> np.ndarray:
    """Products truncated `fraction` bits below the largest, their sum and the addend floored below the larger of both.

    Every number here is an integer of at most 40 bits times a power of two, so that float64 is exact. A product of 2^128
    and above is infinite, but for a block with an infinite operand or addend, which decides.
    """
    operands = zip((a, b), formats_of_both(fmt), strict=True)
    left, right = (powers(np.asarray(x, np.float64), operand.emin) for x, operand in operands)
    halves = row.model == "floored halves"
    total = start
    groups = zip(_products(a, b, row.block), _products(left, right, row.block), strict=True)
    with np.errstate(invalid="ignore", over="ignore"):
        for products, tops in groups:
            special = sum(products, total)  # float64 holds every finite product, and their sum: no overflow here
            if halves:
                even, odd = (_truncated_sum(products[i::2], tops[i::2], row.fraction) for i in (0, 1))
                top = np.maximum(even[1], odd[1])
                dot = sum(_floored(value, top, 2.0**row.fraction) for value, _ in (even, odd))
            else:
                dot, top = _truncated_sum(products, tops, row.fraction)
            total = decided(special, partial(_with_addend, np.asarray(dot), top, drops=halves), total)
    return total


def powers(x: np.ndarray, emin: int) -> np.ndarray:
    """2^exponent of each element, not below 2^emin; 0 for zero; 1 for what is not finite."""
    with np.errstate(invalid="ignore"):
        exponents = np.maximum(np.frexp(np.where(np.isfinite(x), x, 1))[1] - 1, emin)
    return np.where(x == 0, 0.0, np.ldexp(1.0, exponents))


def _truncated_sum(products: list[np.ndarray], tops: list[np.ndarray], fraction: int) -> tuple[np.ndarray, np.ndarray]:
    """The exact sum of products truncated below their largest power, and that power (tiny where all are zero)."""
    top = np.maximum(np.max(tops, axis=0), 2.0**-600)
    total = np.zeros(top.shape)
    for product in products:
        product = np.where(np.abs(product) < 2.0**128, product, product * np.inf)
        total += np.trunc(product * (2.0**fraction / top))
    return total * (top * 2.0**-fraction), top


def _floored(x: np.ndarray, top: np.ndarray, bits: float) -> np.ndarray:
    """x floored to a multiple of top / bits."""
    return np.floor(x * (bits / top)) * (top / bits)


def _with_addend(dot: np.ndarray, top: np.ndarray, addend: np.ndarray, drops: bool) -> np.ndarray:
    """The sum of products and the addend, rounded to fp32."""
    addend_power = np.maximum(powers(addend, FP32.emin), FP32.min_normal)
    both = np.maximum(top, addend_power)
    low = _floored(addend, both, _FLOOR)
    if drops:
        low = np.where(addend_power < both / (2 * _FLOOR), 0, low)
    total = _floored(dot, both, _SUM_FLOOR) + low
    total = _floored(total, np.maximum(powers(total, FP32.emin), FP32.min_normal), _SUM_FLOOR / 2)
    round_into(total, total, FP32, _NEAREST)
    return total


MODELS: dict[str, Callable[[np.ndarray, np.ndarray, Formats, Instruction, np.ndarray], np.ndarray]] = {
    "halves": halves,
    "odd pairs": odd_pairs,
    "fused pairs": fused_pairs,
    "quads": quads,
    "exact": exact,
    "floored": floored,
    "floored halves": floored,
}
