"""Products that keep, for each element, a sum over its roundings that bounds its error (see `backend/numba/watched.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fpsim.accumulation.trees import Tree
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.batches import run_pairs
from fpsim.sums.plan import Scheme, careful_scheme, constants, scheme
from fpsim.sums.tiles import Draws, Job, Panels

#: Leaves up to which sums of powers of two are kept in float32: they err by less than (leaves + 1) 2^-23 of themselves.
_MOST_SINGLE = 2**14


@dataclass(frozen=True)
class Watched:
    """A product and, for each element, what its roundings add up to; `excess` bounds the relative error of that sum."""

    product: np.ndarray
    kept: np.ndarray
    excess: float


class _WatchingJob(Job):
    """A job whose kernel keeps `what` for each element, in `kept`."""

    def __init__(self, element: str, shape: tuple[int, int, int], depth: int, rounding: Rounding, draws: Draws, what: int):
        super().__init__(element, shape, depth, rounding, draws)
        self.what = what
        self.kept: np.ndarray | None = None

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.kept is None:
            self.kept = np.empty_like(out)
        return (self.kept.reshape(-1)[panels.first_column :],)


def watched_products(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    exact_leaves: bool, squares: bool, draws: Draws, programs: list[np.ndarray],
) -> Iterator[Watched]:  # fmt: skip
    """For each program the product as `_product_runs` makes it, and for each element the sum of ufp over its roundings.

    With `squares` the sum of ufp^2. It is infinite where a result overflowed or may have saturated. `exact_leaves` leaves
    out the roundings of products, which are known to be exact.
    """
    (rows, leaves), columns = a.shape, b.shape[1]
    how = (operand, target, rounding, tree, exact_products, exact_leaves, squares)
    if columns < 32 and rows > columns:
        swapped = Draws(draws.key, draws.first, draws.column_step, draws.row_step)
        for part in watched_products(b.T, a.T, *how, swapped, programs):
            yield Watched(part.product.T, part.kept.T, part.excess)
        return
    what = _what(squares, exact_leaves or exact_products)
    chosen, flags = _scheme(operand, target, rounding, tree, exact_products, squares)
    shape, depth = (rows, columns, leaves), tree.depth + 1
    for lines in programs:
        found = None
        for scheme_now, flags_now in ((chosen, flags), (careful_scheme(target, rounding, exact_products), None)):
            job = _WatchingJob(scheme_now.element, shape, depth, rounding, draws, what)
            left, right = job.pack(a, b)
            own = scheme_now.flags if flags_now is None else flags_now
            found = job.run(left, right, lines, own, scheme_now.row, scheme_now.limit)
            if not job.passed:
                break
        assert found is not None and job.kept is not None
        yield Watched(found, job.kept[:rows, :columns], _excess(leaves, job.element))


def watched_stack(
    a: np.ndarray, b: np.ndarray, operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool,
    exact_leaves: bool, squares: bool, lines: np.ndarray,
) -> Watched | None:  # fmt: skip
    """`watched_products` of stacks (n, i, k) and (n, k, j) along one program, in one call of a kernel.

    None where something overflowed, draws are asked for or operands are not of the kernel's carrier: then one by one.
    """
    (_, rows, leaves), columns = a.shape, b.shape[2]
    if columns < 32 and rows > columns:
        how = (operand, target, rounding, tree, exact_products, exact_leaves, squares, lines)
        found = watched_stack(b.swapaxes(1, 2), a.swapaxes(1, 2), *how)
        return found and Watched(found.product.swapaxes(1, 2), found.kept.swapaxes(1, 2), found.excess)
    chosen, flags = _scheme(operand, target, rounding, tree, exact_products, squares)
    if rounding is Rounding.STOCHASTIC or not a.dtype == b.dtype == chosen.dtype:
        return None
    what = _what(squares, exact_leaves or exact_products)
    job = _WatchingJob(chosen.element, (rows, columns, leaves), tree.depth + 1, rounding, Draws(), what)
    out, kept, passed = run_pairs(job, a, b, lines, chosen, flags)
    return None if passed.any() else Watched(out, kept, _excess(leaves, chosen.element))


def _what(squares: bool, exact_leaves: bool) -> int:
    from fpsim.backend.numba.watched import MAGNITUDES, MAGNITUDES_EXACT_LEAVES, SQUARES, SQUARES_EXACT_LEAVES

    return (MAGNITUDES, SQUARES, MAGNITUDES_EXACT_LEAVES, SQUARES_EXACT_LEAVES)[squares + 2 * exact_leaves]


def _excess(leaves: int, element: str) -> float:
    return (2 * leaves + 8) * (2.0**-23 if element == "f4" else 2.0**-52)


def _scheme(
    operand: Format, target: Format, rounding: Rounding, tree: Tree, exact_products: bool, squares: bool
) -> tuple[Scheme, int]:
    """The kernel's scheme, and its flags: magnitudes that might overflow are always watched."""
    from fpsim.backend.numba.sums_rounding import CAREFUL, CLAMP, TRACK

    chosen = scheme(operand, target, rounding, exact_products, tree.is_chains)
    wide = squares and (2 * target.emax > 126 or 2 * (target.emin - target.precision) < -126)
    if chosen.element == "f4" and (wide or tree.leaves > _MOST_SINGLE):
        chosen = _in_double(target, rounding, exact_products)
    watches = chosen.limit < np.inf and not chosen.flags & CAREFUL
    return chosen, chosen.flags | (CLAMP | TRACK if watches else 0)


def _in_double(target: Format, rounding: Rounding, exact_products: bool) -> Scheme:
    """A scheme in float64, which holds the squares too; to nearest even, where float32 would do, with magnitudes watched."""
    from fpsim.backend.numba.sums_rounding import EXACT_PRODUCTS

    if rounding is not Rounding.NEAREST_EVEN:
        return careful_scheme(target, rounding, exact_products)
    flags = EXACT_PRODUCTS if exact_products else 0
    return Scheme("f8", flags, constants(target, rounding, "f8"), 2.0**target.emax)
