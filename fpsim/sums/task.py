"""What a sum of products is, as one value, and where its stochastic draws come from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from fpsim.accumulation.accumulator import Accumulator, get_accumulator
from fpsim.accumulation.kinds import NATIVE
from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.numbers.computing import require_arithmetic
from fpsim.numbers.formats import FP32, Format, joined
from fpsim.numbers.names import get_system
from fpsim.numbers.rounding import Rounding, get_rounding, seed_key
from fpsim.numbers.splits import Split, find_split
from fpsim.numbers.system import NumberSystem


class Draws(NamedTuple):
    """Where stochastic draws come from: a key, and the row-major number of element (i, j) of the result."""

    key: int = 0
    first: int = 0
    row_step: int = 0
    column_step: int = 1

    @property
    def transposed(self) -> Draws:
        """Those of the transposed result."""
        return Draws(self.key, self.first, self.column_step, self.row_step)

    def with_key(self, key: int) -> Draws:
        """The same elements drawing by another key."""
        return Draws(key, self.first, self.row_step, self.column_step)

    def at(self, row: int, column: int = 0) -> Draws:
        """Those of the part of the result that begins there."""
        first = self.first + row * self.row_step + column * self.column_step
        return Draws(self.key, first, self.row_step, self.column_step)


@dataclass(frozen=True)
class Sum:
    """A sum of products: everything about it but the numbers.

    left, right   the number systems of the factors
    accumulator   how the products are added
    rounding      the mode of every rounding
    result        the system that the accumulated sum is rounded to, once
    split         the parts of the factors that are multiplied; None: the factors themselves

    `Sum.of` makes one; it finds what it has made before, with all that has been planned for it.
    """

    left: NumberSystem
    right: NumberSystem
    accumulator: Accumulator
    rounding: Rounding
    result: NumberSystem
    split: Split | None = None

    @staticmethod
    def of(
        operand: NumberSystem, accumulator: Accumulator, rounding: Rounding, result: NumberSystem | None = None,
        right: NumberSystem | None = None, split: Split | None = None,
    ) -> Sum:  # fmt: skip
        """The sum of products of `operand` values (and `right` ones, where those differ), rounded to `result`."""
        other, made = operand if right is None else right, operand if result is None else result
        objects = (operand, other, accumulator, rounding, made, split)
        key = tuple(map(id, objects))
        task = _made.get(key)
        if task is None:
            if len(_made) >= _MOST:
                _made.clear()
            task = _made[key] = Sum(*objects)
        return task

    @cached_property
    def operand(self) -> Format:
        """A format that holds the values of both."""
        left, right = self.left.enclosing, self.right.enclosing
        return left if left == right else joined(left, right)

    @property
    def target(self) -> Format:
        """What every addition rounds to."""
        return self.accumulator.format

    @cached_property
    def held(self) -> Format:
        """The format whose values the accumulated sum is; of an exact one, which has none, one that holds the result's."""
        return self.accumulator.held or self.result.enclosing

    @property
    def exact_products(self) -> bool:
        """Whether leaves are exact products."""
        return not self.accumulator.rounds_products

    @cached_property
    def transposed(self) -> Sum:
        """The same with its factors the other way round: products commute. Of a split that is the sum of parts alone."""
        assert self.split is None
        return self if self.left is self.right else Sum(self.right, self.left, self.accumulator, self.rounding, self.result)

    @cached_property
    def of_parts(self) -> Sum:
        """The sum of products of the factors' parts."""
        assert self.split is not None
        return Sum.of(self.split.enclosing, self.accumulator, self.rounding, self.result)

    @cached_property
    def of_terms(self) -> Sum:
        """The same where the terms are no products."""
        accumulator = self.accumulator.for_sums
        same = accumulator is self.accumulator
        return self if same else Sum.of(self.operand, accumulator, self.rounding, self.result)

    def rounded_to(self, result: NumberSystem) -> Sum:
        """The same sum rounded to another system."""
        return Sum.of(self.left, self.accumulator, self.rounding, result, self.right, self.split)

    def of_operands(self, operand: Format) -> Sum:
        """The same of operands of another format; what is wider than 11 bits accumulates in its own."""
        return Sum.of(operand, self.accumulator.widened(operand), self.rounding, self.result)

    def require_arithmetic(self) -> None:
        """Raise ValueError, naming the argument, unless these formats can be computed in."""
        _ = self._is_checked

    @cached_property
    def _is_checked(self) -> bool:
        if self.split is not None:
            require_addable(self.split, self.accumulator)
        for system in (self.left, self.right):  # to the result there is one rounding, which every system has
            require_arithmetic(system, self.rounding, "sum", "fmt")
        for fmt in self.accumulator.kind.computing_formats(self.accumulator, self.rounding):
            require_arithmetic(fmt, self.rounding, "accumulate", "accumulate")
        return True

    @cached_property
    def plans(self) -> dict[int, Any]:
        """What has been planned, by the number of leaves."""
        return {}

    @cached_property
    def along_axes(self) -> dict[np.dtype, Any]:
        """What has been planned of sums along axes, by the dtype of terms."""
        return {}


# By the identities of the objects, which the values keep alive: hashing formats and trees takes longer than small products.
_made: dict[tuple[int, ...], Sum] = {}
_MOST = 512


def require_addable(split: Split, accumulator: Accumulator) -> None:
    """Raise ValueError where the accumulator takes no products of the parts."""
    if accumulator.kind is NATIVE:
        raise ValueError(
            f"{split} adds products of parts one after the other, and accumulate='native' leaves that to the library; name "
            "what adds them, as accumulate='fp32', or in a mapping {..., 'product': 'fp32'}"
        )
    accumulator.require_operands(split.enclosing)


def read_settings(
    fmt: Any, accumulate: Any, rounding: Any, seed: int | None, multiplies: bool = False
) -> tuple[Sum, int]:
    """The sum behind fmt=, accumulate=, rounding= and seed= of a public function, and the key of its draws.

    What `multiplies` takes a split for fmt as well: fp32 numbers, multiplied in parts.

    Raises ValueError for unknown names, for a seed that is missing or has no use, and in flush-to-zero mode.
    """
    mode = get_rounding(rounding)
    key = seed_key(mode, seed)
    refuse_flush_to_zero()
    split = find_split(fmt) if multiplies else None
    return Sum.of(get_system(fmt) if split is None else FP32, get_accumulator(accumulate), mode, split=split), key
