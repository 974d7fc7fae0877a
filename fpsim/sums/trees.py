"""Sums along trees of two-term additions, and compensated ones, tile by tile.

NaN and infinities that would make tiles overflow are taken apart here, once for every kind.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import numpy as np

from fpsim.accumulation.accumulator import get_accumulator
from fpsim.accumulation.kinds import TREE
from fpsim.numbers.formats import FP16
from fpsim.numbers.rounding import Rounding
from fpsim.sums.compensated import JOBS
from fpsim.sums.packing import extents_of_products
from fpsim.sums.plan import Plan, plan
from fpsim.sums.rows import row_chain
from fpsim.sums.task import Draws, Sum
from fpsim.sums.tiles import Job

CHUNK = 2**18  # elements
_FEW = 4  # rows for which looking through a matrix costs as much as it saves


def make_job(planned: Plan, shape: tuple[int, int, int], draws: Draws) -> Job:
    """The job that computes one product of (rows, columns, leaves)."""
    task = planned.task
    kind = JOBS.get(task.accumulator.kind.name, Job)
    return kind(planned.scheme.element, shape, planned.depth, task.rounding, draws)


def products(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> Iterator[np.ndarray]:
    """One array for each program of the plan."""
    rounding, (rows, leaves) = planned.task.rounding, a.shape
    job = make_job(planned, (rows, b.shape[1], leaves), draws)
    left, right = job.pack(a, b)
    flags = planned.flags(leaves, rows, lambda: extents_of_products(left, [panels.data for panels in right]))
    tracks = flags & (planned.watch | planned.watch_sums) and rows > _FEW and rounding is not Rounding.STOCHASTIC
    decided = None
    if tracks and not (np.isfinite(a).all() and np.isfinite(b).all()):
        kept = ~np.isnan(a).any(axis=1), ~np.isnan(b).any(axis=0)
        if not (kept[0].all() and kept[1].all()):
            yield from _among_nan(planned, a, b, draws, *kept)
            return
        if planned.task.accumulator.kind is TREE and planned.task.target.has_infinity and not planned.task.target.saturate:
            # Whatever the order, infinite products decide the sums that have any, unless something else overflows before.
            decided = _sums_of_signs(a, b)
            left, right = job.pack(*(np.where(np.isinf(x), 0, x) for x in (a, b)))
            flags = planned.flags(leaves, rows, lambda: extents_of_products(left, [panels.data for panels in right]))
    for lines in planned.programs:
        out = job.run(left, right, lines, planned.scheme, flags)
        if decided is not None:
            np.copyto(out, decided, where=~np.isfinite(decided))
        if job.overflowed:
            job.redo(a, b, lines, planned.overflow, out)
        yield out


def product(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
    """The array of a plan with one program."""
    return next(products(planned, a, b, draws))


def _among_nan(
    planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws, rows: np.ndarray, columns: np.ndarray
) -> Iterator[np.ndarray]:
    """The products where the given rows and columns, which have no NaN, meet; NaN elsewhere. Nothing is drawn."""
    some = rows.any() and columns.any()
    parts = products(planned, a[rows], b[:, columns], draws) if some else iter(())
    for _ in planned.programs:
        whole = np.full((rows.size, columns.size), np.nan, dtype=planned.scheme.dtype)
        if some:
            whole[np.ix_(rows, columns)] = next(parts)
        yield whole


@cache
def _signs() -> Sum:
    return Sum.of(FP16, get_accumulator("fp32"), Rounding.NEAREST_EVEN)


def _sums_of_signs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a @ b where a leaf is infinite or NaN, by IEEE 754-2019, section 6.1, and elsewhere something finite."""
    signs = [np.where(np.isinf(x), x, np.sign(x)).astype(np.float32) for x in (a, b)]
    return product(plan(_signs(), a.shape[1]), signs[0], signs[1], Draws())


def row_product(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
    """One row along one chain, with the matrix read as it lies."""
    flags = planned.flags(np.inf, 1, lambda: (np.inf, 0.0))
    out, overflowed = row_chain(a, b, planned.scheme, flags, planned.task.rounding)
    if overflowed:
        job = make_job(planned, (1, b.shape[1], b.shape[0]), draws)
        job.overflowed = overflowed
        job.redo(a, b, planned.programs[0], planned.overflow, out)
    return out


def wide_product(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws) -> np.ndarray:
    """A few rows times many columns, packed some at a time: fresh memory by the dozen megabytes costs more than the sums."""
    (rows, leaves), columns = a.shape, b.shape[1]
    width = max(128, CHUNK // leaves // 128 * 128)
    whole = np.empty((rows, columns), dtype=planned.scheme.dtype)
    for start in range(0, columns, width):
        some = slice(start, start + width)
        whole[:, some] = product(planned, a, b[:, some], draws.at(0, start))
    return whole
