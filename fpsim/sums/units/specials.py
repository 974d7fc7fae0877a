"""Infinities and NaN among what a unit adds at once: they decide a block's sum, whatever its finite terms come to.

A NaN, a product of zero and infinity, and infinities of both signs among the terms and the addend give NaN, else an infinite
one is the sum. Finite terms that overflow meet them in later blocks only, where the sum so far is the infinite addend.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def finite_part(x: np.ndarray) -> np.ndarray:
    """x with zeros for what is not finite."""
    return np.where(np.isfinite(x), x, x.dtype.type(0))


def decided(special: np.ndarray, finite: Callable[[np.ndarray], np.ndarray], addend: np.ndarray) -> np.ndarray:
    """One block: its finite terms' sum, `finite(addend)`, where the terms and the addend by IEEE 754, `special`, are finite.

    `special` has no overflow: it is not finite only where a term or the addend is not, and then it is the sum.
    """
    return np.where(np.isfinite(special), finite(finite_part(addend)), special)


def among_specials(
    special: np.ndarray, finite: np.ndarray, by_blocks: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Chained blocks, from all terms and the addend by IEEE 754 (`special`, without overflow) and from the finite ones alone.

    Where an infinite term meets a chain that overflowed, it matters which came first: `by_blocks(rows, columns)`, masks,
    computes those elements one block after the other.
    """
    result = np.where(np.isfinite(special), finite, special)
    unclear = np.isinf(special) & ~np.isfinite(finite)
    if unclear.any():
        rows, columns = unclear.any(axis=1), unclear.any(axis=0)
        result[np.ix_(rows, columns)] = by_blocks(rows, columns)
    return result
