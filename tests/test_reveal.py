"""Trees revealed from black boxes: known ones, and libraries whose results are then replayed bit for bit."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.accumulation import (
    Accumulator,
    Tree,
    blocked,
    lanes,
    matmul_function,
    pairwise,
    reveal,
    sequential,
    split,
)  # fmt: skip
from fpsim.accumulation.reveal import tree_of_survivors
from tests.test_trees import nested_trees

SIZES = [0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 100, 127, 128, 129, 136, 200, 257, 1000]


def box_of(tree):
    """A sum along the tree that absorbs what is small beside the mask, fused nodes included."""

    def function(leaves):
        largest = np.max(np.abs(leaves), initial=0)

        def add(*terms):
            large = [term for term in terms if abs(term) == largest]
            return sum(large) if large else sum(terms)

        return tree.evaluate(leaves.tolist(), add)

    return function


class Counted:
    """A function that counts its calls."""

    def __init__(self, function):
        self.function, self.calls = function, 0

    def __call__(self, leaves):
        self.calls += 1
        return self.function(leaves)


@settings(max_examples=60, deadline=None)
@given(nested_trees(most=30), st.sampled_from([None, 1, 2, 3, 7, 16]))
def test_any_tree_is_found_whatever_its_outputs_count_to(nested, most):
    tree = Tree.from_nested(nested)
    assert reveal(box_of(tree), tree.leaves, largest_count=most) == tree.canonical()


@pytest.mark.parametrize("order", [sequential, pairwise, blocked(16), lanes(8, "pairwise"), split(4)], ids=str)
@pytest.mark.parametrize("most", [None, 16])
def test_orders_are_found(order, most):
    for n in (0, 1, 2, 5, 64, 150):
        tree = order(n)
        counted = Counted(box_of(tree))
        assert reveal(counted, n, largest_count=most) == tree.canonical()
        assert counted.calls < 16 + 3 * n * (n + 1).bit_length()


def test_a_reversed_chain_takes_no_quadratic_time():
    steps = sequential(400).steps
    tree = Tree(np.concatenate([steps[:1], steps[:0:-1]]))
    counted = Counted(box_of(tree))
    assert reveal(counted, 400) == tree.canonical()
    assert counted.calls < 4000


def samples(random, n, dtype):
    """Rows of n leaves over a wide range, cancellation included."""
    scale = 2.0 ** random.integers(-6, 7, (16, n))
    return (random.standard_normal((16, n)) * scale).astype(dtype)


@pytest.mark.parametrize("n", SIZES)
def test_numpy_float32_sum(n):
    tree = reveal(np.sum, n)
    rows = samples(np.random.default_rng(n), n, np.float32)
    want = np.array([np.sum(row) for row in rows])
    got = fpsim.sum(rows, 1, fmt="fp32", accumulate=tree)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
    if n < 8:
        assert tree == sequential(n).canonical()


@pytest.mark.parametrize("n", SIZES)
def test_numpy_float16_sum_along_the_first_axis(n):
    def function(leaves):
        return np.stack([leaves, leaves], axis=1).sum(axis=0)[0]

    tree = reveal(function, n, dtype=np.float16)
    assert tree == sequential(n).canonical()
    columns = samples(np.random.default_rng(n), n, np.float16).T.copy()
    got = fpsim.sum(columns, 0, fmt="fp16", accumulate=Accumulator(format="fp16", order=tree))
    assert np.array_equal(got.view(np.uint16), columns.sum(axis=0).view(np.uint16))


@pytest.mark.parametrize("n", [5, 64, 300])
def test_numpy_float16_sum_along_the_last_axis(n):
    """float32 inside, one rounding."""
    tree = reveal(np.sum, n, dtype=np.float16)
    rows = samples(np.random.default_rng(n), n, np.float16)
    got = fpsim.sum(rows, 1, fmt="fp16", accumulate=tree)
    assert np.array_equal(got.view(np.uint16), rows.sum(axis=1).view(np.uint16))


@pytest.mark.parametrize("n", [*SIZES, 2049])
def test_torch_float32_sum(n):
    tree = reveal(lambda leaves: torch.from_numpy(leaves).sum().item(), n)
    rows = samples(np.random.default_rng(n), n, np.float32)
    want = np.array([torch.from_numpy(row).sum().item() for row in rows], dtype=np.float32)
    got = fpsim.sum(rows, 1, fmt="fp32", accumulate=tree)
    assert np.array_equal(got.view(np.uint32), want.view(np.uint32))


@pytest.mark.parametrize("n", [1, 2, 8, 33, 192, 193, 400, 1000])
def test_torch_float32_matmul(n):
    """Chains of fused multiply-adds, whose sums are then added, if this processor has them; else chains."""
    rows, columns, row, column = 8, 16, 3, 5
    function = matmul_function(
        torch.matmul, n, rows=rows, columns=columns, row=row, column=column, convert=torch.from_numpy
    )
    tree = reveal(function, n)
    random = np.random.default_rng(n)
    left, right = samples(random, n, np.float32), samples(random, n, np.float32)
    want = []
    for a_row, b_column in zip(left, right, strict=True):
        a, b = random.standard_normal((rows, n), np.float32), random.standard_normal((n, columns), np.float32)
        a[row], b[:, column] = a_row, b_column
        want.append(torch.matmul(torch.from_numpy(a), torch.from_numpy(b))[row, column].item())
    replays = []
    for products in ("fma", "rounded"):
        accumulator = Accumulator(order=tree.chains(), products=products)
        replays.append(np.diagonal(fpsim.matmul(left, right.T, fmt="fp32", accumulate=accumulator)).tolist())
    assert want in replays


@pytest.mark.parametrize("n", [4, 31, 64, 200, 600])
def test_numpy_float16_matmul(n):
    """A sequential chain in float32, one rounding."""
    function = matmul_function(np.matmul, n, rows=2, columns=3, row=1, column=2, dtype=np.float16)
    tree = reveal(function, n, dtype=np.float16)
    random = np.random.default_rng(n)
    a, b = samples(random, n, np.float16)[:2].copy(), samples(random, n, np.float16)[:3].T.copy()
    got = fpsim.matmul(a, b, fmt="fp16", accumulate=tree)
    assert np.array_equal(got.view(np.uint16), np.matmul(a, b).view(np.uint16))


@pytest.mark.parametrize("name, most", [("float16", 2048), ("bfloat16", 256)])
@pytest.mark.parametrize("n", [8, 100, 300, 500])
def test_torch_16_bit_matmuls(name, most, n):
    """Outputs that count to 2048 and 256 only; inside, exact products added in float32, one rounding."""
    dtype, holder = getattr(torch, name), np.float16 if name == "float16" else np.float32
    function = matmul_function(
        torch.matmul, n, rows=2, columns=2, dtype=holder, convert=lambda x: torch.from_numpy(x).to(dtype)
    )
    tree = reveal(function, n, dtype=holder, largest_count=most)
    random = np.random.default_rng(n)
    left, right = (torch.from_numpy(samples(random, n, np.float32)).to(dtype) for _ in range(2))
    want = [torch.matmul(left[[i, 0]], right[[i, 1]].T)[0, 0].item() for i in range(len(left))]
    got = torch.diagonal(fpsim.matmul(left, right.T, fmt=dtype, accumulate=tree)).tolist()
    assert got == want


def test_what_is_no_sum_is_refused():
    random = np.random.default_rng(0)

    def shuffled(leaves):
        return sequential(len(leaves)).evaluate(random.permutation(leaves), lambda a, b: np.float32(a) + np.float32(b))

    for function in (np.max, lambda leaves: np.nan, lambda leaves: leaves.sum() + 0.5, shuffled):
        with pytest.raises(ValueError, match=r"function: .* (no number|fit no tree)"):
            reveal(function, 40)


def test_bad_arguments():
    for n in (-1, 2.5, True):
        with pytest.raises(ValueError, match="n must be a whole number"):
            reveal(np.sum, n)
    with pytest.raises(ValueError, match="dtype must be one of float16, float32, float64"):
        reveal(np.sum, 3, dtype=np.int32)
    with pytest.raises(ValueError, match="largest_count must be at least 1"):
        reveal(np.sum, 3, largest_count=0)
    for unit, mask in ((0.0, 1.0), (1.0, 0.5), (1.0, 1e39), (1e-50, 1.0)):
        with pytest.raises(ValueError, match=r"unit .* and mask .* must be values of float32"):
            reveal(np.sum, 3, unit=unit, mask=mask)
    with pytest.raises(ValueError, match="must lie inside"):
        matmul_function(np.matmul, 3, row=1)


def survivors_of(tree):
    """How many other leaves lie outside the smallest subtree that holds both, for every two."""
    table = np.zeros((tree.leaves, tree.leaves), np.int64)
    for i in range(tree.leaves):
        for j in range(i):
            sizes = []

            def meet(*terms, i=i, j=j, sizes=sizes):
                whole = frozenset().union(*terms)
                if {i, j} <= whole:
                    sizes.append(len(whole))
                return whole

            tree.evaluate([frozenset([leaf]) for leaf in range(tree.leaves)], meet, zero=frozenset())
            table[i, j] = table[j, i] = tree.leaves - sizes[0]
    return table


@settings(max_examples=30, deadline=None)
@given(nested_trees(most=12))
def test_a_table_of_survivors_gives_its_tree(nested):
    tree = Tree.from_nested(nested)
    assert tree_of_survivors(survivors_of(tree)) == tree.canonical()


def test_tables_that_are_no_trees():
    for table in (np.zeros((2, 3)), np.array([[0, 1], [0, 0]])):
        with pytest.raises(ValueError, match="survivors must be a square symmetric table"):
            tree_of_survivors(table)
    table = survivors_of(pairwise(16))
    table[0, 15] = table[15, 0] = 9
    with pytest.raises(ValueError, match="survivors: 9 for leaves 0 and 15 fits no tree"):
        tree_of_survivors(table)
