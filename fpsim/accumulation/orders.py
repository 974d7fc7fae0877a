"""Accumulation orders: functions from the number of terms n to a summation tree.

    sequential            s = +0, then s = rnd(s + leaf) for ascending k
    pairwise              adjacent pairs level by level; the left part is the largest power of two below n
    blocked(b)            blocks of b terms, each a chain from +0; the block sums chained from +0
    lanes(l)              l partial sums over k = j mod l, each a chain from +0, then ((s0 + s1) + s2) + ...
    lanes(l,pairwise)     the same partial sums, combined pairwise
    split(k)              k contiguous parts as equal as can be (the first ones longer), each a chain from +0, then
                          ((s0 + s1) + s2) + ...
    given(tree)           the tree itself, for its own number of terms only

n = 0 gives +0 in every order; parts without terms are left out. The sum is (+0) + tree, which matters where a sum of parts is
-0: fused products that underflow from below, and sums that are flushed. A chain from +0 (and one of blocks) starts with it.
"""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from fpsim.accumulation.program import ADD, CHAIN, MAX_LEAVES, ZERO
from fpsim.accumulation.trees import Tree

_COMBINATIONS = ("sequential", "pairwise")
_NESTED_HEIGHT = 50  # a parser of literals refuses much deeper parentheses


@dataclass(frozen=True)
class Order:
    """An accumulation order: a name, parameters, and by calling it with n the tree.

    ``str`` gives the text that `parse_order` reads.
    """

    name: str
    parameters: tuple[Any, ...] = ()

    def __call__(self, n: int) -> Tree:
        """The tree over n terms. Raises ValueError for a negative n, or one that a given tree does not have."""
        count = _whole(n, "n", least=0)
        if count > MAX_LEAVES:
            raise ValueError(f"n = {count}: at most {MAX_LEAVES} terms")
        return _tree(self, count)

    @property
    def is_chains(self) -> bool:
        """Whether every term enters by a chain step for every n, so that `fma` may be asked for."""
        if self.name == "given":
            return bool(self.parameters[0].is_chains)
        return self.name != "pairwise"

    @property
    def has_parts(self) -> bool:
        """Whether it is chains of parts whose sums are chained."""
        return self.name in ("blocked", "lanes", "split") and len(self.parameters) == 1

    @property
    def brief(self) -> str:
        """The text, but for a given tree its size."""
        return f"the given tree of {self.parameters[0].leaves} leaves" if self.name == "given" else str(self)

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        if self.name == "given":
            return f"given({_literal(self.parameters[0])})"
        return f"{self.name}({','.join(map(str, self.parameters))})"


def blocked(b: int) -> Order:
    """Contiguous blocks of b terms, the last one short. Raises ValueError unless b >= 1."""
    return Order("blocked", (_whole(b, "blocked(b): b"),))


def lanes(l: int, combination: str | Order = "sequential") -> Order:  # noqa: E741 - the documented name
    """l strided partial sums, combined one after the other or pairwise. Raises ValueError unless l >= 1."""
    count, how = _whole(l, "lanes(l): l"), str(combination)
    if how not in _COMBINATIONS:
        raise ValueError(f"lanes(l,combination): no combination {how!r}; there are {', '.join(_COMBINATIONS)}")
    return Order("lanes", (count,) if how == "sequential" else (count, how))


def split(k: int) -> Order:
    """k contiguous parts, as split-K products have them. Raises ValueError unless k >= 1."""
    return Order("split", (_whole(k, "split(k): k"),))


def given(tree: Any) -> Order:
    """The order of one tree (a Tree, nested tuples, or an array of steps), for as many terms as it has leaves."""
    if isinstance(tree, np.ndarray):
        tree = Tree(tree)
    return Order("given", (tree if isinstance(tree, Tree) else Tree.from_nested(tree),))


def parse_order(text: str) -> Order:
    """The order written as text. Raises ValueError repeating it and listing what there is."""
    name, parenthesis, rest = text.strip().partition("(")
    if not parenthesis and name in ("sequential", "pairwise"):
        return Order(name)
    makers: dict[str, Callable[..., Order]] = {"blocked": blocked, "lanes": lanes, "split": split}
    if name not in (*makers, "given") or not rest.endswith(")"):
        raise ValueError(f"unknown order {text!r}; there are {', '.join(ORDERS)}")
    if name == "given":
        return _given_literal(rest[:-1])
    make, arguments = makers[name], [part.strip() for part in rest[:-1].split(",")]
    if len(arguments) > (2 if make is lanes else 1) or not arguments[0].lstrip("+-").isdecimal():
        raise ValueError(f"order {text!r}: {name} takes one whole number" + " and a combination" * (make is lanes))
    try:
        return make(int(arguments[0]), *arguments[1:])
    except ValueError as error:
        raise ValueError(f"order {text!r}: {error}") from None


