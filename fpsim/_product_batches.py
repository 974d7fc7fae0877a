"""Products of the matrices of two batches along one tree, all in one call of a kernel."""

from __future__ import annotations

import numpy as np

from fpsim import threads
from fpsim._product_jobs import Draws, Job, Panels
from fpsim._product_runs import choose_flags, prepare
from fpsim.accumulation.accumulator import Accumulator
from fpsim.formats import Format
from fpsim.rounding import Rounding

_FEW = 4  # rows for which products have other ways


def batched_tree_products(
    a: np.ndarray, b: np.ndarray, operand: Format, accumulator: Accumulator, rounding: Rounding
) -> tuple[np.ndarray, list[int]] | None:
    """The accumulated products of (n, i, k) and (n, k, j), and which of them have to be computed again, one by one.

    float32 operands. None for accumulators, modes and shapes that this does not serve.
    """
    (pairs, rows, leaves), columns = a.shape, b.shape[2]
    wide = accumulator.kind == "tree" and accumulator.promoted is None and rounding is not Rounding.STOCHASTIC
    if not wide or operand.flush_inputs or rows <= _FEW or columns < 32 or not pairs:
        return None
    known = prepare(operand, accumulator, rounding, leaves)
    chosen, bound = known.plan
    if not known.tree.is_binary or not a.dtype == b.dtype == np.float32:
        return None
    job = Job(chosen.element, (rows, columns, leaves), known.tree.depth + 1, rounding, Draws())
    extent = Panels(_elements(b), 0, 0, 0, columns)
    # What one pair calls for serves all: flags say what is looked after, and never change what comes out.
    flags = choose_flags(chosen, bound * leaves, accumulator.format, rounding, known.tree, _elements(a), [extent], rows)
    from fpsim._kernels.batches import make_batch

    function = make_batch(chosen.element, job.tile_rows, job.vectors, rounding.code, flags)
    panels = -(-columns // job.width)
    out = np.empty((pairs, job.groups * job.tile_rows, panels * job.width), chosen.dtype)
    passed = np.zeros((pairs, panels, job.groups), np.uint8)
    limit = chosen.dtype.type(chosen.limit)

    def task(first: int, last: int) -> None:
        function(a, b, out, job.depth, first, last, known.programs[0], chosen.row, limit, passed, out)

    threads.run(task, threads.parts(pairs, out.size * max(1, leaves)))
    again = np.flatnonzero(passed.reshape(pairs, -1).any(axis=1)) if passed.any() else ()
    return out[:, :rows, :columns], [int(pair) for pair in again]


def _elements(x: np.ndarray) -> np.ndarray:
    """Every element once, in a line, in whatever order."""
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    return np.ascontiguousarray(x.transpose(order)).reshape(-1)
