"""Products that count what their roundings did."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.counted import (
    EVERYTHING,
    MOST_LEAVES,
    OVERFLOWS,
    SUMS,
    TALLIES,
    UNCHANGED,
    UNDERFLOWS,
    count_roundings,
    count_sums,
    sum_tallies,
)
from fpsim.numbers.computing import is_float64
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.sums.additions import add_rounded
from fpsim.sums.batches import extents_of_pairs, plan_of_pairs, run_pairs
from fpsim.sums.columns import Columns
from fpsim.sums.lanes import LaneSums
from fpsim.sums.observers.countable import (
    are_alone,
    countable,
    least_unseen,
    may_be_seldom,
    observed,
    underflows_only_in_leaves,
    vanishing,
)
from fpsim.sums.observers.counting_tiles import CountingJob, SeldomSwampedJob, swamped_products
from fpsim.sums.observers.tally import Tally
from fpsim.sums.orientation import is_turned, oriented
from fpsim.sums.packing import LANES, extents_of_products
from fpsim.sums.parts import chained, no_parts
from fpsim.sums.plan import Plan, plan
from fpsim.sums.programs import additions
from fpsim.sums.schemes import Scheme
from fpsim.sums.task import Draws, Sum

_FEW, _SMALL = 4, 2**13  # rows, and elements of a matrix that are copied for so few
_LARGE = 2**22  # multiply-adds from which on it repays to find out where nothing can be swamped


@oriented
def count_product(task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, counters: Tally) -> np.ndarray:
    """The accumulated a @ b of a tree or of parts, counted: a new array of values of `task.held`.

    Rounding the sum of a part to a second format that does not hold it is an addition to zero.
    """
    planned = plan(task, a.shape[1])
    alone = _swamped_alone(planned, a[None], b[None], counters)
    if alone is not None:
        return alone[0]
    blocks = _products(planned, a, b, draws, counters)
    if task.accumulator.kind is not PARTS:
        return next(blocks)
    total = no_parts(task, (a.shape[0], b.shape[1]))
    for lines, block in zip(planned.programs, blocks, strict=True):
        total = chained(total, block, task, draws, lines, partial(counted_add, counters=counters))
    return total


def count_products(task: Sum, a: np.ndarray, b: np.ndarray, counters: Tally) -> np.ndarray | None:
    """As `batches.batched_products`, counted; None, and nothing counted, where any pair has to be computed again too."""
    if is_turned(task, a, b):
        transposed = count_products(task.transposed, b.mT, a.mT, counters)
        return None if transposed is None else transposed.mT
    planned = plan_of_pairs(task, a, b)
    if planned is None:
        return None
    alone = _swamped_alone(planned, a, b, counters)
    if alone is not None:
        return alone
    extents = extents_of_pairs(a, b)
    if not extents[0] < np.inf:
        return None
    counts = planned.tallied
    planned = countable(planned, extents[0])
    chosen, shape = planned.scheme, (a.shape[1], b.shape[2], planned.leaves)
    job = CountingJob(chosen.element, shape, planned.depth, task.rounding, Draws(), observed(planned, extents))
    flags, lines = planned.flags(planned.leaves, job.rows, lambda: extents), planned.programs[0]
    out, tallies, overflowed = run_pairs(job, a, b, lines, chosen, flags, TALLIES * LANES[chosen.element])
    if overflowed.any():
        return None
    job.add(tallies, overflowed)
    if job.observed == SUMS and not job.largest < least_unseen(planned):
        return None
    lost = vanishing(planned)
    if job.observed == SUMS or extents[1] <= max(lost):
        _leave_out_zero_leaves(job, *_zero_leaves(a, b, lost), *counts[0][1:], len(a))
    _take(job, len(a) * job.rows * job.columns * counts[0][0], counters)
    return out


def _swamped_alone(planned: Plan, a: np.ndarray, b: np.ndarray, counters: Tally) -> np.ndarray | None:
    """As `count_products` where swamped additions alone are asked for, and one call of a kernel finds them; else None."""
    task = planned.task
    if counters.is_whole or not planned.is_float32_chains or planned.leaves > MOST_LEAVES or not (a.size and b.size):
        return None
    if task.accumulator.kind is not TREE or task.rounding is Rounding.STOCHASTIC or not a.dtype == b.dtype == np.float32:
        return None
    least = task.left.enclosing.min_subnormal * task.right.enclosing.min_subnormal
    is_read_in_place = a.shape[1] <= _FEW and b[0].size > _SMALL
    found = None if is_read_in_place or not underflows_only_in_leaves(planned, least) else swamped_products(planned, a, b)
    if found is None:
        return None
    out, swamped = found
    counters.add(Tally(out.size * planned.tallied[0][0], swamped))
    return out


def _products(planned: Plan, a: np.ndarray, b: np.ndarray, draws: Draws, counters: Tally) -> Iterator[np.ndarray]:
    """As `trees.products`, counted: what a product does is added to the counters before it is yielded."""
    task, tree, programs, counts = planned.task, planned.tree, planned.programs, planned.tallied
    rounding = task.rounding
    (rows, leaves), columns = a.shape, b.shape[1]
    shape, most = (rows, columns, leaves), least_unseen(planned)
    extents = extents_of_products(a.ravel(order="K"), [b.ravel(order="K")])
    planned = countable(planned, extents[0])
    job = CountingJob(planned.scheme.element, shape, tree.depth + 1, rounding, draws, observed(planned, extents))
    left, right = job.pack(a, b)
    alone = are_alone(planned, extents, counters)
    if job.observed == SUMS and (alone or rows * columns * leaves > _LARGE) and may_be_seldom(planned, extents):
        seldom = SeldomSwampedJob(shape, tree.depth + 1, rounding, draws, alone)
        job = seldom if seldom.suits(left, right, programs[0]) else job
    chosen, smallest = planned.scheme, extents[1]
    flags = planned.flags(leaves, rows, lambda: extents)
    vanished = None
    for lines, (added, in_chains, used) in zip(programs, counts, strict=True):
        job.counts, job.largest = [0, 0, 0], 0.0
        out = job.run(left, right, lines, chosen, flags)
        counted = job
        everything = job.observed == EVERYTHING
        if job.overflowed or not (everything or job.largest < most):
            counted, out = _again(job, a, b, lines, planned.careful.scheme, out)
        elif job.observed == SUMS or (counters.is_whole and not everything and smallest <= max(vanishing(planned))):
            if vanished is None:
                vanished = _zero_leaves(a[None], b[None], vanishing(planned))
            _leave_out_zero_leaves(job, *vanished, in_chains, used)
        _take(counted, rows * columns * added, counters)
        yield out


def _take(job: CountingJob, additions: int, counters: Tally) -> None:
    """Add what a job has counted."""
    counts = job.counts
    counters.add(Tally(additions, counts[UNCHANGED], counts[OVERFLOWS], counts[UNDERFLOWS], job.largest))


def _zero_leaves(a: np.ndarray, b: np.ndarray, least: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """For each term of (n, i, k) and (n, k, j), how many products are zero where positive and negative ones up to `least`
    become zero, and how many of those have no zero factor.
    """
    zeros, underflows = (np.zeros(a.shape[2], dtype=np.int64) for _ in range(2))
    bits = [np.ascontiguousarray(x).view(f"u{x.itemsize}") for x in (a, b)]
    kernels.zero_leaves.count_zero_leaves_of_pairs(np.empty(1, b.dtype), *bits, *least, zeros, underflows)
    return zeros, underflows


def _leave_out_zero_leaves(
    job: CountingJob, zeros: np.ndarray, underflows: np.ndarray, in_chains: np.ndarray, used: np.ndarray, pairs: int = 1
) -> None:
    """Count the leaves that underflowed, and take the chain steps of zero leaves from those that left a sum as it was."""
    padding = job.groups * job.tile_rows * (-(-job.columns // job.width) * job.width) - job.rows * job.columns
    job.counts[UNDERFLOWS] += int(underflows[used].sum())
    if job.observed == SUMS:
        job.counts[UNCHANGED] -= int(zeros[in_chains].sum()) + pairs * padding * int(in_chains.sum())


def count_chains(sums: Columns, counters: Tally) -> np.ndarray | None:
    """Chains down columns, and of their additions those that were swamped; None, and nothing counted, where one overflowed."""
    images, terms, columns = sums.x.shape
    items = images * -(-columns // kernels.reductions.BLOCK)
    out, swamped = np.empty((images, columns), sums.x.dtype), np.empty(items, np.int64)

    def task(first: int, last: int) -> None:
        kernels.reductions.count_chains(sums.x, out, swamped, first, last, sums.constants)

    threads.run(task, threads.parts(items, sums.x.size))
    if not np.isfinite(out).all():
        return None
    counters.add(Tally(out.size * terms, int(swamped.sum())))
    return out.reshape(-1)


def count_lanes(sums: LaneSums, counters: Tally) -> np.ndarray:
    """The sums of a tree lane by lane, counted by the careful kernel; float64's own additions by theirs."""
    planned = sums.planned
    chosen = planned.scheme if is_float64(planned.task.target) else planned.careful.scheme
    (lines,) = planned.programs
    out, overflowed, tallied = sums.run(chosen, chosen.flags, lines, sums.tiles, EVERYTHING, TALLIES)
    tallies, counts = tallied.reshape(overflowed.size, TALLIES, -1), np.zeros(3, np.int64)
    largest = float(sum_tallies(tallies, tallies.view(f"u{tallies.itemsize}"), overflowed.reshape(-1), counts))
    swamped, overflows, underflows = counts[[UNCHANGED, OVERFLOWS, UNDERFLOWS]].tolist()
    counters.add(Tally(sums.count * additions(lines), swamped, overflows, underflows, largest))
    return sums.shaped(out)


