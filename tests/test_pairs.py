"""Products of many pairs of small matrices, computed together, are those of the pairs one by one, bit for bit."""

import contextlib
import itertools

import numpy as np
import pytest
import torch

import fpsim
from fpsim.numbers.rounding import Rounding
from fpsim.sums import joined
from fpsim.sums.batches import batched_products
from fpsim.sums.observers.counters import Counters
from tests.frequency import often
from tests.test_grouped import OFTEN, careful_alone
from tests.test_routes import IN_TURN, SPECIALS, same, task_of, unsupported

#: Pairs, rows, terms, columns: one row, one column, one term, and pairs that fill no whole block.
SHAPES = ((20, 2, 5, 3), (17, 1, 7, 4), (16, 5, 3, 1), (3, 4, 1, 4))
NINE_TERMS = ((18, 2, 9, 3),)


def in_both_ways(monkeypatch, compute, apart=contextlib.nullcontext):
    """What `compute` gives with all pairs together and, inside the context `apart()`, pair by pair."""
    found = []
    for context, together in ((contextlib.nullcontext, True), (apart, False)):
        monkeypatch.setattr(joined, "is_quicker", lambda task, groups, *_, together=together: together and groups > 1)
        with context():
            found.append(compute())
    return found


def factors(task, shape, special):
    generator = np.random.default_rng(1)
    pairs, rows, terms, columns = shape

    def some(size):
        values = SPECIALS[special](generator.standard_normal(size), generator)
        return fpsim.round(np.ascontiguousarray(values, np.float32), task.operand)

    return some((pairs, rows, terms)), some((pairs, columns, terms)).mT


@pytest.mark.parametrize(
    ("name", "mode", "counting"),
    often(
        [(*case, counting) for case in IN_TURN for counting in (False, True)],
        [*((*case, False) for case in OFTEN), ("fp16", Rounding.NEAREST_EVEN, True)],
    ),
)
def test_pairs_together_are_pairs_apart(name, mode, counting, monkeypatch):
    task = task_of(name, mode)
    uncounted = task.accumulator.kind.uncounted is not None or name == "wide nodes"
    if unsupported(task) or (counting and uncounted):
        pytest.skip(f"{name} does not do that")
    how = {"fmt": task.operand, "accumulate": task.accumulator, "rounding": mode}
    how["seed"] = 5 if mode is Rounding.STOCHASTIC else None
    for shape, special in itertools.product(NINE_TERMS if name == "wide nodes" else SHAPES, SPECIALS):
        a, b = factors(task, shape, special)

        def compute(a=a, b=b):
            counters = Counters() if counting else None
            return fpsim.matmul(a, b, counters=counters, **how), counters

        (together, counted), (apart, also) = in_both_ways(monkeypatch, compute, lambda: careful_alone(task))
        assert same(together, apart).all(), (shape, special)
        assert counted == also


@pytest.mark.parametrize("special", SPECIALS)
@pytest.mark.parametrize("accumulate", ["fp16", "fp32", "exact", "fp16:pairwise"])
def test_emulation_counts_of_pairs_together_what_it_counts_of_pairs_apart(accumulate, special, monkeypatch):
    """Attention, and batched products with an infinity in one pair alone."""
    task = task_of("fp16", Rounding.NEAREST_EVEN)
    a, b = (torch.from_numpy(np.ascontiguousarray(x)) for x in factors(task, SHAPES[0], special))
    a[3, 0, 0] = torch.inf if special == "ordinary" else a[3, 0, 0]

    def compute():
        with fpsim.emulate("fp16", accumulate) as emulation:
            results = [torch.bmm(a, b), torch.nn.functional.scaled_dot_product_attention(a, b.mT, b.mT)]
        return results, [(row.operation, row.counts) for row in emulation.report().rows]

    (together, counted), (apart, also) = in_both_ways(monkeypatch, compute)
    for left, right in zip(together, apart, strict=True):
        assert same(left.numpy(), right.numpy()).all()
    assert counted == also and counted


LAYOUTS = {
    "rows": np.ascontiguousarray,
    "columns": lambda x: np.ascontiguousarray(x.mT).mT,
    "part of longer rows": lambda x: np.pad(x, ((0, 0), (0, 0), (3, 2)), constant_values=np.nan)[..., 3:-2],
    "every other row": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "every other column": lambda x: np.repeat(x, 2, axis=2)[..., ::2],
    "one row for all": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "one matrix for all": lambda x: np.broadcast_to(x[:1], x.shape),
    "row by row of all": lambda x: np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1),
    "backwards": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
}


@pytest.mark.parametrize("name", ["fp16", "fp32", "fp32 in fp64"])
@pytest.mark.parametrize("shape", [(3, 5, 3, 33), (2, 8, 40, 64), (2, 33, 31, 130)])
def test_matrices_may_lie_anyhow(shape, name):
    task = task_of(name, Rounding.NEAREST_EVEN)
    for one, other in itertools.product(LAYOUTS, repeat=2):
        a, b = (LAYOUTS[layout](x) for layout, x in zip((one, other), factors(task, shape, "ordinary"), strict=True))
        found, again = batched_products(task, a, b)
        assert not again
        for left, right, result in zip(a.copy(), b.copy(), found, strict=True):
            product = fpsim.matmul(left, right, fmt=task.operand, accumulate=task.accumulator)
            assert np.array_equal(fpsim.round(result, task.operand), product), (one, other)
