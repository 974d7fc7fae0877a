"""The program of a summation tree: which additions are made, in which order.

A tree over the leaves 0 ... n-1 is held as its program, a list of integers executed from left to right on a stack:

    v >= 0                  push leaf v
    v == ADD (-1)           pop right, pop left, push rounded(left + right)
    v == ZERO (-2)          push +0
    v <= CHAIN (-3)         top = rounded(top + leaf(CHAIN - v)), the step of a chain
    v <= FUSED - 3          pop m = FUSED - v values, push their exact sum rounded once (a multi-term node)

The one value left on the stack is the tree's; unless the program starts from +0, the sum is that added to +0. Additions
are numbered from 0 in program order, which is post-order; an engine that draws random numbers uses the number as the
step. What a leaf is (a rounded product, an exact one) is the accumulator's affair.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

ADD = -1
ZERO = -2
CHAIN = -3
FUSED = -(2**30)  # leaves stay below 2^30 - 3, so that chain steps and fused nodes cannot be confused
MAX_LEAVES = 2**30 - 3


@dataclass(frozen=True, eq=False, repr=False)
class Program:
    """The steps of a tree, checked when it is made: every leaf used once, one value left on the stack.

    Raises ValueError naming the leaf that is missing or used twice, or the step that finds too few values.
    """

    steps: np.ndarray
    leaves: int = field(init=False)
    depth: int = field(init=False)

    def __init__(self, steps: Iterable[int] | np.ndarray, leaves: int | None = None) -> None:
        program = _as_program(steps)
        program.setflags(write=False)
        object.__setattr__(self, "steps", program)
        object.__setattr__(self, "depth", _check_stack(program))
        object.__setattr__(self, "leaves", _check_leaves(leaf_numbers(program)))
        if leaves is not None and leaves != self.leaves:
            raise ValueError(f"tree: the steps use {self.leaves} leaves, {leaves} were announced")

    @property
    def nodes(self) -> int:
        """How many additions the program makes, those to a bare +0 included."""
        return int(np.count_nonzero((self.steps == ADD) | (self.steps <= CHAIN)))

    @cached_property
    def is_binary(self) -> bool:
        """Whether every addition has two operands (no fused nodes)."""
        return not bool(np.any(self.steps < FUSED))

    @cached_property
    def is_chains(self) -> bool:
        """Whether every leaf enters by a chain step, so that a fused multiply-add can take it in."""
        return self.is_binary and not bool(np.any(self.steps >= 0))

    @cached_property
    def is_one_chain(self) -> bool:
        """Whether the sum is (+0), then one leaf after another."""
        return bool(self.steps[0] == ZERO) and self.is_chains and not bool(np.any(self.steps == ADD))

    def evaluate(self, leaves: Sequence[Any], add: Callable[..., Any], zero: Any = 0) -> Any:
        """The value of the tree with every addition made by ``add(left, right)``; fused nodes pass all their terms.

        Works for any kind of value (Fractions, floats, text). ``zero`` is what a chain starts from.
        Raises ValueError for another number of leaves than the tree has.
        """
        if len(leaves) != self.leaves:
            raise ValueError(f"leaves: the tree has {self.leaves}, {len(leaves)} were given")
        stack: list[Any] = []
        for step in self.steps.tolist():
            if step >= 0:
                stack.append(leaves[step])
            elif step == ADD:
                right = stack.pop()
                stack[-1] = add(stack[-1], right)
            elif step == ZERO:
                stack.append(zero)
            elif step > FUSED:
                stack[-1] = add(stack[-1], leaves[CHAIN - step])
            else:
                count = FUSED - step
                terms = stack[-count:]
                del stack[-count:]
                stack.append(add(*terms))
        return stack[0]


def leaf_numbers(steps: np.ndarray) -> np.ndarray:
    """The leaves that a program uses, in program order."""
    chained = (steps <= CHAIN) & (steps > FUSED)
    return np.where(chained, CHAIN - steps, steps)[chained | (steps >= 0)]


def _as_program(steps: Iterable[int] | np.ndarray) -> np.ndarray:
    if not isinstance(steps, np.ndarray):
        steps = np.array([operator.index(step) for step in steps], dtype=np.int64)
    if steps.ndim != 1 or steps.dtype.kind not in "iu":
        raise ValueError(f"tree: steps must be a 1-D array of integers, not {steps.ndim}-D {steps.dtype}")
    if steps.size == 0:
        raise ValueError(f"tree: no steps; the empty sum is [{ZERO}]")
    if int(steps.max()) >= MAX_LEAVES or int(steps.min()) < np.iinfo(np.int32).min:
        raise ValueError(f"tree: steps lie outside the encoding (at most {MAX_LEAVES} leaves)")
    small = (steps <= FUSED) & (steps > FUSED - 3)
    if small.any():
        raise ValueError(f"tree: step {int(np.argmax(small))} is a fused node of fewer than three terms")
    return steps.astype(np.int32)


def _check_stack(steps: np.ndarray) -> int:
    """The number of stack slots that a program needs; ValueError where it finds too few values or leaves several."""
    change = np.zeros(steps.size, dtype=np.int64)
    change[(steps >= 0) | (steps == ZERO)] = 1
    change[steps == ADD] = -1
    fused = steps < FUSED
    change[fused] = 1 - (FUSED - steps[fused].astype(np.int64))
    height = np.cumsum(change)
    short = height < 1  # every step leaves its result, so fewer than one value means that its operands were missing
    if short.any():
        index = int(np.argmax(short))
        available = int(height[index - 1]) if index else 0
        raise ValueError(f"tree: step {index} (code {int(steps[index])}) finds too few values on the stack: {available}")
    if height[-1] != 1:
        raise ValueError(f"tree: the steps leave {int(height[-1])} values on the stack, not one")
    return int(height.max())


def _check_leaves(used: np.ndarray) -> int:
    ordered = np.sort(used)
    twice = np.flatnonzero(ordered[1:] == ordered[:-1])
    if twice.size:
        raise ValueError(f"tree: leaf {int(ordered[twice[0]])} is used more than once")
    expected = np.arange(ordered.size)
    if not np.array_equal(ordered, expected):
        missing = int(np.argmax(ordered != expected))
        raise ValueError(f"tree: leaf {missing} is missing (the largest leaf is {int(ordered[-1])})")
    return int(ordered.size)
