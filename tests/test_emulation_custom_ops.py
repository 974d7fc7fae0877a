"""A custom operator of torch.library: refused by name, then emulated by a rule from outside, with gradients."""

import numpy as np
import pytest
import torch
from torch import nn

import fpsim


@torch.library.custom_op("fpsim_tests::squash", mutates_args=())
def squash(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.tanh(x * scale)


@squash.register_fake
def _(x, scale):
    return torch.empty_like(x)


def _keep(ctx, inputs, output):
    ctx.scale = inputs[1]
    ctx.save_for_backward(output)


def _backward(ctx, gradient):
    (y,) = ctx.saved_tensors
    return gradient * (1 - y * y) * ctx.scale, None


squash.register_autograd(_backward, setup_context=_keep)
OP = torch.ops.fpsim_tests.squash.default


class Squash(nn.Module):
    def forward(self, x):
        return squash(x, 0.3)


@pytest.fixture
def forgotten():
    yield
    fpsim.emulation.unregister(OP)


@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp16"}])
def test_without_a_rule_it_is_refused_by_name(fmt):
    sim = fpsim.run(nn.Sequential(nn.Linear(3, 4), Squash()), fmt)
    with pytest.raises(fpsim.UnsupportedOp) as caught:
        sim(torch.ones(2, 3))
    text = str(caught.value)
    for part in (
        "fpsim_tests.squash.default has no rule",
        "inputs: float32[2, 4], 0.3",
        "called from the module '1'",
        "@fpsim.emulation.register(torch.ops.fpsim_tests.squash.default)",
    ):
        assert part in text


@pytest.mark.parametrize("policy", [{}, {"granularity": "primitive"}], ids=str)
def test_what_a_rule_refuses_says_the_same(policy):
    with fpsim.emulate("fp16", **policy), pytest.raises(fpsim.UnsupportedOp) as caught:
        torch.ones(2, 3, dtype=torch.complex32)
    assert "called from no module" in str(caught.value)
    model = nn.Sequential(nn.Identity())
    model[0].forward = lambda x: torch.ops.aten.mm(x, torch.ones(3, 2, dtype=torch.float64))
    with pytest.raises(fpsim.UnsupportedOp) as caught:
        fpsim.run(model, "fp16", **policy)(torch.ones(2, 3))
    assert "inputs: float32[2, 3], float64[3, 2]\n  called from the module '0'" in str(caught.value)
    assert str(caught.value).count("inputs:") == 1


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp16"}, "native"], ids=str)
def test_a_rule_from_outside_with_steps(fmt):
    @fpsim.emulation.register(OP, steps=lambda x, scale: torch.tanh(x * scale))
    def rule(machine, x, scale):
        return machine.finish(torch.tanh(machine.operand(x).double() * machine.scalar(scale)))

    half = fmt == "native"
    x = torch.as_tensor(fpsim.round(torch.linspace(-4, 4, 101), "fp16"))
    x = (x.half() if half else x).requires_grad_()
    with fpsim.emulate(fmt):
        y = squash(x, 0.3)
        y.backward(torch.ones_like(y))
    wide = np.tanh(x.detach().double().numpy() * np.float64(np.float32(0.3))).astype(np.float16)
    assert np.array_equal(y.detach().numpy().astype(np.float16), wide)
    slope = (np.float16(1) - wide * wide).astype(np.float32)
    assert np.array_equal(x.grad.numpy().astype(np.float16), (slope * np.float32(0.3)).astype(np.float16))
    with fpsim.emulate(fmt, granularity="primitive"), torch.no_grad():
        z = squash(x, 0.3)
    scaled = x.detach().numpy().astype(np.float16) * np.float16(0.3)
    steps = np.tanh(scaled.astype(np.float64)).astype(np.float16)
    assert np.array_equal(z.numpy().astype(np.float16), steps)
    assert not np.array_equal(steps, wide)