def _again(
    job: CountingJob, a: np.ndarray, b: np.ndarray, lines: np.ndarray, careful: Scheme, out: np.ndarray
) -> tuple[CountingJob, np.ndarray]:
    """The tiles that overflowed counted once more, with care; all of them where tallies or draws run through tiles."""
    if job.observed == EVERYTHING and job.rounding is not Rounding.STOCHASTIC:
        job.redo(a, b, lines, careful, out)
        return job, out
    whole = CountingJob("f8", (job.rows, job.columns, job.leaves), job.depth, job.rounding, job.draws, EVERYTHING)
    result = whole.run(*whole.pack(a, b), lines, careful, careful.flags)
    return whole, result


def counted_add(
    x: np.ndarray, y: np.ndarray, target: Format, rounding: Rounding, draws: Draws, node: int, counters: Tally,
    addend_only: bool = False,
) -> np.ndarray:  # fmt: skip
    """`add_rounded`, counted; with `addend_only` only y can be swamped."""
    result = add_rounded(x, y, target, rounding, draws, node)
    counts = np.zeros(3, dtype=np.int64)
    is_row = y.shape[-1:] == result.shape[1:] and y.size == result.shape[1]
    terms = (x, y if is_row else np.broadcast_to(y, result.shape), result)
    matrices = (np.ascontiguousarray(values).reshape(-1, result.shape[1] if is_row else result.size) for values in terms)
    largest = count_sums(*matrices, addend_only, target.max_finite, counts)
    lost, underflows, reaching = counts.tolist()
    counters.add(Tally(result.size, lost, underflows=underflows, largest=float(largest)))
    if reaching and counters.is_whole:
        finite = np.isfinite(x) & np.isfinite(y)
        beyond = add_rounded(x, y, target.beyond, rounding, draws, node)
        counters.overflows += int(np.count_nonzero(finite & (np.abs(beyond) > target.max_finite)))
    return result


def counted_rounding(x: np.ndarray, result: np.ndarray, fmt: NumberSystem, rounding: Rounding, key: int, first: int,
                     counters: Tally) -> None:  # fmt: skip
    """Count what rounding x to `fmt` did, given the result."""
    counts = np.zeros(2, dtype=np.int64)
    count_roundings(*(np.ascontiguousarray(values).reshape(-1) for values in (x, result)), fmt.max_finite, counts)
    underflows, reaching = counts.tolist()
    counters.underflows += underflows
    if reaching:
        beyond = np.ascontiguousarray(x, dtype=np.float64)
        wider = np.empty_like(beyond)
        fmt.beyond.round_into(beyond, wider, rounding, key, first)
        counters.overflows += int(np.count_nonzero(np.isfinite(x) & ((wider > fmt.max_finite) | (wider < fmt.min_finite))))