def _given_literal(text: str) -> Order:
    """A tuple is nested leaf numbers, a list is a program."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        raise ValueError(f"order 'given({text})': neither nested tuples of leaf numbers nor a list of steps") from None
    return given(Tree(value) if isinstance(value, list) else Tree.from_nested(value))


def _literal(tree: Tree) -> str:
    if tree.leaves and tree.height <= _NESTED_HEIGHT and Tree.from_nested(tree.nested()) == tree:
        return repr(tree.nested()).replace(" ", "")
    return repr(tree.steps.tolist()).replace(" ", "")


def _whole(value: Any, name: str, least: int = 1) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, (bool, np.bool_)) or number < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


@lru_cache(maxsize=64)
def _tree(order: Order, n: int) -> Tree:
    if order.name == "given":
        tree: Tree = order.parameters[0]
        if tree.leaves != n:
            raise ValueError(f"accumulate: the given tree has {tree.leaves} leaves, the sum has {n} terms")
        return tree
    if n == 0:
        return Tree([ZERO])
    return Tree(_BUILDERS[order.name](n, *order.parameters))


def _chain(first: int, last: int, stride: int = 1) -> np.ndarray:
    """The chain from +0 over the leaves first, first + stride ... below last."""
    leaves = np.arange(first, last, stride, dtype=np.int64)
    return np.concatenate([[ZERO], CHAIN - leaves])


def _sequential(n: int) -> np.ndarray:
    return _chain(0, n)


def _pairwise(n: int) -> np.ndarray:
    full = [np.array([0]), np.array([0, CHAIN - 1])]  # the programs of 1, 2, 4 ... leaves from leaf 0
    while 2 ** len(full) <= n:
        left = full[-1]
        full.append(np.concatenate([left, _shifted(left, 2 ** (len(full) - 1)), [ADD]]))
    parts, first = [], 0
    powers = [power for power in reversed(range(len(full))) if n >> power & 1]
    for power in powers:
        lone = power == 0 and len(powers) > 1  # a last odd leaf meets the group before it
        parts.append(np.array([CHAIN - first]) if lone else _shifted(full[power], first))
        first += 2**power
    parts.append(np.full(len(powers) - 1 - (powers[-1] == 0 and len(powers) > 1), ADD))
    return np.concatenate(parts)


def _shifted(steps: np.ndarray, first: int) -> np.ndarray:
    return np.where(steps >= 0, steps + first, np.where(steps <= CHAIN, steps - first, steps))


def _blocked(n: int, size: int) -> np.ndarray:
    whole = n // size
    body = np.empty((whole, size + 2), dtype=np.int64)
    body[:, 0] = ZERO
    body[:, 1:-1] = CHAIN - np.arange(whole * size).reshape(whole, size)
    body[:, -1] = ADD
    rest = [_chain(whole * size, n), [ADD]] if whole * size < n else []
    return np.concatenate([[ZERO], body.ravel(), *rest])


def _lanes(n: int, count: int, combination: str = "sequential") -> np.ndarray:
    used = min(n, count)
    chains = [_chain(lane, n, count) for lane in range(used)]
    if combination == "sequential":
        return _in_a_row(chains)
    parts: list[Any] = []
    for step in _pairwise(used).tolist():
        if step == ADD:
            parts.append([ADD])
        elif step >= 0:
            parts.append(chains[step])
        else:
            parts.extend([chains[CHAIN - step], [ADD]])
    return _added_to_zero(parts)


def _in_a_row(chains: list[np.ndarray]) -> np.ndarray:
    """((c0 + c1) + c2) + ..."""
    return _added_to_zero([chains[0], *(part for chain in chains[1:] for part in (chain, [ADD]))])


def _added_to_zero(parts: list[Any]) -> np.ndarray:
    """(+0) + tree, written out: the program of the parts starts from a +0 of its first part, which is not the sum's."""
    return np.concatenate([[ZERO], *parts, [ADD]])


def split_edges(n: int, count: int) -> list[int]:
    """Where the parts of split(count) over n terms begin and end: as equal as can be, the first ones longer."""
    used = max(1, min(n, count))
    size, longer = divmod(n, used)
    return [part * size + min(part, longer) for part in range(used + 1)]


def parts_of(order: Order, n: int) -> list[tuple[int, int, int]]:
    """Of an order with parts over n terms each part's first term, how many it has, and the step between them."""
    (number,) = order.parameters
    if order.name == "blocked":
        return [(first, min(number, n - first), 1) for first in range(0, n, number)]
    if order.name == "lanes":
        return [(lane, len(range(lane, n, number)), number) for lane in range(min(n, number))]
    return [(first, last - first, 1) for first, last in itertools.pairwise(split_edges(n, number)) if first < last]


def _split(n: int, count: int) -> np.ndarray:
    chains = [_chain(first, last) for first, last in itertools.pairwise(split_edges(n, count))]
    return _in_a_row(chains)


_BUILDERS: dict[str, Callable[..., np.ndarray]] = {
    "sequential": _sequential,
    "pairwise": _pairwise,
    "blocked": _blocked,
    "lanes": _lanes,
    "split": _split,
}
ORDERS = ("sequential", "pairwise", "blocked(b)", "lanes(l)", "lanes(l,pairwise)", "split(k)", "given(tree)")
sequential = Order("sequential")
pairwise = Order("pairwise")
