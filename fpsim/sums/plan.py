"""What a product of matrices runs: the carrier, the kernel's flags and constants, and a tree's program for the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fpsim.accumulation.trees import ADD, CHAIN, FUSED, Tree
from fpsim.numbers import operations
from fpsim.numbers.formats import FP32, FP64, Format
from fpsim.numbers.rounding import Rounding

_PRECISION = {"f4": 24, "f8": 53}
_DIRECTED = (Rounding.TOWARD_ZERO, Rounding.UP, Rounding.DOWN)
_NEAREST = (Rounding.NEAREST_EVEN, Rounding.NEAREST_AWAY)


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


def is_like(fmt: Format, other: Format) -> bool:
    """Whether two formats have the same values and edges, whatever their names."""
    return fmt == other or fmt.replace(name=other.name) == other


@lru_cache(maxsize=512)
def require_arithmetic(fmt: Format, rounding: Rounding, name: str) -> None:
    """Raise ValueError, naming the argument, unless sums of products can be computed in the format."""
    try:
        operations.require_arithmetic(fmt, rounding)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if name == "accumulate" and fmt.flush_inputs and not fmt.flush:
        raise ValueError(f"accumulate = {fmt.name} flushes inputs but keeps subnormal results, which no kernel here does")


def products_are_exact(operand: Format, precision: int, least: int, above: int) -> bool:
    """Whether every product of two operands is a value of a carrier of that precision and range of exponents."""
    quantum = operand.emin - operand.precision + 1
    return 2 * operand.precision <= precision and 2 * quantum >= least and 2 * (operand.emax + 1) <= above


@lru_cache(maxsize=512)
def constants(target: Format, rounding: Rounding, element: str) -> np.ndarray:
    """The row of constants named in `backend/numba/sums_rounding.py`, read-only."""
    from fpsim.backend.numba import sums_rounding as names

    carrier = _PRECISION[element]
    p = target.precision
    row = np.zeros(names.LENGTH, dtype=element)
    if is_like(target, FP64) or (element == "f4" and is_like(target, FP32)):
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
    from fpsim.backend.numba.directions import HAS_DIRECTIONS
    from fpsim.backend.numba.processor import HAS_FMA

    p, quantum = target.precision, target.emin - target.precision + 1
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
    return target.emin >= p + 2 * operand.precision - 150


def _adds_exactly(operand: Format, target: Format) -> bool:
    """Whether float64 holds, for sums of two values and for products, the result plus a multiple of 2^-32 of its ulp."""
    from fpsim.backend.numba.directions import HAS_DIRECTIONS

    quantum = target.emin - target.precision + 1
    least_product = 2 * (operand.emin - operand.precision + 1)
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
    from fpsim.backend.numba.directions import HAS_DIRECTIONS
    from fpsim.backend.numba.processor import HAS_FMA
    from fpsim.backend.numba.sums_rounding import BY_BITS, EXACT_PRODUCTS, EXACT_SUMS, NATIVE

    exact = EXACT_PRODUCTS if exact_products else 0
    no_limit = float("inf")
    if rounding is Rounding.NEAREST_EVEN:
        if is_like(target, FP64):
            return Scheme("f8", NATIVE | exact, constants(target, rounding, "f8"), no_limit)
        if is_like(target, FP32) and operand.precision <= 24:
            representable = products_are_exact(operand, 24, -149, 128)
            if representable or (chains and exact_products):
                fused = EXACT_PRODUCTS if HAS_FMA else 0
                if HAS_FMA or representable:
                    return Scheme("f4", NATIVE | fused, constants(target, rounding, "f4"), no_limit)
            elif not exact_products:
                return Scheme("f4", NATIVE, constants(target, rounding, "f4"), no_limit)
    one_rounding = not exact_products or (chains and HAS_FMA)
    direct = HAS_DIRECTIONS and rounding in _DIRECTED and one_rounding
    if direct and is_like(target, FP32) and operand.precision <= 24 and operand.emax <= 127 and operand.emin >= -126:
        return Scheme("f4", NATIVE | exact, constants(target, rounding, "f4"), no_limit)
    element = "f4" if _fits_single(operand, target, rounding, exact_products, chains) else "f8"
    row = constants(target, rounding, element)
    shows_zeros = exact_products or rounding is Rounding.DOWN
    if target.flush or (shows_zeros and not target.has_negative_zero):
        return careful_scheme(target, rounding, exact_products)
    if rounding is Rounding.STOCHASTIC and not exact_products and _adds_exactly(operand, target):
        exact |= EXACT_SUMS
        if products_are_exact(operand, 24, -126, 127) and target.emin >= -126 and target.emax <= 100:
            element, exact, row = "f4", BY_BITS, constants(target, rounding, "f4")
    top = 126 if element == "f4" else 1022
    limit = 2.0 ** min(target.emax, top - (_PRECISION[element] - target.precision))
    return Scheme(element, exact, row, limit)


@lru_cache(maxsize=512)
def careful_scheme(target: Format, rounding: Rounding, exact_products: bool) -> Scheme:
    """The kernel that is right for every operand: overflow, infinities, NaN, signs of zeros and flushing."""
    from fpsim.backend.numba.sums_rounding import CAREFUL, EXACT_PRODUCTS

    flags = CAREFUL | (EXACT_PRODUCTS if exact_products else 0)
    return Scheme("f8", flags, constants(target, rounding, "f8"), float("inf"))


def _overflow_scheme(operand: Format, target: Format, rounding: Rounding, exact_products: bool, chosen: Scheme) -> Scheme:
    """The kernel for what passes the limit of the chosen one: of the same carrier, if that holds every product and more."""
    from fpsim.backend.numba.sums_rounding import CLAMP, OVERFLOWS

    is_simple = chosen.element == "f4" and not chosen.flags and not exact_products and rounding is Rounding.NEAREST_EVEN
    is_ieee = target.has_infinity and not target.saturate and is_full(target)
    fits = max(2 * operand.emax + 2, target.emax + 2) + 26 - target.precision <= 127
    if is_simple and is_ieee and fits:
        return Scheme("f4", OVERFLOWS | CLAMP, chosen.row, float("inf"))
    return careful_scheme(target, rounding, exact_products)


def is_full(fmt: Format) -> bool:
    """Whether the format's largest number has all bits of its significand set."""
    return bool(fmt.max_finite == 2.0**fmt.emax * (2 - 2.0 ** (1 - fmt.precision)))


