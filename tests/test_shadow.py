"""The shadow is the float64 run, bit for bit; errors against it are what NumPy says."""

import copy
import gc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from fpsim.emulation import Observer
from fpsim.emulation.observers.shadow import Shadow

OPTIMIZERS = {
    "SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "AdamW, foreach": (torch.optim.AdamW, {"eps": 1e-4, "foreach": True}),
    "AdamW, one by one": (torch.optim.AdamW, {"eps": 1e-4, "foreach": False}),
    "AdamW, fused": (torch.optim.AdamW, {"eps": 1e-4, "fused": True}),
}


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.wide, self.back = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.back(F.gelu(self.wide(self.norm(x))))


def network():
    torch.manual_seed(0)
    convolution = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2)]
    return nn.Sequential(*convolution, nn.Linear(36, 16), Residual(), nn.Linear(16, 5))


def train(model, x, kind, how, steps=2):
    torch.manual_seed(3)
    optimizer = kind(model.parameters(), lr=0.01, **how)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), torch.arange(8) % 5)
        loss.backward()
        optimizer.step()
    return loss


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("fmt", ["fp16", {"*": "bf16", "weight": "fp32"}], ids=["fp16", "mixed"])
def test_the_shadow_is_a_float64_run(name, fmt):
    shadow = Shadow()
    sim = fpsim.run(network(), fmt, observe=shadow)
    reference = copy.deepcopy(sim.model).double()
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with sim:
        loss = train(sim, x, *OPTIMIZERS[name])
    expected = train(reference, x.double(), *OPTIMIZERS[name])
    assert torch.equal(shadow.of(loss.detach()), expected.detach())
    named = [*sim.named_parameters(), *((name, item) for name, item in sim.named_buffers() if item.is_floating_point())]
    exact = {**dict(reference.named_parameters()), **dict(reference.named_buffers())}
    for label, tensor in named:
        assert torch.equal(shadow.of(tensor), exact[label]), label
        if tensor.grad is not None:
            assert torch.equal(shadow.of(tensor.grad), exact[label].grad), label


def test_errors_are_those_of_numpy():
    x = torch.tensor([1.0, 1 / 3, 3.0])
    with fpsim.emulate("fp16", observe="shadow") as emulation:
        y = x * x
        y / 3
    first, second = emulation.report().rows
    assert emulation.report().observed == ("counts", "shadow")
    read = np.float16(x.numpy()).astype(np.float64)
    exact, given = read * read, x.numpy().astype(np.float64) ** 2
    assert np.isclose(first.local.relative, np.linalg.norm(np.float16(exact) - exact) / np.linalg.norm(exact), rtol=1e-12)
    difference = np.float16(exact).astype(np.float64) - given
    assert np.isclose(first.cumulative.relative, np.linalg.norm(difference) / np.linalg.norm(given), rtol=1e-12)
    assert np.isclose(first.cumulative.ulps, abs(difference / 2.0 ** (np.floor(np.log2(given)) - 10)).max(), rtol=1e-12)
    assert second.local.elements == 3 and second.local.ulps <= 0.5 + 2**-10  # of an operation with a number, in fp32 first


def test_shadows_follow_views_and_writes_to_parts():
    shadow = Shadow()
    with fpsim.emulate("bf16", observe=shadow):
        x = torch.zeros(2, 3)
        x[0] += 1 / 3
        x.t()[1].mul_(1 / 3)
        y = x.flip(0)
    wide = torch.zeros(2, 3, dtype=torch.float64)
    wide[0] += 1 / 3
    wide.t()[1].mul_(1 / 3)
    assert torch.equal(shadow.of(x), wide) and torch.equal(shadow.of(y), wide.flip(0))
    assert torch.equal(shadow.of(x.t()), wide.t())


@pytest.mark.parametrize("shared", [1, 2], ids=["as many heads", "shared heads"])
def test_attention_is_that_of_torch_in_float64(shared):
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(2, heads, 5, 8, generator=generator) for heads in (4, 4 // shared, 4 // shared)]
    shadow = Shadow()
    with fpsim.emulate("fp16", observe=shadow):
        query, key, value = narrow = [(item * 1).requires_grad_() for item in given]
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        out.sum().backward()
    wide = [item.double().requires_grad_() for item in given]
    exact = F.scaled_dot_product_attention(*wide, is_causal=True, enable_gqa=True)
    exact.sum().backward()
    torch.testing.assert_close(shadow.of(out.detach()), exact.detach(), rtol=1e-13, atol=1e-14)
    for mine, theirs in zip(narrow, wide, strict=True):
        torch.testing.assert_close(shadow.of(mine.grad), theirs.grad, rtol=1e-12, atol=1e-13)


def test_a_shadow_changes_nothing_of_what_is_computed():
    """It keeps no tensor: autograd takes gradients as they are, where it copies what somebody else holds."""

    class Told(Observer):
        def __init__(self):
            self.calls = []

        def after(self, call):
            self.calls.append((call.module, call.name, call.phase))

    found = []
    for others in ((), ("shadow", "events", "range", "histograms", "coverage")):
        sim = fpsim.run(network(), "fp16", observe=[told := Told(), *others])
        gc.disable()
        try:
            with sim:
                train(sim, torch.ones(8, 1, 8, 8), torch.optim.SGD, {"foreach": False})
        finally:
            gc.enable()
        found.append(told.calls)
    assert found[0] == found[1]
