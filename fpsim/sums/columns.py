"""Sums down the columns of an array: as they lie in memory, and a chain for each."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

LEAST_COLUMNS = 16  # below, rows are transposed


@dataclass(frozen=True)
class Columns:
    """A chain from +0 down each column: `x` is (a, terms, columns) in C order, each addition rounded to nearest even.

    constants : of the roundings, as `backend/numba/reductions.py` takes them; what overflows gives no finite number
    """

    x: np.ndarray
    constants: np.ndarray


def as_columns(x: np.ndarray, kept: tuple[int, ...], axes: tuple[int, ...], terms: int) -> np.ndarray | None:
    """x as (a, terms, columns) in C order without a copy, with enough columns; None if that cannot be."""
    first = x.transpose(axes + kept)
    columns = prod(x.shape[axis] for axis in kept)
    if first.flags.c_contiguous and columns >= LEAST_COLUMNS:
        return first.reshape(1, terms, columns)
    if not x.flags.c_contiguous or not axes or axes != tuple(range(axes[0], axes[0] + len(axes))):
        return None
    columns = prod(x.shape[axes[-1] + 1 :])
    return x.reshape(-1, terms, columns) if columns >= LEAST_COLUMNS and x.size else None
