"""Fixed-point numbers and integers as formats of roles, against integer arithmetic in NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

import fpsim


def counts(x, fraction, low, high):
    """The integers of which multiples of 2^-fraction are nearest, of two the even one, within the range."""
    return np.clip(np.rint(np.asarray(x, np.float64) * 2.0**fraction), low, high).astype(np.int64)


def layer(seed=0):
    torch.manual_seed(seed)
    return nn.Linear(24, 5, bias=False), torch.randn(7, 24) * 2, torch.randn(7, 5)


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_quantized_factors_of_every_product_multiply_as_integers(granularity):
    linear, x, gradient = layer()
    fmt = {"*": "fp32", "product": "fixed(8, 5)"}
    sim = fpsim.run(linear, fmt, "exact", granularity=granularity)
    leaf = x.clone().requires_grad_()
    with sim:
        y = sim(leaf)
        y.backward(gradient)
    a, w, g = (counts(item.detach(), 5, -128, 127) for item in (x, linear.weight, gradient))
    for found, wanted in ((y, a @ w.T), (leaf.grad, g @ w), (sim.weight.grad, g.T @ a)):
        assert np.array_equal(found.detach().numpy(), wanted / 2.0**10)  # held by float32
    assert torch.equal(sim.weight, linear.weight)


def test_activations_of_fixed_point_saturate_and_are_counted():
    linear, x, _ = layer()
    sim = fpsim.run(linear, {"*": "fp32", "weight": "fixed(8, 6)", "activation": "fixed(8, 4)"})  # sums of integers below 2^24
    y = sim(x * 4)
    a, w = counts(x * 4, 4, -128, 127), counts(counts(linear.weight.detach(), 6, -128, 127) / 2.0**6, 4, -128, 127)
    free = np.rint((a @ w.T) / 2.0**4)
    assert np.array_equal(y.detach().numpy(), np.clip(free, -128, 127) / 2.0**4)
    beyond = int(((free > 127) | (free < -128)).sum())
    rows = sim.report().by_operation()
    assert beyond > 0 and sum(row.nonfinite for row in rows.values()) == 0
    over = int((np.abs(np.rint(x.numpy().astype(np.float64) * 64) + 0.5) > 128).sum())
    assert rows["mm"].overflows == beyond + over  # inputs that saturate are read by it


def test_what_is_exact_of_floats_rounds_where_the_system_is_not_symmetric():
    with fpsim.emulate("fixed(8, 4)"):
        x = torch.tensor([-8.0, 1.3, 7.9375, 0.03])
        assert (-x).tolist() == [7.9375, -1.3125, -7.9375, 0.0]
        assert x.abs().tolist() == [7.9375, 1.3125, 7.9375, 0.0]
        assert x.ceil().tolist() == [-8.0, 2.0, 7.9375, 0.0]
        assert (x * x).tolist() == [7.9375, 1.75, 7.9375, 0.0]  # 1.3125^2 is 27.5625 sixteenths
    with fpsim.emulate({"*": "uint4"}):
        assert (-torch.tensor([3.0])).tolist() == [0.0]
        assert torch.sign(torch.tensor([-3.0, 2.0])).tolist() == [0.0, 1.0]


def test_weights_of_integers_are_updated_as_integers():
    linear, x, gradient = layer()
    linear.weight.data.mul_(40)
    sim = fpsim.run(linear, {"*": "fp32", "weight": "int8"}, "exact")
    before = counts(linear.weight.detach(), 0, -128, 127)
    assert np.array_equal(sim.weight.detach().numpy(), before)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.5)
    with sim:
        sim(x).backward(gradient)
        optimizer.step()
    step = before - np.float64(0.5) * sim.weight.grad.numpy()
    assert np.array_equal(sim.weight.detach().numpy(), counts(step, 0, -128, 127))
    drawn = fpsim.run(linear, {"*": "fp32", "weight": "int8"}, rounding={"*": "nearest-even", "weight": "stochastic"}, seed=1)
    off = drawn.weight.detach().numpy() - linear.weight.detach().numpy()
    assert np.abs(off).max() < 1 and abs(off.mean()) < 0.15 and (np.abs(off) > 0.5).any()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x / x, "fixed\\(8,4\\) has no rule for division by zero; it has add, sub, mul"),
        (lambda x: x.div_(2), "no rule for division by zero"),
        (lambda x: torch.addcdiv(x, x, x), "no rule for division by zero"),
        (lambda x: torch._foreach_div([x], [x]), "no rule for division by zero"),
        (lambda x: x.sqrt(), "no rule for roots of negative numbers"),
        (lambda x: x.exp(), "no elementary functions"),
        (lambda x: nn.functional.gelu(x), "no elementary functions"),
    ],
)
def test_what_a_system_has_no_rule_for_is_refused(function, message):
    with fpsim.emulate({"*": "fixed(8, 4)"}), pytest.raises(fpsim.UnsupportedOp, match=message):
        function(torch.ones(3))


def test_what_no_model_can_have_is_refused():
    linear, x, _ = layer()
    for arguments, message in (
        ({"fmt": "int32"}, "has values that float32 tensors cannot hold"),
        ({"fmt": {"*": "fp16", "product": "int8"}, "accumulate": "a100"}, "unit a100 has no instruction for int8 operands"),
        ({"fmt": "fp16", "accumulate": "int8"}, "int8 holds no sums"),
        ({"fmt": {"*": "fp16", "weight": "int9"}}, r"fmt\['weight'\]: unknown format 'int9'.*int4, int8"),
    ):
        with pytest.raises(ValueError, match=message):
            fpsim.run(linear, **arguments)
    with pytest.raises(ValueError, match="fixed\\(16,8\\) has no error bounds"):
        fpsim.certify(linear.eval(), x, "fixed(16, 8)")
    linear.train()
    sim = fpsim.run(linear, {"*": "fp32", "optimizer": "fixed(16, 8)"})
    with sim:
        sim(x).sum().backward()
        with pytest.raises(fpsim.UnsupportedOp, match="fixed\\(16,8\\) has no rule for"):
            torch.optim.Adam(sim.parameters(), foreach=False).step()
