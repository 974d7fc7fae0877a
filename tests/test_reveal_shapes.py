"""Orders of a product's elements, shape by shape: products whose orders depend on the shape and the place in known ways."""

import numpy as np
import pytest
import torch

import fpsim
from fpsim.accumulation import Accumulator, given, lanes, pairwise, reveal_shapes, sequential, split

ORDERS = {"A": sequential, "B": pairwise, "C": lanes(4), "D": split(3)}


def product(order_of, fmt):
    """A library that adds each element in the order that `order_of(rows, row, column)` names."""

    def matmul(a, b):
        results = {
            name: fpsim.matmul(a.astype(np.float32), b.astype(np.float32), fmt=fmt, accumulate=f"{fmt}:{order}")
            for name, order in ORDERS.items()
        }
        result = np.empty((len(a), b.shape[1]), np.float32)
        for row, column in np.ndindex(result.shape):
            result[row, column] = results[order_of(len(a), row, column)][row, column]
        return result

    return matmul


RULES = {
    "one": lambda rows, row, column: "A",
    "few rows": lambda rows, row, column: "D" if rows < 3 else "B",
    "last rows": lambda rows, row, column: "C" if row >= rows // 4 * 4 else "A",
    "last column": lambda rows, row, column: "B" if column == 4 else "A",
    "all": lambda rows, row, column: "ABCD"[(row + column) % 4],
}


@pytest.mark.parametrize(("rule", "fmt"), [*((rule, "fp32") for rule in RULES), ("few rows", "fp16")])
def test_every_element_has_the_order_that_it_is_added_in(rule, fmt):
    shapes = [(1, 17, 5), (2, 17, 5), (4, 17, 5), (6, 17, 5), (3, 9, 5)]
    found = reveal_shapes(product(RULES[rule], fmt), shapes, dtype=np.float16 if fmt == "fp16" else np.float32)
    for shape, kinds in found.members.items():
        rows, terms, columns = shape
        for row, column in np.ndindex(rows, columns):
            assert found.trees[kinds[row, column]] == ORDERS[RULES[rule](rows, row, column)](terms).canonical()
    names = {RULES[rule](rows, row, column) for rows, _, columns in shapes for row, column in np.ndindex(rows, columns)}
    assert found.is_batch_invariant == (rule in ("one", "last column"))
    assert found.share((1, 17, 5), (4, 17, 5)) == (rule == "one")
    assert len(set(found.trees)) == len(found.trees) <= 2 * len(names)
    for name in names:
        assert f"{ORDERS[name]} over 17 terms" in str(found)


def test_the_groups_and_the_table():
    found = reveal_shapes(product(RULES["few rows"], "fp32"), [(1, 16, 2), (2, 16, 2), (4, 16, 2)])
    assert found.groups == [[(1, 16, 2), (2, 16, 2)], [(4, 16, 2)]]
    assert str(found).splitlines() == [
        "rows x terms x columns  elements  order",
        "----------------------  --------  -----",
        "1 x 16 x 2              2 of 2    A",
        "2 x 16 x 2              4 of 4    A",
        "4 x 16 x 2              8 of 8    B",
        "",
        "A: split(3) over 16 terms",
        "B: pairwise over 16 terms",
    ]


def test_torch_products_are_replayed_by_what_is_found():
    convert = torch.from_numpy
    shapes = [(1, 24, 3), (5, 24, 3)]
    found = fpsim.reveal_shapes(torch.matmul, shapes, convert=convert)
    generator = np.random.default_rng(0)
    for shape in shapes:
        a, b = (generator.integers(-64, 64, (shape[i], shape[i + 1])).astype(np.float32) for i in (0, 1))
        a *= np.float32(2.0) ** generator.integers(-6, 7, a.shape)  # products are exact in fp32: fused additions or not
        want = torch.matmul(convert(a), convert(b)).numpy()
        for row, column in np.ndindex(shape[0], shape[2]):
            tree = found.trees[found.members[shape][row, column]]
            accumulator = Accumulator(format=fpsim.get_format("fp32"), order=given(tree))
            assert fpsim.dot(a[row], b[:, column].copy(), fmt="fp32", accumulate=accumulator) == want[row, column]


def test_what_cannot_be_revealed_names_the_element():
    with pytest.raises(ValueError, match="no elements"):
        reveal_shapes(np.matmul, [(0, 3, 3)])
    with pytest.raises(ValueError, match=r"element \(0, 0\) of 2 x 5 x 3: function"):
        reveal_shapes(lambda a, b: np.full((2, 3), np.nan), [(2, 5, 3)])
