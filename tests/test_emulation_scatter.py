"""Sums into places that indices name, against a chain in ascending order of the source, term by term in NumPy's float16."""

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
