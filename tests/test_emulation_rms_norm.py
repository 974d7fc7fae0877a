"""Root mean square normalization is one operation, rounded once, with float64 inside."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import fpsim


def by_hand(x, weight, gradient, eps):
    """Output and gradients in float64, sums over ascending indices."""
    x, weight, gradient = (item.double().numpy() for item in (x, weight, gradient))
    n = x.shape[-1]
    squares = np.cumsum(x * x, -1)[..., -1:]
    inverse = 1 / np.sqrt(squares / n + eps)
    saved = inverse.astype(np.float32).astype(np.float64)  # what the backward pass gets
    normal = x * saved
    scaled = gradient * weight
    slope = np.cumsum(scaled * normal, -1)[..., -1:] / n
    of_weight = np.cumsum((gradient * normal).reshape(-1, n), 0)[-1]
    return x * inverse * weight, (scaled - normal * slope) * saved, of_weight


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1000.0])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_forward_and_backward_round_once(scale, eps):
    torch.manual_seed(0)
    layer = nn.RMSNorm(33, eps=eps)
    nn.init.normal_(layer.weight)
    sim = fpsim.run(layer, "fp16", accumulate="fp16")
    x = torch.as_tensor(fpsim.round(torch.randn(3, 5, 33) * scale, "fp16")).requires_grad_()
    gradient = torch.as_tensor(fpsim.round(torch.randn(3, 5, 33), "fp16"))
    with sim:
        y = sim(x)
        y.backward(gradient)
    results = by_hand(x.detach(), sim.weight.detach(), gradient, 2.0**-10 if eps is None else eps)
    for found, wanted in zip((y.detach(), x.grad, sim.weight.grad), results, strict=True):
        assert np.array_equal(found.numpy(), wanted.astype(np.float16).astype(np.float32))
    assert {row[1] for row in sim.report()} == {"_fused_rms_norm", "_fused_rms_norm_backward"}
    with torch.inference_mode():
        assert torch.equal(sim(x), y)


def test_half_means_the_same_under_native():
    torch.manual_seed(0)
    layer = nn.RMSNorm(20)
    x = torch.randn(7, 20).half()
    found = []
    for model, fmt, dtype in ((layer, "fp16", torch.float32), (copy.deepcopy(layer).half(), "native", torch.float16)):
        sim, leaf = fpsim.run(model, fmt), x.to(dtype).requires_grad_()
        with sim:
            y = sim(leaf)
            (y * y).sum().backward()
        found.append([item.float() for item in (y.detach(), leaf.grad, sim.weight.grad)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_float32_and_what_is_not_emulated_are_torchs_own():
    x = torch.randn(4, 8)
    expected = functional.rms_norm(x, (8,))
    plain = torch.rms_norm
    with fpsim.emulate("native"):
        assert torch.rms_norm is not plain
        assert torch.equal(functional.rms_norm(x, (8,)), expected)
        assert torch.equal(functional.rms_norm(x.double(), (8,)), functional.rms_norm(x.double(), (8,)))
        with pytest.raises(RuntimeError):
            functional.rms_norm(x.half(), (7,))
    assert torch.rms_norm is plain
    with fpsim.emulate("fp32", accumulate="native"):
        torch.testing.assert_close(functional.rms_norm(x, (8,)), expected, rtol=2**-21, atol=0)


def test_a_gradient_of_the_gradient():
    x = torch.randn(4, 8, dtype=torch.float32).requires_grad_()
    found = []
    for context in (fpsim.emulate("fp32", accumulate="native"), torch.enable_grad()):
        with context:
            (first,) = torch.autograd.grad(functional.rms_norm(x, (8,)).pow(3).sum(), x, create_graph=True)
            found.append(torch.autograd.grad(first.square().sum(), x)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)