@lru_cache(maxsize=128)
def program(tree: Tree) -> np.ndarray:
    """A tree's steps as the kernel's program: runs of chain steps become one line.

    Raises ValueError for nodes of more than two terms, which `_node_runs` adds.
    """
    from fpsim.backend.numba import products as kernels

    steps = tree.steps.astype(np.int64)
    if not tree.is_binary:
        raise ValueError("accumulate: the tree has nodes of more than two terms, which have no counters and no kernel")
    chain = (steps <= CHAIN) & (steps > FUSED)
    adds = chain | (steps == ADD)
    node = np.cumsum(adds) - adds
    leaves = np.where(chain, CHAIN - steps, np.maximum(steps, 0))
    gaps = np.diff(leaves)
    starts = np.flatnonzero(_run_starts(chain, gaps))
    lengths = np.diff(starts, append=steps.size)
    table = np.empty((starts.size, 5), dtype=np.int64)
    operations = np.where(steps == ADD, kernels.ADD, np.where(steps >= 0, kernels.PUSH_LEAF, kernels.PUSH_ZERO))
    table[:, 0] = np.where(chain, kernels.CHAIN, operations)[starts]
    table[:, 1], table[:, 2], table[:, 4] = leaves[starts], lengths, node[starts]
    table[:, 3] = np.where(lengths > 1, np.append(gaps, 1)[starts], 1)
    if int(steps[0]) != -2:  # the sum is (+0) + tree; what starts from +0 has it already
        table = np.concatenate([[(kernels.PUSH_ZERO, 0, 1, 1, 0)], table, [(kernels.ADD, 0, 1, 1, tree.nodes)]])
    table.setflags(write=False)
    return table


def _run_starts(chain: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Which steps begin a line: all but the chain steps that go on at the stride between the first two of their line."""
    begins = np.ones(chain.size, dtype=bool)
    follows = chain[1:] & chain[:-1]
    begins[1:] = ~follows
    changes = follows[1:] & follows[:-1] & (gaps[1:] != gaps[:-1])
    for place in np.flatnonzero(changes) + 2:  # the second of a line stays, whatever its stride
        begins[place] = not begins[place - 1]
    return begins


@dataclass(frozen=True)
class Plan:
    """How products along a tree are computed: a scheme, and what decides which further flags operands call for."""

    scheme: Scheme
    overflow: Scheme  # for the parts that pass the limit
    growth: float  # no partial sum exceeds this times the sum of the leaves' magnitudes
    target: Format
    is_usual: bool  # the commonest case, for which there is a kernel for each set of flags
    clamp: int  # the flag for products that may lie below the format's normal numbers
    watch_sums: int  # that for sums that may reach the limit
    watch: int  # that for leaves or sums that may


@lru_cache(maxsize=256)
def plan(tree: Tree, operand: Format, target: Format, rounding: Rounding, exact_products: bool) -> Plan:
    from fpsim.backend.numba.sums_rounding import CLAMP, TRACK, TRACK_SUMS

    chosen = scheme(operand, target, rounding, exact_products, tree.is_chains)
    is_usual = chosen.element == "f4" and rounding is Rounding.NEAREST_EVEN and not chosen.flags
    # A leaf is the difference of two sums of its chain: where those stay below the limit, it stays below twice that.
    watch = TRACK_SUMS if tree.is_chains and is_full(target) else TRACK
    overflow = _overflow_scheme(operand, target, rounding, exact_products, chosen)
    return Plan(chosen, overflow, growth(tree, target, rounding, tree.is_one_chain), target, is_usual, CLAMP, TRACK_SUMS, watch)


def growth(tree: Tree, target: Format, rounding: Rounding, is_one_chain: bool) -> float:
    """A factor g: no partial sum exceeds g times the sum of the leaves' magnitudes (inf where none is known).

    A nearest rounding moves a + b by no more than |b|, a being a value of the format; any rounding grows a sum by at most
    1 + 2u. Limits lie a binade below overflow, which is more than what the roundings here lose.
    """
    with np.errstate(over="ignore"):
        relative = float(np.exp(_height(tree) * np.log1p(2.0 * target.unit_roundoff)))
    return min(2.0, relative) if is_one_chain and rounding in _NEAREST else relative


@lru_cache(maxsize=128)
def _height(tree: Tree) -> int:
    return tree.height

