"""Products that keep, for each element, a sum over its roundings that bounds its error (see `backend/numba/error_sums.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fpsim.backend import numba as kernels
from fpsim.backend.numba.sums_rounding import CAREFUL, CLAMP, EXACT_PRODUCTS, TRACK
from fpsim.numbers.rounding import Rounding
from fpsim.sums.batches import run_pairs
from fpsim.sums.orientation import is_turned
from fpsim.sums.packing import Panels
from fpsim.sums.plan import Plan, plan
from fpsim.sums.schemes import Scheme, careful_scheme, constants
from fpsim.sums.task import Draws, Sum
from fpsim.sums.tiles import Job

#: Leaves up to which sums of powers of two are kept in float32: they err by less than (leaves + 1) 2^-23 of themselves.
_MOST_SINGLE = 2**14


@dataclass(frozen=True)
class ErrorSum:
    """A product and, for each element, what its roundings add up to; `excess` bounds the relative error of that sum."""

    product: np.ndarray
    kept: np.ndarray
    excess: float

    @property
    def turned(self) -> ErrorSum:
        """That of the transposed product."""
        return ErrorSum(self.product.mT, self.kept.mT, self.excess)


@dataclass(frozen=True)
class Kept:
    """What is added up: ufp over the roundings, or with `squares` ufp^2, leaving out those of leaves known to be exact."""

    squares: bool = False
    exact_leaves: bool = False

    def code(self, exact_products: bool) -> int:
        """The number that stands for it inside kernels."""
        kept = kernels.error_sums
        choices = (kept.MAGNITUDES, kept.SQUARES, kept.MAGNITUDES_EXACT_LEAVES, kept.SQUARES_EXACT_LEAVES)
        return choices[self.squares + 2 * (self.exact_leaves or exact_products)]


class _KeepingJob(Job):
    """A job whose kernel keeps a number for each element, in `kept`."""

    kept: np.ndarray | None = None

    def _tallied(self, panels: Panels, out: np.ndarray) -> tuple[np.ndarray, ...]:
        if self.kept is None:
            self.kept = np.empty_like(out)
        return (self.kept.reshape(-1)[panels.first_column :],)


def error_sums(task: Sum, a: np.ndarray, b: np.ndarray, draws: Draws, kept: Kept) -> Iterator[ErrorSum]:
    """For each program of the plan the product as `trees.products` makes it, and `kept` for each element.

    It is infinite where a result overflowed or may have saturated.
    """
    if is_turned(task, a, b):
        for part in error_sums(task.transposed, b.T, a.T, draws.transposed, kept):
            yield part.turned
        return
    planned = plan(task, a.shape[1])
    (rows, leaves), columns = a.shape, b.shape[1]
    chosen, flags = _scheme(planned, kept)
    careful = planned.careful.scheme
    for lines in planned.programs:
        for scheme, its_flags in ((chosen, flags), (careful, careful.flags)):
            job = _job(planned, scheme, (rows, columns, leaves), draws, kept)
            product = job.run(*job.pack(a, b), lines, scheme, its_flags)
            if not job.overflowed:
                break
        assert job.kept is not None
        yield ErrorSum(product, job.kept[:rows, :columns], _excess(leaves, job.element))


def error_sums_of_stack(task: Sum, a: np.ndarray, b: np.ndarray, kept: Kept) -> ErrorSum | None:
    """`error_sums` of stacks (n, i, k) and (n, k, j) along one program, in one call of a kernel.

    None where something overflowed, draws are asked for or operands are not of the kernel's carrier: then one by one.
    """
    if is_turned(task, a, b):
        transposed = error_sums_of_stack(task.transposed, b.mT, a.mT, kept)
        return transposed and transposed.turned
    (_, rows, leaves), columns = a.shape, b.shape[2]
    planned = plan(task, leaves)
    chosen, flags = _scheme(planned, kept)
    if task.rounding is Rounding.STOCHASTIC or not a.dtype == b.dtype == chosen.dtype:
        return None
    job = _job(planned, chosen, (rows, columns, leaves), Draws(), kept)
    out, sums, overflowed = run_pairs(job, a, b, planned.programs[0], chosen, flags)
    return None if overflowed.any() else ErrorSum(out, sums, _excess(leaves, chosen.element))


def _job(planned: Plan, scheme: Scheme, shape: tuple[int, int, int], draws: Draws, kept: Kept) -> _KeepingJob:
    job = _KeepingJob(scheme.element, shape, planned.depth, planned.task.rounding, draws)
    job.observed = kept.code(planned.task.exact_products)
    return job


def _excess(leaves: int, element: str) -> float:
    return (2 * leaves + 8) * (2.0**-23 if element == "f4" else 2.0**-52)


def _scheme(planned: Plan, kept: Kept) -> tuple[Scheme, int]:
    """The kernel's scheme, and its flags: magnitudes that might overflow are always watched."""
    chosen, target = planned.scheme, planned.task.target
    wide = kept.squares and (2 * target.emax > 126 or 2 * (target.emin - target.precision) < -126)
    if chosen.element == "f4" and (wide or planned.leaves > _MOST_SINGLE):
        chosen = _in_double(planned.task)
    watches = chosen.limit < np.inf and not chosen.flags & CAREFUL
    return chosen, chosen.flags | (CLAMP | TRACK if watches else 0)


def _in_double(task: Sum) -> Scheme:
    """A scheme in float64, which holds the squares too; to nearest even, where float32 would do, with magnitudes watched."""
    target, rounding = task.target, task.rounding
    if rounding is not Rounding.NEAREST_EVEN:
        return careful_scheme(target, rounding, task.exact_products)
    flags = EXACT_PRODUCTS if task.exact_products else 0
    return Scheme("f8", flags, constants(target, rounding, "f8"), 2.0**target.emax)
