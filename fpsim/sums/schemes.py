"""Which kernel computes a sum of products: the carrier, the kernel's flags and its constants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fpsim.backend.numba import sums_rounding as names
from fpsim.backend.numba.directions import HAS_DIRECTIONS
from fpsim.backend.numba.processor import HAS_FMA
from fpsim.backend.numba.sums_rounding import BY_BITS, CAREFUL, CLAMP, EXACT_PRODUCTS, EXACT_SUMS, FORMAT_IS_CARRIER, OVERFLOWS
from fpsim.numbers.computing import (
    float32_adds,
    float32_multiplies,
    is_float32,
    is_float64,
    is_full,
    products_are_exact,
    quantum_exponent,
)
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding

_PRECISION = {"f4": 24, "f8": 53}
_DIRECTED = (Rounding.TOWARD_ZERO, Rounding.UP, Rounding.DOWN)


@dataclass(frozen=True)
class Scheme:
    """A kernel's carrier ("f4" or "f8") and flags, its constants, and the magnitude that it must stay below."""

    element: str
    flags: int
    row: np.ndarray
    limit: float

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.element)


@lru_cache(maxsize=512)
def constants(target: Format, rounding: Rounding, element: str) -> np.ndarray:
    """The row of constants named in `backend/numba/sums_rounding.py`, read-only."""
    carrier = _PRECISION[element]
    p = target.precision
    row = np.zeros(names.LENGTH, dtype=element)
    if is_float64(target) or (element == "f4" and is_float32(target)):
        row.setflags(write=False)
        return row
    infinity = np.inf if target.has_infinity else np.nan
    overflow = target.max_finite if target.saturate else infinity
    up, down = overflow, overflow
    if rounding in (Rounding.TOWARD_ZERO, Rounding.ODD):
        up = down = target.max_finite
    elif rounding is Rounding.UP:
        down = target.max_finite
    elif rounding is Rounding.DOWN:
        up = target.max_finite
    row[names.LOWEST] = 2.0**-900 if target.flush else 2.0**target.emin
    row[names.MAGIC] = 1.5 * 2.0 ** (carrier - p)
    row[names.ULP] = 2.0 ** (1 - p)
    row[names.HIGHEST] = 2.0 ** min(target.emax + 2, 127 if element == "f4" else 1023)
    row[names.MAX_FINITE] = target.max_finite
    row[names.OVERFLOW_POSITIVE], row[names.OVERFLOW_NEGATIVE] = up, -down
    row[names.INFINITE] = overflow
    row[names.FLUSH_BEFORE] = target.min_normal if target.flush == "before" else 0.0
    row[names.FLUSH_AFTER] = target.min_normal if target.flush else 0.0
    row[names.ZERO] = -0.0 if target.has_negative_zero else 0.0
    row[names.TOP] = 2.0 ** (target.emax + 1) - target.max_finite
    row[names.MINUS] = -1.0
    row[names.FIRST_INFINITE] = target.max_finite + 2.0 ** (target.emax - p)
    row.setflags(write=False)
    return row


def _fits_single(operand: Format, target: Format, rounding: Rounding, exact_products: bool, chains: bool) -> bool:
    """Whether a float32 carrier gives the same bits (semantics, "When a carrier may be used").

    Where the processor rounds in directions, modes that do may round twice, and to odd chains of fused multiply-adds keep
    what float32 loses as an odd last bit, two places below the format's own. To nearest even they round twice where float32
    gives no midpoint. A product that float32 does not hold needs an instruction that adds it unrounded.
    """
    p, quantum = target.precision, quantum_exponent(target)
    if target.flush or rounding is Rounding.STOCHASTIC or operand.emax > 127 or target.emax > 127 or operand.precision > 24:
        return False
    if chains or not exact_products:
        adds_unrounded = HAS_FMA or not exact_products
        directed = HAS_DIRECTIONS and (rounding in (*_DIRECTED, Rounding.NEAREST_AWAY) or exact_products)
        if adds_unrounded and (directed or (exact_products and rounding is Rounding.NEAREST_EVEN)):
            return p <= 22 and quantum >= -147
    if 24 < 2 * p + 2 or 2 * operand.precision > 24:
        return False
    if exact_products or rounding is not Rounding.NEAREST_EVEN:
        return products_are_exact(operand, 24, -149, 127) and quantum >= -147
    return float32_adds(target) and float32_multiplies(target, operand.precision)


