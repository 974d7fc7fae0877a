"""Orders of sums over ranks: NumPy's float16, rank by rank as NCCL's ring and double tree meet them."""

import numpy as np
import pytest
import torch

import fpsim
from fpsim.emulation.machine.all_reduce import AllReduce, double_tree, get_all_reduce
from fpsim.emulation.machine.policy import make_policy
from fpsim.emulation.rules import distributed

HALF = np.float16


def ranks_of(count, elements=9):
    return (np.random.default_rng(count).normal(size=(count, elements)) * 8).astype(HALF)


def ring(x, dtype=HALF):
    """Step by step: every rank sends a chunk on, and adds its own to what it receives."""
    count, size = len(x), -(-x.shape[1] // len(x))
    held = x.astype(dtype)
    for step in range(count - 1):
        before = held.copy()
        for rank in range(count):
            chunk = (rank - 1 - step) % count  # that which it sends
            place = slice(chunk * size, (chunk + 1) * size)
            held[(rank + 1) % count, place] = before[rank, place] + x[(rank + 1) % count, place].astype(dtype)
    return np.concatenate([held[chunk, chunk * size : (chunk + 1) * size] for chunk in range(count)]).astype(HALF)


#: Parent by rank, for the first tree of so many ranks, from the picture in NCCL's documentation of it.
PARENTS = {
    2: {1: 0},
    4: {2: 0, 1: 2, 3: 2},
    5: {4: 0, 2: 4, 1: 2, 3: 2},
    12: {8: 0, 4: 8, 10: 8, 2: 4, 6: 4, 9: 10, 11: 10, 1: 2, 3: 2, 5: 6, 7: 6},
    14: {8: 0, 4: 8, 12: 8, 2: 4, 6: 4, 10: 12, 13: 12, 1: 2, 3: 2, 5: 6, 7: 6, 9: 10, 11: 10},
}


def up_the_tree(x, name):
    parents = PARENTS[len(x)]

    def total(rank):
        result = x[name(rank)]
        for child in sorted(child for child, parent in parents.items() if parent == rank):
            result = result + total(child)
        return result

    return total(0)


def reduced(monkeypatch, x, all_reduce, **settings):
    """What an all-reduce of these ranks' values makes on one of them."""
    monkeypatch.setattr(distributed, "_gather", lambda *_: [torch.from_numpy(row.astype(np.float32)) for row in x])
    reduce = object.__new__(distributed._Reduction)
    with fpsim.emulate("fp16", "fp16", all_reduce=all_reduce, **settings) as emulation:
        machine = emulation.machine
        machine.op = torch.ops.c10d.allreduce_.default
        kinds = torch.distributed.ReduceOp.RedOpType
        vars(reduce).update(
            machine=machine, group=None, timeout=-1, ranks=len(x), rank=0, kind=kinds.SUM, kinds=kinds, how=machine.all_reduce
        )
        return reduce.of(torch.from_numpy(x[0].astype(np.float32)), reduce.how.parts(len(x), x.shape[1])).numpy()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_bits_are_those_of_a_ring(count, monkeypatch):
    x = ranks_of(count)
    found = reduced(monkeypatch, x, "ring")
    assert np.array_equal(found, ring(x).astype(np.float32))
    wide = reduced(monkeypatch, x, "ring:fp32")
    assert np.array_equal(wide, ring(x, np.float32).astype(np.float32))
    in_order = reduced(monkeypatch, x, "rank-order")
    assert count < 3 or (not np.array_equal(found, in_order) and not np.array_equal(found, wide))


@pytest.mark.parametrize("count", PARENTS)
def test_the_bits_are_those_of_a_double_tree(count, monkeypatch):
    x = ranks_of(count)
    other = (lambda rank: (rank + 1) % count) if count % 2 else (lambda rank: count - 1 - rank)
    expected = np.concatenate([up_the_tree(x[:, :5], int), up_the_tree(x[:, 5:], other)])
    assert np.array_equal(reduced(monkeypatch, x, "tree"), expected.astype(np.float32))


def test_each_rank_is_in_each_tree_once():
    def leaves(nested):
        return [nested] if isinstance(nested, int) else [leaf for part in nested for leaf in leaves(part)]

    for count in range(1, 40):
        assert all(sorted(leaves(tree)) == list(range(count)) for tree in double_tree(count))
        parts = AllReduce("ring").parts(count, 50)
        assert sorted(i for place, _ in parts for i in range(50)[place]) == list(range(50))
        assert all(sorted(leaves(nested)) == list(range(count)) for _, nested in parts)


def test_an_order_is_part_of_the_policy_and_unknown_ones_are_refused():
    assert get_all_reduce("ring:fp32") == AllReduce("ring", fpsim.get_format("fp32")) and str(get_all_reduce("tree")) == "tree"
    policy = make_policy("fp16", all_reduce="ring")
    assert str(policy).endswith("all_reduce=ring") and policy != make_policy("fp16")
    assert not make_policy("fp32", "native", all_reduce="ring").is_identity
    for text in ("rings", "", "ring:fp99"):
        with pytest.raises(ValueError, match=r"all_reduce|fp99"):
            fpsim.run(torch.nn.Linear(1, 1), all_reduce=text)
