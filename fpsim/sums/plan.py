"""What is decided about a sum of so many terms before its numbers are seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from math import inf

import numpy as np

from fpsim.accumulation.kinds import PARTS, TREE
from fpsim.accumulation.orders import sequential
from fpsim.accumulation.trees import Tree
from fpsim.backend.numba.sums_rounding import CAREFUL, CLAMP, FORMAT_IS_CARRIER, TRACK, TRACK_SUMS, shows_overflow
from fpsim.numbers.computing import is_full
from fpsim.numbers.formats import Format
from fpsim.numbers.rounding import Rounding
from fpsim.sums.programs import additions, leaves_of, part_programs, program
from fpsim.sums.schemes import Scheme, careful_scheme, overflow_scheme, scheme
from fpsim.sums.task import Sum

_NEAREST = (Rounding.NEAREST_EVEN, Rounding.NEAREST_AWAY)
_NO_LINES = np.zeros((1, 5), dtype=np.int64)
_MOST_PLANS = 128  # of one sum


@dataclass(frozen=True)
class Plan:
    """How tiles of products are computed: a scheme, and what decides which further flags the operands call for.

    `tree` bounds the partial sums and the stacks of all programs.
    """

    task: Sum
    leaves: int
    tree: Tree
    scheme: Scheme
    overflow: Scheme  # for the parts that pass the limit
    growth: float  # no partial sum exceeds this times the sum of the leaves' magnitudes
    is_usual: bool  # the commonest case, for which there is a kernel for each set of flags
    clamp: int  # the flag for products that may lie below the format's normal numbers
    watch_sums: int  # that for sums that may reach the limit
    watch: int  # that for leaves or sums that may

    @cached_property
    def programs(self) -> list[np.ndarray]:
        """A program for each result: one, or one for each part. Raises ValueError for nodes of more than two terms."""
        accumulator = self.task.accumulator
        if accumulator.kind is PARTS:
            return part_programs(accumulator, self.leaves)
        return [program(self.tree)] if accumulator.kind is TREE else [_NO_LINES]

    @cached_property
    def tallied(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """For each program how many additions it makes, which leaves its chains add, and which leaves it has."""
        return [(additions(lines), *leaves_of(lines, self.leaves)) for lines in self.programs]

    @cached_property
    def careful(self) -> Plan:
        """The same by the kernel that looks after everything."""
        task = self.task
        chosen = careful_scheme(task.target, task.rounding, task.exact_products)
        return replace(self, scheme=chosen, overflow=chosen)

    @cached_property
    def is_binary(self) -> bool:
        """Whether every node adds two terms."""
        return self.tree.is_binary

    @cached_property
    def depth(self) -> int:
        """How many partial sums a kernel keeps at once."""
        return self.tree.depth + 1

    @cached_property
    def is_one_chain(self) -> bool:
        """Whether there is one program, a chain from +0 in ascending order."""
        return self.task.accumulator.kind is TREE and self.tree.is_one_chain

    @cached_property
    def is_float32_chains(self) -> bool:
        """Whether programs are chains of float32's own additions."""
        is_float32 = bool(self.scheme.flags & FORMAT_IS_CARRIER) and self.scheme.element == "f4"
        return is_float32 and self.tree.is_chains and self.leaves > 0

    def flags(self, terms: float, rows: int, extents: Callable[[], tuple[float, float]]) -> int:
        """The scheme's flags and those that `extents_of_products` of the operands call for, in sums of so many terms."""
        flags, limit = self.scheme.flags, self.scheme.limit
        if limit == inf:
            return flags  # the carrier's own or careful: nothing to watch
        if rows <= 4:
            return flags | self.clamp | self.watch  # looking through the matrix would cost as much as it saves
        highs, lows = extents()
        target = self.task.target
        # Each set of flags is a kernel to compile: the fullest choice is for the commonest case alone.
        if not (self.is_usual and lows >= target.min_normal):
            flags |= self.clamp
        leaf = highs * (1 + 2 * target.unit_roundoff) + target.min_normal
        if not self.growth * terms * leaf < limit:
            flags |= self.clamp | (self.watch_sums if self.is_usual and leaf < limit else self.watch)
        return flags


class CompensatedPlan(Plan):
    """A plan for sums whose kernels always look at magnitudes."""

    def flags(self, terms: float, rows: int, extents: Callable[[], tuple[float, float]]) -> int:
        flags, target = self.scheme.flags, self.task.target
        if flags & FORMAT_IS_CARRIER:
            return FORMAT_IS_CARRIER  # a product that is exact needs no fused addition
        if flags & CAREFUL:
            return flags
        leaf = extents()[0] * (1 + 2 * target.unit_roundoff) + target.min_normal
        return flags | self.clamp | (self.watch_sums if leaf < self.scheme.limit else self.watch)


def plan(task: Sum, leaves: int) -> Plan:
    """The plan for so many leaves of a tree, of parts or of a compensated sum; ValueError for formats that cannot compute."""
    planned: Plan | None = task.plans.get(leaves)
    if planned is None:
        task.require_arithmetic()
        if len(task.plans) >= _MOST_PLANS:
            task.plans.clear()
        planned = task.plans[leaves] = _make(task, leaves)
    return planned


def _make(task: Sum, leaves: int) -> Plan:
    target, rounding, exact = task.target, task.rounding, task.exact_products
    compensated = task.accumulator.kind not in (TREE, PARTS)
    tree = task.accumulator(leaves) if task.accumulator.kind is TREE else sequential(leaves)
    chosen = scheme(task.operand, target, rounding, exact, tree.is_chains and not compensated)
    if compensated:
        beyond, watch = careful_scheme(target, rounding, exact), TRACK
    else:
        beyond = overflow_scheme(task.operand, target, rounding, exact, chosen)
        # A leaf is the difference of two sums of its chain: where those stay below the limit, it stays below twice that.
        by_sums = tree.is_chains and is_full(target) and shows_overflow(rounding.code, chosen.flags)
        watch = TRACK_SUMS if by_sums else TRACK
    is_usual = chosen.element == "f4" and rounding is Rounding.NEAREST_EVEN and not chosen.flags
    kind = CompensatedPlan if compensated else Plan
    return kind(task, leaves, tree, chosen, beyond, growth(tree, target, rounding), is_usual, CLAMP, TRACK_SUMS, watch)


def growth(tree: Tree, target: Format, rounding: Rounding) -> float:
    """A factor g: no partial sum exceeds g times the sum of the leaves' magnitudes (inf where none is known).

    A nearest rounding moves a + b by no more than |b|, a being a value of the format; any rounding grows a sum by at most
    1 + 2u. Limits lie a binade below overflow, which is more than what the roundings here lose.
    """
    with np.errstate(over="ignore"):
        relative = float(np.exp(_height(tree) * np.log1p(2.0 * target.unit_roundoff)))
    return min(2.0, relative) if tree.is_one_chain and rounding in _NEAREST else relative


@lru_cache(maxsize=128)
def _height(tree: Tree) -> int:
    return tree.height