def _adds_exactly(operand: Format, target: Format) -> bool:
    """Whether float64 holds, for sums of two values and for products, the result plus a multiple of 2^-32 of its ulp."""
    quantum = quantum_exponent(target)
    least_product = 2 * quantum_exponent(operand)
    return (
        HAS_DIRECTIONS
        and target.precision + 32 <= 52
        and target.emax + 2 - quantum <= 52
        and 2 * operand.precision <= 52
        and target.emin + 1 - least_product <= 52
    )


@lru_cache(maxsize=512)
def scheme(operand: Format, target: Format, rounding: Rounding, exact_products: bool, chains: bool) -> Scheme:
    """The fast kernel for products of `operand` values accumulated in `target`; its magnitudes must be watched."""
    flags = EXACT_PRODUCTS if exact_products else 0
    no_limit = float("inf")
    if rounding is Rounding.NEAREST_EVEN:
        if is_float64(target):
            return Scheme("f8", FORMAT_IS_CARRIER | flags, constants(target, rounding, "f8"), no_limit)
        if is_float32(target) and operand.precision <= 24:
            representable = products_are_exact(operand, 24, -149, 128)
            if representable or (chains and exact_products):
                fused = EXACT_PRODUCTS if HAS_FMA else 0
                if HAS_FMA or representable:
                    return Scheme("f4", FORMAT_IS_CARRIER | fused, constants(target, rounding, "f4"), no_limit)
            elif not exact_products:
                return Scheme("f4", FORMAT_IS_CARRIER, constants(target, rounding, "f4"), no_limit)
    one_rounding = not exact_products or (chains and HAS_FMA)
    direct = HAS_DIRECTIONS and rounding in _DIRECTED and one_rounding
    if direct and is_float32(target) and operand.precision <= 24 and operand.emax <= 127 and operand.emin >= -126:
        return Scheme("f4", FORMAT_IS_CARRIER | flags, constants(target, rounding, "f4"), no_limit)
    element = "f4" if _fits_single(operand, target, rounding, exact_products, chains) else "f8"
    row = constants(target, rounding, element)
    shows_zeros = exact_products or rounding is Rounding.DOWN
    if target.flush or (shows_zeros and not target.has_negative_zero):
        return careful_scheme(target, rounding, exact_products)
    if rounding is Rounding.STOCHASTIC and not exact_products and _adds_exactly(operand, target):
        flags |= EXACT_SUMS
        if products_are_exact(operand, 24, -126, 127) and target.emin >= -126 and target.emax <= 100:
            element, flags, row = "f4", BY_BITS, constants(target, rounding, "f4")
    top = 126 if element == "f4" else 1022
    limit = 2.0 ** min(target.emax, top - (_PRECISION[element] - target.precision))
    return Scheme(element, flags, row, limit)


@lru_cache(maxsize=512)
def careful_scheme(target: Format, rounding: Rounding, exact_products: bool) -> Scheme:
    """The kernel that is right for every operand: overflow, infinities, NaN, signs of zeros and flushing."""
    flags = CAREFUL | (EXACT_PRODUCTS if exact_products else 0)
    return Scheme("f8", flags, constants(target, rounding, "f8"), float("inf"))


def overflow_scheme(operand: Format, target: Format, rounding: Rounding, exact_products: bool, chosen: Scheme) -> Scheme:
    """The kernel for what passes the limit of the chosen one: of the same carrier, if that holds every product and more."""
    is_simple = chosen.element == "f4" and not chosen.flags and not exact_products and rounding is Rounding.NEAREST_EVEN
    is_ieee = target.has_infinity and not target.saturate and is_full(target)
    fits = max(2 * operand.emax + 2, target.emax + 2) + 26 - target.precision <= 127
    if is_simple and is_ieee and fits:
        return Scheme("f4", OVERFLOWS | CLAMP, chosen.row, float("inf"))
    return careful_scheme(target, rounding, exact_products)
