"""Summation trees as data, in the encoding of `program`."""

from __future__ import annotations

import operator
from functools import cached_property
from typing import Any

import numpy as np

from fpsim.accumulation.drawing import svg, text
from fpsim.accumulation.forms import standard_steps
from fpsim.accumulation.heights import most_roundings
from fpsim.accumulation.program import ADD, CHAIN, FUSED, MAX_LEAVES, ZERO, Program
from fpsim.numbers.showing import html_table

_SHOWN_LEAVES, _DRAWN_LEAVES = 32, 256


class Tree(Program):
    """A summation tree, checked when it is made: every leaf used once, one value left on the stack.

    ``steps`` is a read-only int32 array in the encoding of `program`. Trees with equal steps are equal and hash
    alike; ``canonical()`` brings trees that make the same additions to the same steps.
    Raises ValueError naming the leaf that is missing or used twice, or the step that finds too few values.
    """

    @staticmethod
    def from_nested(nested: Any) -> Tree:
        """The tree written as nested tuples or lists of leaf numbers: ``((0, 1), (2, (3, 4)))``.

        A group of more than two is one fused node; ``()`` is the empty sum. A leaf that meets a group enters by a chain
        step after it (addition commutes). Raises ValueError for a group of one, TypeError for what is no integer.
        """
        return Tree(_flatten(nested))

    @cached_property
    def height(self) -> int:
        """The largest number of additions between a leaf and the root, those to a bare +0 (exact) not counted."""
        return most_roundings(self, True)

    def nested(self) -> Any:
        """The tree as nested tuples of leaf numbers; a start from +0 is left out. ``from_nested`` reads it back."""
        empty = ()

        def group(*terms: Any) -> Any:
            kept = tuple(term for term in terms if term != empty or isinstance(term, int))
            return kept if len(kept) > 1 else kept[0] if kept else empty

        return self.evaluate(range(self.leaves), group, zero=empty)

    def canonical(self) -> Tree:
        """The same additions as one standard program: two trees sum alike when their canonical forms are equal.

        Starts from +0 are left out, a leaf enters by a chain step after the group that it meets, and the group that
        needs more of the stack goes first (ties: the one with the smaller leaf), so that the stack stays within
        log2(n) + 1 values for binary trees. Rounded addition commutes, so values do not change; only the sign of a zero
        and stochastic draws may.
        """
        return Tree(standard_steps(self, start=False))

    def chains(self) -> Tree:
        """The same additions as chains from +0 (two leaves that meet become a chain of two), which `fma` can run.

        Raises ValueError if the tree has fused nodes.
        """
        return Tree(standard_steps(self, start=True))

    def draw(self) -> str:
        """The tree drawn as text, one line a leaf; see `fpsim.accumulation.drawing` for graphviz and matplotlib."""
        return text(self)

    def _repr_html_(self) -> str:
        return svg(self) if 0 < self.leaves <= _DRAWN_LEAVES else html_table("Tree", [], note=repr(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and np.array_equal(self.steps, other.steps)

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        return hash(self.steps.tobytes())

    def __reduce__(self) -> tuple[Any, ...]:
        return Tree, (self.steps,)

    def __repr__(self) -> str:
        return f"<Tree of {self.leaves} leaves, {self.nodes} additions>"

    def __str__(self) -> str:
        if self.leaves > _SHOWN_LEAVES:
            return repr(self)

        def written(*terms: str) -> str:
            return "(" + " + ".join(terms) + ")"

        return str(self.evaluate([f"x{leaf}" for leaf in range(self.leaves)], written, zero="+0"))


def _flatten(nested: Any) -> list[int]:
    """The program of nested tuples, without recursion: deep nesting is the usual case."""
    if _is_group(nested) and len(nested) == 0:
        return [ZERO]
    steps: list[int] = []
    agenda: list[tuple[bool, Any]] = [(False, nested)]  # (True, code) is emitted as it is
    while agenda:
        ready, item = agenda.pop()
        if ready:
            steps.append(item)
        elif not _is_group(item):
            steps.append(_leaf(item))
        elif len(item) < 2:
            raise ValueError(f"tree: a group must have two members or more, got {item!r}")
        elif len(item) > 2:
            agenda.append((True, FUSED - len(item)))
            agenda.extend((False, member) for member in reversed(item))
        else:
            left, right = item
            if _is_group(right) and not _is_group(left):
                left, right = right, left
            if _is_group(right):
                agenda.extend([(True, ADD), (False, right)])
            else:
                agenda.append((True, CHAIN - _leaf(right)))
            agenda.append((False, left))
    return steps


def _is_group(item: Any) -> bool:
    return isinstance(item, (tuple, list))


def _leaf(item: Any) -> int:
    if isinstance(item, bool):
        raise TypeError(f"tree: a leaf must be an integer, got {item!r}")
    try:
        leaf = operator.index(item)
    except TypeError:
        raise TypeError(f"tree: a leaf must be an integer, got {item!r}") from None
    if not 0 <= leaf < MAX_LEAVES:
        raise ValueError(f"tree: leaf {leaf} is outside 0 ... {MAX_LEAVES - 1}")
    return leaf
