"""Laws of summation trees and of the orders that make them."""

import pickle
import time
from fractions import Fraction
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from fpsim.accumulation import Order, Tree, blocked, drawing, lanes, orders, pairwise, parse_order, sequential, split
from fpsim.accumulation.trees import ADD, CHAIN, FUSED, ZERO
from tests.strategies import nested_trees

ORDERS = [sequential, pairwise, blocked(1), blocked(3), blocked(64), lanes(1), lanes(3), lanes(8), lanes(4, "pairwise")]
ORDERS += [split(1), split(3), split(8)]
SIZES = [*range(20), 31, 32, 33, 100, 257]


def text_of(tree):
    return tree.evaluate([str(leaf) for leaf in range(tree.leaves)], lambda *terms: f"({'+'.join(terms)})", zero="0")


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_orders_sum_every_leaf_once(order):
    for n in SIZES:
        tree = order(n)
        assert tree.leaves == n
        assert tree.is_binary
        assert tree.evaluate([Fraction(1, k + 1) for k in range(n)], add) == sum(Fraction(1, k + 1) for k in range(n))
        assert order(n) == tree and hash(order(n)) == hash(tree)
        assert tree.is_chains or not order.is_chains


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_orders_round_trip_as_text(order):
    assert parse_order(str(order)) == order
    for n in (0, 1, 2, 7, 130):
        assert parse_order(str(orders.given(order(n)))) == orders.given(order(n))


@pytest.mark.parametrize(
    "order, n, text",
    [
        (sequential, 0, "0"),
        (sequential, 3, "(((0+0)+1)+2)"),
        (pairwise, 1, "0"),
        (pairwise, 5, "(((0+1)+(2+3))+4)"),
        (pairwise, 7, "(((0+1)+(2+3))+((4+5)+6))"),
        (blocked(2), 5, "(((0+((0+0)+1))+((0+2)+3))+(0+4))"),
        (lanes(3), 5, "(0+((((0+0)+3)+((0+1)+4))+(0+2)))"),
        (lanes(4), 2, "(0+((0+0)+(0+1)))"),
        (lanes(4, "pairwise"), 4, "(0+(((0+0)+(0+1))+((0+2)+(0+3))))"),
        (split(3), 7, "(0+(((((0+0)+1)+2)+((0+3)+4))+((0+5)+6)))"),
        (split(3), 2, "(0+((0+0)+(0+1)))"),
    ],
    ids=str,
)
def test_groupings(order, n, text):
    assert text_of(order(n)) == text


