"""Sums into places that indices name, against a chain in ascending order of the source, term by term in NumPy's float16."""

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

import fpsim

ROWS, TERMS = 5, 40


def values(*shape, seed):
    """Of magnitudes so different that the order of a sum shows."""
    generator = np.random.default_rng(seed)
    return (generator.standard_normal(shape) * np.exp2(generator.integers(-6, 9, shape))).astype(np.float16)


def chain(base, places, terms):
    """Each place's own value, then what meets there, added one by one: every sum rounded to float16."""
    out = base.copy()
    with np.errstate(over="ignore"):
        for place, term in zip(places, terms, strict=True):
            out[place] = out[place] + term
    return out.astype(np.float32)


def tensor(array):
    return torch.from_numpy(array.astype(np.float32))


@pytest.fixture
def operands():
    index = np.random.default_rng(3).integers(0, ROWS, TERMS)
    return values(ROWS, 3, seed=1), index, values(TERMS, 3, seed=2)


CALLS = {
    "index_add": lambda x, index, source: x.index_add(0, index, source),
    "index_add_": lambda x, index, source: x.clone().index_add_(0, index, source),
    "index_add of another axis": lambda x, index, source: x.T.index_add(1, index, source.T).T,
    "scatter_add": lambda x, index, source: x.scatter_add(0, index[:, None].expand(-1, 3), source),
    "index_put": lambda x, index, source: x.index_put((index,), source, accumulate=True),
    "index_put_": lambda x, index, source: x.clone().index_put_((index,), source, accumulate=True),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_meets_in_a_place_is_added_in_order(name, operands):
    base, index, terms = operands
    with fpsim.emulate("fp16", "fp16"):
        result = CALLS[name](tensor(base), torch.from_numpy(index), tensor(terms))
    assert np.array_equal(result.numpy(), chain(base, index, terms))


def test_the_gradient_of_an_embedding_is_such_a_sum(operands):
    base, index, terms = operands
    weight = tensor(base).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        (gradient,) = torch.autograd.grad(functional.embedding(torch.from_numpy(index), weight, 2), weight, tensor(terms))
    kept = index != 2
    assert np.array_equal(gradient.numpy(), chain(np.zeros_like(base), index[kept], terms[kept]))


BAGS = {
    "sum": {"mode": "sum"},
    "sum without padding": {"mode": "sum", "padding_idx": 2},
    "mean": {"mode": "mean", "padding_idx": 1},
    "by frequency": {"mode": "mean", "scale_grad_by_freq": True},
    "weighted": {"mode": "sum"},
    "max": {"mode": "max"},
}
OFFSETS = [0, 3, 3, 10, 11, 27]  # the second bag is empty


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("accumulate", ["fp16", "exact"])
@pytest.mark.parametrize("name", BAGS)
def test_the_gradient_of_bags_is_such_a_sum_too(name, accumulate, granularity, operands):
    base, index, _ = operands
    options, slope, weights = BAGS[name], values(len(OFFSETS), 3, seed=7), values(TERMS, seed=8) / np.float16(256)
    weight, given = tensor(base).requires_grad_(), tensor(weights) if name == "weighted" else None
    with fpsim.emulate("fp16", accumulate, granularity=granularity):
        out = functional.embedding_bag(
            torch.from_numpy(index), weight, torch.tensor(OFFSETS), per_sample_weights=given, **options
        )
        (gradient,) = torch.autograd.grad(out, weight, tensor(slope))
    kept = index != options.get("padding_idx", -1)
    bags = np.searchsorted(OFFSETS, np.arange(TERMS), side="right") - 1
    terms = slope[bags]
    if options["mode"] == "mean":
        counts = np.bincount(bags[kept], minlength=len(OFFSETS)).clip(1)
        terms = terms / counts[bags].astype(np.float16)[:, None]
    if name == "weighted":
        terms = terms * weights[:, None]
    if name == "by frequency":
        terms = terms / np.bincount(index)[index].astype(np.float16)[:, None]
    places, columns = np.broadcast_arrays(index[:, None], np.arange(3))
    places, columns, terms = places[kept].reshape(-1), columns[kept].reshape(-1), terms[kept].reshape(-1)
    if name == "max":
        rows = [(bag, index[bags == bag]) for bag in range(len(OFFSETS)) if (bags == bag).any()]
        places = np.concatenate([own[base[own].argmax(0)] for _, own in rows])
        columns, terms = np.tile(np.arange(3), len(rows)), np.concatenate([slope[bag] for bag, _ in rows])
    expected = np.zeros_like(base)
    for place in {*zip(places.tolist(), columns.tolist(), strict=True)}:
        met = terms[(places == place[0]) & (columns == place[1])]
        if accumulate == "exact":
            expected[place] = np.float16(float(sum(map(Fraction, met.tolist()))))  # exact in float64
        else:
            expected[place] = np.add.accumulate(met, dtype=np.float16)[-1]
    assert np.array_equal(gradient.numpy(), expected.astype(np.float32))


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_bags_have_the_gradient_of_embeddings_that_are_summed(mode):
    index = torch.from_numpy(np.random.default_rng(3).integers(0, ROWS, (8, 5)))
    weight, slope = tensor(values(ROWS, 3, seed=1)).requires_grad_(), tensor(values(8, 3, seed=2))
    found = []
    for accumulate in ("fp16", "fp32", "fp16:pairwise"):
        with fpsim.emulate("fp16", accumulate):
            bags = functional.embedding_bag(index, weight, mode=mode)
            summed = getattr(functional.embedding(index, weight), mode)(1)
            (one,), (other,) = (torch.autograd.grad(out, weight, slope) for out in (bags, summed))
        assert torch.equal(one, other)
        found.append(one)
    assert not torch.equal(found[0], found[1])


def test_a_scaled_source_is_rounded_before_the_sum(operands):
    base, index, terms = operands
    with fpsim.emulate("fp16", "fp16"):
        result = tensor(base).index_add(0, torch.from_numpy(index), tensor(terms), alpha=0.75)
    assert np.array_equal(result.numpy(), chain(base, index, terms * np.float16(0.75)))  # one rounding: 0.75 is a value


def test_numbers_and_nothing_are_scattered_too():
    with fpsim.emulate("fp16", "fp16"):
        number = torch.tensor(1.0).index_add(0, torch.tensor([0, 0]), torch.tensor([2.0**-11, 2.0**-11]))
        nothing = torch.ones(3).scatter_add(0, torch.empty(0, dtype=torch.int64), torch.empty(0))
    assert number.item() == 1.0 and nothing.tolist() == [1, 1, 1]
