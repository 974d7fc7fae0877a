"""Arrays by groups laid out in blocks of LANES of them, and back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fpsim.sums.lanes import LANES
from fpsim.sums.windows import Window


def by_groups(x: np.ndarray, groups: int) -> np.ndarray:
    """(n, groups * c, ...) as (groups, c, n, ...)."""
    return x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:]).transpose(1, 2, 0, *range(3, x.ndim + 1))


def laid_out(x: np.ndarray, dtype: np.dtype, windows: tuple[Window, ...] = (), zeros: int = 0) -> np.ndarray:
    """(groups, ..., axes) as (blocks, ..., windows of the axes, LANES), and `zeros` blocks more."""
    before = (slice(None),) * (x.ndim - len(windows))
    blocks, sizes = -(-len(x) // LANES) + zeros, tuple(window.size for window in windows)
    out = np.zeros((blocks, *x.shape[1 : len(before)], *sizes, LANES), dtype)
    inside = out[before + tuple(window.target for window in windows)]
    for source, vectors in beside(x[before + tuple(window.source for window in windows)], inside):
        vectors[...] = source
    return out


def beside(x: np.ndarray, lanes: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Views of (groups, ...) and (blocks, ..., LANES) in one shape: of the whole blocks, and of what is left."""
    full = len(x) // LANES
    if full:
        yield np.moveaxis(x[: full * LANES].reshape(full, LANES, *x.shape[1:]), 1, -1), lanes[:full]
    if full * LANES < len(x):
        yield np.moveaxis(x[full * LANES :], 0, -1), lanes[full, ..., : len(x) - full * LANES]
