"""Weight normalization is one kernel: float64 inside, one rounding of each result."""

import numpy as np
import pytest
import torch
from torch import nn

import fpsim

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
WAYS = {"parametrization": nn.utils.parametrizations.weight_norm, "hook": nn.utils.weight_norm}


def half(values):
    return values.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("dim", [0, 2])
def test_forward_and_gradients_are_the_formula_rounded_once(dim):
    """Along the first or the last axis; torch itself takes others apart."""
    numbers = np.random.default_rng(0)
    v = torch.from_numpy(half(numbers.normal(size=(4, 3, 5)))).requires_grad_()
    g = torch.from_numpy(half(numbers.normal(size=[size if axis == dim else 1 for axis, size in enumerate(v.shape)])))
    gradient = half(numbers.normal(size=(4, 3, 5)))
    with fpsim.emulate("fp16"):
        w = torch._weight_norm(v, g.requires_grad_(), dim)
        w.backward(torch.from_numpy(gradient))
    axes = tuple(axis for axis in range(3) if axis != dim)
    x, gain = v.detach().double().numpy(), g.detach().double().numpy()
    norms = np.sqrt((x * x).sum(axes, keepdims=True))
    assert np.array_equal(w.detach().numpy(), half(x * (gain / norms)))
    norms = norms.astype(np.float32).astype(np.float64)
    sums = (gradient * x).sum(axes, keepdims=True)
    assert np.array_equal(g.grad.numpy(), half(sums / norms))
    assert np.array_equal(v.grad.numpy(), half(gain / norms * (gradient - x * (sums / norms / norms))))


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_trains(way, granularity):
    torch.manual_seed(0)
    sim = fpsim.run(WAYS[way](nn.Linear(5, 3)), "bf16", granularity=granularity, inplace=True)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.5)
    before = [item.detach().clone() for item in sim.parameters()]
    with sim:
        sim(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
    for old, new in zip(before, sim.parameters(), strict=True):
        assert not torch.equal(old, new) and torch.equal(fpsim.round(new.detach(), "bf16"), new)
