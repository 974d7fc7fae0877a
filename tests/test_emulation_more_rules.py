"""Sums by index, statistics, prefix sums, interpolation: against explicit arithmetic."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

import fpsim
import fpsim.elementary
from fpsim.emulation import UnsupportedOp

HALF = torch.float16


def values(*shape, seed=0, scale=1.0):
    return fpsim.round(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale, "fp16")


def chained(base, index, source):
    """index_add along axis 0 in torch.half, in ascending order of the source."""
    total = base.to(HALF).clone()
    for place, row in zip(index.tolist(), source.to(HALF), strict=True):
        total[place] = total[place] + row
    return total.float()


def test_sums_by_index_follow_the_accumulator_and_the_order_of_the_source():
    base, source = values(5, 3), values(40, 3, seed=1)
    index = torch.randint(0, 5, (40,), generator=torch.Generator().manual_seed(2))
    expected, from_zero = chained(base, index, source), chained(torch.zeros(5, 3), index, source)
    with fpsim.emulate("fp16", "fp16"):
        assert torch.equal(base.index_add(0, index, source), expected)
        assert torch.equal(base.scatter_add(0, index[:, None].expand(40, 3), source), expected)
        assert torch.equal(base.index_put((index,), source, accumulate=True), expected)
        assert torch.equal(base.clone().index_add_(0, index, source), expected)
        assert torch.equal(base.T.contiguous().index_add(1, index, source.T), expected.T)
        weight = torch.zeros(5, 3, requires_grad=True)
        functional.embedding(index, weight).backward(source)
        assert torch.equal(weight.grad, from_zero)
        rows = base.clone().requires_grad_()
        rows[index].backward(source)
        assert torch.equal(rows.grad, from_zero)
        with pytest.raises(UnsupportedOp):
            base.scatter(0, index[:, None].expand(40, 3), source, reduce="add")


def test_prefix_sums_are_the_accumulators_states():
    x = values(4, 30)
    total, expected = torch.zeros(4, dtype=HALF), []
    for column in x.to(HALF).T:
        total = total + column
        expected.append(total)
    with fpsim.emulate("fp16", "fp16"):
        sums = x.cumsum(1)
    assert torch.equal(sums, torch.stack(expected, 1).float())


@pytest.mark.parametrize("dim", [None, 0, 1, (0, 2)])
def test_statistics_round_once(dim):
    x = values(4, 5, 6, scale=3.0)
    axes = (0, 1, 2) if dim is None else dim
    wide = x.double()
    mean = wide.mean(axes, keepdim=True)
    squares = ((wide - mean) ** 2).sum(axes)
    count = x.numel() // squares.numel()
    with fpsim.emulate("fp16"):
        actual = [x.var(dim), x.std(dim, correction=0), *torch.var_mean(x, dim), x.logsumexp(axes)]
    variance = squares / (count - 1)
    expected = [variance, (squares / count).sqrt(), variance, mean.reshape(squares.shape), wide.logsumexp(axes)]
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, fpsim.round(b, "fp16").float())


def test_interpolation_rounds_once():
    x = values(1, 2, 5, 5)
    for mode in ("nearest", "bilinear", "bicubic"):
        with fpsim.emulate("fp16"):
            actual = functional.interpolate(x, scale_factor=1.7, mode=mode)
        assert torch.equal(actual, fpsim.round(functional.interpolate(x.double(), scale_factor=1.7, mode=mode), "fp16").float())


def test_elementary_functions_are_those_of_the_arrays():
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(HALF).float()
    for name in (
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log10",
        "log1p",
        "sin",
        "cos",
        "tan",
        "tanh",
        "sigmoid",
        "erf",
        "rsqrt",
    ):
        with fpsim.emulate("fp16"):
            emulated = getattr(torch, name)(patterns).numpy()
        with np.errstate(all="ignore"):
            expected = getattr(fpsim.elementary, name)(patterns.numpy(), "fp16")
        assert np.array_equal(emulated, expected, equal_nan=True), name
        number = ~np.isnan(expected)
        assert np.array_equal(np.signbit(emulated)[number], np.signbit(expected)[number]), name


def test_group_norm_rounds_once():
    x, gradient = values(3, 6, 4, 4, scale=2.0).requires_grad_(), values(3, 6, 4, 4, seed=1)
    layer = torch.nn.GroupNorm(2, 6)
    torch.nn.init.uniform_(layer.weight)
    sim = fpsim.run(layer, "fp16")
    with sim:
        y = sim(x)
        y.backward(gradient)
    wide = x.detach().double().reshape(3, 2, -1)
    mean = wide.mean(2, keepdim=True)
    inverse = 1 / (((wide - mean) ** 2).mean(2, keepdim=True) + layer.eps).sqrt()
    normal = ((wide - mean) * inverse).reshape(x.shape)
    weight, bias = (item.detach().double()[:, None, None] for item in (sim.weight, sim.bias))
    assert torch.equal(y.detach(), fpsim.round(normal * weight + bias, "fp16").float())
    saved = ((wide - mean.float().double()) * inverse.float().double()).reshape(x.shape)
    assert torch.equal(sim.weight.grad, fpsim.round((gradient.double() * saved).sum((0, 2, 3)), "fp16").float())
    assert torch.equal(sim.bias.grad, fpsim.round(gradient.double().sum((0, 2, 3)), "fp16").float())


def test_rows_that_are_masked_out_are_zero_in_attention():
    q = values(1, 2, 4, 8)
    mask = torch.tensor([[True, False, False, False], [False] * 4, [True, True, False, False], [True] * 4])
    with fpsim.emulate("fp16"):
        y = functional.scaled_dot_product_attention(q, q, q, attn_mask=mask)
    assert torch.isfinite(y).all()
    assert (y[:, :, 1] == 0).all()


def test_nan_to_num_knows_the_format():
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 1.0])
    with fpsim.emulate("fp16"):
        assert torch.nan_to_num(x).tolist() == [65504.0, -65504.0, 0.0, 1.0]
        assert torch.nan_to_num(x, nan=0.1, posinf=1e9).tolist() == [65504.0, -65504.0, float(np.float16(0.1)), 1.0]
