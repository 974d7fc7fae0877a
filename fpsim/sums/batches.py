"""Products of the matrices of two batches along one tree, all in one call of a kernel."""

from __future__ import annotations

import numpy as np

from fpsim.accumulation.kinds import TREE
from fpsim.backend import numba as kernels, threads
from fpsim.backend.numba.observed import NOTHING
from fpsim.numbers.rounding import Rounding
from fpsim.sums.orientation import is_turned
from fpsim.sums.packing import extents_of_products
from fpsim.sums.plan import Plan, plan
from fpsim.sums.schemes import Scheme
from fpsim.sums.task import Draws, Sum
from fpsim.sums.tiles import Job

_FEW = 4  # rows for which products have other ways


def batched_products(task: Sum, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, list[int]] | None:
    """The accumulated products of (n, i, k) and (n, k, j), and which of them have to be computed again, one by one.

    float32 operands. None for accumulators, modes and shapes that this does not serve.
    """
    if is_turned(task, a, b):
        transposed = batched_products(task.transposed, b.mT, a.mT)
        return transposed and (transposed[0].mT, transposed[1])
    planned = plan_of_pairs(task, a, b)
    if planned is None:
        return None
    (pairs, rows, leaves), columns, chosen = a.shape, b.shape[2], planned.scheme
    job = Job(chosen.element, (rows, columns, leaves), planned.depth, task.rounding, Draws())
    # What one pair calls for serves all: flags say what is looked after, and never change what comes out.
    flags = planned.flags(leaves, rows, lambda: extents_of_pairs(a, b))
    out, _, overflowed = run_pairs(job, a, b, planned.programs[0], chosen, flags)
    again = np.flatnonzero(overflowed.reshape(pairs, -1).any(axis=1)) if overflowed.any() else ()
    return out, [int(pair) for pair in again]


def plan_of_pairs(task: Sum, a: np.ndarray, b: np.ndarray) -> Plan | None:
    """The plan of products of (n, i, k) and (n, k, j) that one call can make; None where they go one by one."""
    (pairs, rows, leaves), columns = a.shape, b.shape[2]
    serves = task.accumulator.kind is TREE and task.rounding is not Rounding.STOCHASTIC
    if not serves or task.operand.flush_inputs or rows <= _FEW or columns < 32 or not pairs:
        return None
    planned = plan(task, leaves)
    return planned if planned.is_binary and a.dtype == b.dtype == np.float32 else None


def run_pairs(
    job: Job, a: np.ndarray, b: np.ndarray, lines: np.ndarray, chosen: Scheme, flags: int, tallies: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`job.run` for each pair of (n, i, k) and (n, k, j): products, what was observed (where the job does) of each of their
    elements, or of each pair in so many numbers a tile, and (n, panel, group) 1 where magnitudes reached the limit. Nothing is
    drawn."""
    batches, shape = kernels.batches, (chosen.element, job.tile_rows, job.vectors)
    function = batches.make_batch(*shape)
    product = batches.product_code(*shape, job.rounding.code, flags, job.observed)
    a, b = (x if min(x.strides) >= 0 else np.ascontiguousarray(x) for x in (a, b))
    packing, left, right = batches.packing_codes(chosen.element, job.tile_rows, a, b), batches.matrices(a), batches.matrices(b)
    pairs, panels = len(a), -(-job.columns // job.width)
    out = kept = np.empty((pairs, job.rows, job.columns), chosen.dtype)
    if job.observed != NOTHING:
        tiles = (1, panels * job.groups * tallies) if tallies else (job.groups * job.tile_rows, panels * job.width)
        kept = np.empty((pairs, *tiles), chosen.dtype)
    overflowed = np.zeros((pairs, panels, job.groups), np.uint8)
    limit = chosen.dtype.type(chosen.limit)

    def task(first: int, last: int) -> None:
        where = (product.address, packing, left, right, out)
        function(*where, job.leaves, job.depth, first, last, lines, chosen.row, limit, overflowed, kept)

    threads.run(task, threads.parts(pairs, out.size * max(1, job.leaves)))
    return out, kept if tallies else kept[:, : job.rows, : job.columns], overflowed


def extents_of_pairs(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """As `extents_of_products` of all pairs."""
    return extents_of_products(_elements(a), [_elements(b)])


def _elements(x: np.ndarray) -> np.ndarray:
    """Every element once, in a line, in whatever order."""
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    return np.ascontiguousarray(x.transpose(order)).reshape(-1)
