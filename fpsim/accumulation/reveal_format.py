"""The format that a black box adds in, found beside its summation tree.

At every node of the tree a large term a meets a small one b, and what is left is told by a third leaf that takes a away again
farther out: b as it was if a + b had bits enough, 0 if not. b shrinks until it is lost: that is the precision. Two large terms
that meet overflow, or do not: that is the range.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fpsim.accumulation.trees import Tree
from fpsim.numbers.formats import FP64, Format, get_format

_LARGE = 14  # the exponent of a: no format of five bits or more of exponent overflows
_RANGES = ((15, 5), (31, 6), (63, 7), (127, 8))  # the largest exponent, and the bits that name it
_MOST_NODES = 32
_LEAST_OF_FLOAT16 = -24


def format_of_additions(function: Callable[[np.ndarray], Any], tree: Tree, dtype: np.dtype) -> Format:
    """The format whose additions, to nearest even, are those of the function at all the nodes that are probed (32 at most).

    Of float16 leaves no more than 39 bits and five bits of exponent can be told from more: then it is fp64, or eight bits.

    Raises ValueError where there is no leaf beside two that meet, for nodes of several terms (a hardware unit's), and for nodes
    that add in several formats, round toward zero or overflow below 2^15.
    """
    triples = _triples(tree)
    precisions = {_precision(function, triple, tree.leaves, dtype) for triple in triples}
    if len(precisions) > 1:
        raise ValueError(f"function: it adds with several precisions ({', '.join(sorted(map(str, precisions)))} bits)")
    (precision,) = precisions
    if precision is None:
        return FP64
    for exponent, bits in _RANGES:
        if 2.0**exponent > float(np.finfo(dtype).max):
            break
        large = 2.0**exponent
        if _answer(function, triples[0], tree.leaves, dtype, (large, large, -large)) != large:
            return get_format(f"e{bits}m{precision - 1}")
    return FP64 if precision == FP64.precision else get_format(f"e8m{precision - 1}")


def _triples(tree: Tree) -> list[tuple[int, int, int]]:
    """For nodes of the tree: a leaf of each of its two terms, and one that joins farther out."""
    met: list[tuple[np.ndarray, ...]] = []

    def meet(*terms: np.ndarray) -> np.ndarray:
        met.append(terms)
        return np.concatenate(terms)

    tree.evaluate([np.array([leaf]) for leaf in range(tree.leaves)], meet, zero=np.zeros(0, np.int64))
    met = [tuple(term for term in terms if len(term)) for terms in met]
    if any(len(terms) > 2 for terms in met):
        raise ValueError("function: it adds several terms at once, as hardware units do; compare it with those")
    triples = []
    for terms in (terms for terms in met if len(terms) == 2):
        outside = np.setdiff1d(np.arange(tree.leaves), np.concatenate(terms))
        if len(outside):
            triples.append((int(terms[0][0]), int(terms[1][0]), int(outside[0])))
    if not triples:
        raise ValueError(f"n={tree.leaves}: the format takes three leaves to tell")
    step = -(-len(triples) // _MOST_NODES)
    return triples[::step]


def _answer(
    function: Callable[[np.ndarray], Any], places: tuple[int, int, int], n: int, dtype: np.dtype, values: tuple[float, ...]
) -> float:
    leaves = np.zeros(n, dtype)
    leaves[list(places)] = values
    with np.errstate(all="ignore"):
        return float(function(leaves))


def _precision(
    function: Callable[[np.ndarray], Any], places: tuple[int, int, int], n: int, dtype: np.dtype
) -> int | None:
    """The bits of the sum of the first two leaves; None where there are more than can be told."""
    large, most = 2.0**_LARGE, _LARGE - _LEAST_OF_FLOAT16 if dtype == np.float16 else FP64.precision
    for bits in range(1, most + 1):
        small = 2.0 ** (_LARGE - bits)
        kept = _answer(function, places, n, dtype, (large, small, -large))
        if kept == 0:
            if bits + 1 <= most and _answer(function, places, n, dtype, (large, 1.5 * small, -large)) == 0:
                raise ValueError("function: it rounds toward zero, as no accumulator but a hardware unit does")
            return bits
        if kept != small:
            raise ValueError(f"function: {large} + {small} - {large} gave {kept}: it overflows below 2^15, or is no sum")
    return None