def pairwise_by_levels(n):
    """The definition: adjacent pairs level by level, an odd last element passes up unchanged."""
    level = [str(leaf) for leaf in range(n)]
    while len(level) > 1:
        pairs = [f"({a}+{b})" for a, b in zip(level[::2], level[1::2], strict=False)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


def test_pairwise_is_adjacent_pairs_level_by_level():
    for n in range(1, 140):
        assert text_of(pairwise(n)) == pairwise_by_levels(n)
        assert pairwise(n) == pairwise(n).canonical()
        assert pairwise(n).height == (n - 1).bit_length()


def test_heights():
    assert [order(1000).height for order in (sequential, pairwise, blocked(10), lanes(8), split(4))] == [
        999, 10, 9 + 99, 124 + 7, 249 + 3
    ]  # fmt: skip
    assert sequential(0).height == sequential(1).height == 0
    assert sequential(1000).depth == 1
    assert blocked(10)(1000).depth == 2


def test_a_million_leaves_are_built_at_once():
    for order in (sequential, pairwise, blocked(64), lanes(8), lanes(1000, "pairwise"), split(31)):
        started = time.perf_counter()
        assert order(1_000_003).leaves == 1_000_003
        assert time.perf_counter() - started < 1
    assert Tree(sequential(1_000_000).steps).nodes == 1_000_000


@given(nested_trees())
def test_nested_round_trip(nested):
    tree = Tree.from_nested(nested)
    assert Tree.from_nested(tree.nested()) == tree
    leaves = [Fraction(1, leaf + 1) for leaf in range(tree.leaves)]
    assert tree.evaluate(leaves, lambda *terms: sum(terms)) == sum(leaves)
    assert parse_order(str(orders.given(tree))) == orders.given(tree)
    assert pickle.loads(pickle.dumps(tree)) == tree


def shape_of(nested):
    """A tree up to the order of a node's members."""
    return nested if isinstance(nested, int) else frozenset(shape_of(member) for member in nested)


@given(nested_trees(), st.randoms(use_true_random=False))
def test_canonical_form_tells_which_additions_are_made(nested, random):
    tree = Tree.from_nested(nested)

    def shuffled(item):
        return item if isinstance(item, int) else tuple(map(shuffled, random.sample(item, len(item))))

    canonical = tree.canonical()
    assert shape_of(canonical.nested()) == shape_of(nested)
    assert Tree.from_nested(shuffled(nested)).canonical() == canonical == canonical.canonical()
    if tree.is_binary:
        assert canonical.depth <= tree.leaves.bit_length()
        chains = tree.chains()
        assert chains.is_chains and chains.canonical() == canonical
        assert chains.height == tree.height


def test_deep_nesting_needs_no_recursion():
    nested = 0
    for leaf in range(1, 20_000):
        nested = (leaf, nested)
    tree = Tree.from_nested(nested)
    assert tree.height == 19_999 and tree.depth == 1
    assert tree.canonical() == sequential(20_000).canonical()
    assert hash(tree.canonical()) == hash(sequential(20_000).canonical())


@pytest.mark.parametrize(
    "steps, message",
    [
        ([], "no steps"),
        ([0, 1], "leave 2 values"),
        ([0, ADD], "step 1 .* too few values"),
        ([CHAIN], "step 0 .* too few values"),
        ([ADD, 0, 1], "step 0"),
        ([0, 1, FUSED - 3], "step 2 .* too few values"),
        ([0, 1, FUSED - 2], "step 2 is a fused node of fewer than three"),
        ([0, 1, ADD, 1, ADD], "leaf 1 is used more than once"),
        ([0, CHAIN - 2], "leaf 1 is missing"),
        ([2**30], "outside the encoding"),
        ([[0]], "object|integer|1-D"),
    ],
)
def test_bad_programs(steps, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Tree(steps)


def test_other_bad_trees():
    with pytest.raises(ValueError, match="1-D array of integers"):
        Tree(np.zeros(3))
    with pytest.raises(ValueError, match="use 2 leaves, 3 were announced"):
        Tree([0, CHAIN - 1], leaves=3)
    with pytest.raises(ValueError, match="two members or more"):
        Tree.from_nested(((0,), 1))
    for wrong in ((0, 1.0), (0, "1"), (False, 1), (0, None)):
        with pytest.raises(TypeError, match="must be an integer"):
            Tree.from_nested(wrong)
    with pytest.raises(ValueError, match="leaf -1 is outside"):
        Tree.from_nested((0, -1))
    with pytest.raises(ValueError, match="leaf 1 is used more than once"):
        Tree.from_nested(((0, 1), 1))
    with pytest.raises(ValueError, match="the tree has 3, 2 were given"):
        sequential(3).evaluate([1, 2], add)
    with pytest.raises(ValueError, match="fused nodes"):
        Tree.from_nested((0, 1, 2)).chains()


def test_a_tree_cannot_be_changed():
    tree = pairwise(4)
    with pytest.raises(ValueError, match="read-only"):
        tree.steps[0] = 3
    with pytest.raises(AttributeError):
        tree.leaves = 3
    steps = np.array([0, CHAIN - 1])
    made = Tree(steps)
    steps[0] = 5
    assert made.leaves == 2 and made == pairwise(2)


@pytest.mark.parametrize("make", [blocked, lanes, split], ids=lambda make: make.__name__)
@pytest.mark.parametrize("parameter", [0, -3, 2.0, "4", None, True])
def test_bad_parameters(make, parameter):
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        make(parameter)


def test_bad_orders():
    for n in (-1, 2.0, None):
        with pytest.raises(ValueError, match="n must be a whole number of at least 0"):
            sequential(n)
    with pytest.raises(ValueError, match="has 3 leaves, the sum has 4 terms"):
        orders.given(((0, 1), 2))(4)
    with pytest.raises(ValueError, match="no combination 'sideways'; there are sequential, pairwise"):
        lanes(4, "sideways")
    wrong = ["zigzag", "pairwise(3)", "blocked", "blocked(", "blocked(3", "lanes(2,pairwise,3)", "split(a)"]
    for text in [*wrong, "given((0,"]:
        with pytest.raises(ValueError) as raised:
            parse_order(text)
        assert text in str(raised.value)
    assert isinstance(lanes(np.int64(4)), Order)


def test_printing_and_drawing():
    tree = Tree.from_nested(((0, 1), (2, 3, 4)))
    assert str(tree) == "((x0 + x1) + (x2 + x3 + x4))"
    assert repr(sequential(10_000)) == str(sequential(10_000)) == "<Tree of 10000 leaves, 10000 additions>"
    assert str(Tree([ZERO])) == Tree([ZERO]).draw() == "+0"
    assert tree.draw().splitlines() == [
        "+", "├─ +", "│  ├─ x0", "│  └─ x1", "└─ + (3 fused)", "   ├─ x2", "   ├─ x3", "   └─ x4"
    ]  # fmt: skip
    source = drawing.graphviz(tree)
    assert source.count("->") == 7 and source.startswith("digraph") and source.count("doublecircle") == 1
    for empty in (Tree([ZERO]), pairwise(1)):
        assert "->" not in drawing.graphviz(empty)
    with pytest.raises(ValueError, match="too many to draw"):
        sequential(5000).draw()


def test_plotting():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    for tree in (Tree.from_nested(((0, 1), (2, 3, 4))), pairwise(1), sequential(0), blocked(3)(20)):
        axes = drawing.plot(tree)
        assert len(axes.lines) == drawing.graphviz(tree).count("->")
        matplotlib.pyplot.close(axes.figure)


@settings(max_examples=50)
@given(st.integers(0, 300), st.integers(1, 40))
def test_parts_of_parametrized_orders(n, parameter):
    parts = [list(part) for part in np.array_split(np.arange(n), parameter) if len(part)]
    assert _parts(split(parameter)(n), n) == parts
    assert _parts(lanes(parameter)(n), n) == [list(range(n))[j::parameter] for j in range(min(n, parameter))]
    assert _parts(blocked(parameter)(n), n) == [list(range(n))[j : j + parameter] for j in range(0, n, parameter)]


def _parts(tree, n):
    """The leaves of each chain from +0 that has any."""
    parts = []
    for step in tree.steps.tolist():
        if step == ZERO:
            parts.append([])
        elif step <= CHAIN:
            parts[-1].append(CHAIN - step)
    return [part for part in parts if part]
