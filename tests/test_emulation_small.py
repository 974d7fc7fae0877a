"""Tensors below float32 under a named format and under "native": they mean themselves. ml_dtypes and NumPy are the oracles."""

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import UnsupportedOp

DTYPES = {
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    **{getattr(torch, name): getattr(ml_dtypes, name)
       for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")},
}  # fmt: skip
HALVES = (torch.float16, torch.bfloat16)
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32}
FORMATS = ["fp16", "bf16", {"*": "fp16"}, {"*": "fp32", "weight": "bf16"}]


def same(found, expected):
    """Equal values, NaN too, whatever NumPy dtype holds them."""
    with np.errstate(invalid="ignore"):
        found, expected = (np.asarray(x).astype(np.float64) for x in (found, expected))
    assert found.shape == expected.shape
    assert np.array_equal(found, expected, equal_nan=True), (found, expected)
    numbers = ~np.isnan(found)
    assert np.array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))


def rounded(x, dtype):
    """The values as the dtype has them, in float32."""
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(dtype).astype(np.float32)


def numbers(*shape, seed=0):
    return torch.from_numpy(np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_cast_rounds_every_value_of_the_format_once_and_is_rounded_when_it_comes_back(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(np.float16)
    with fpsim.emulate("fp16"):
        small = torch.from_numpy(x.astype(np.float32)).to(dtype)
        back = small.float()
        filled = torch.empty(x.shape, dtype=dtype).copy_(torch.from_numpy(x.astype(np.float32)))
    assert small.dtype is dtype
    expected = rounded(x, DTYPES[dtype])
    same(small.float(), expected)
    same(filled.float(), expected)
    same(back, rounded(expected, np.float16))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("dtype", HALVES)
def test_a_region_computes_in_its_own_dtype_forward_and_backward(dtype, fmt):
    own = DTYPES[dtype]
    fmt_name = fmt if isinstance(fmt, str) else fmt["*"]
    outer = NUMPY[fmt_name]
    x, w = numbers(5, seed=1), numbers(5, seed=2)
    with fpsim.emulate(fmt) if isinstance(fmt, str) or "weight" not in fmt else fpsim.emulate({"*": fmt_name}):
        a, b = x.clone().requires_grad_(), w.clone().requires_grad_()
        small = a.to(dtype)
        inner = small * b.to(dtype) + small
        out = inner.float() * b
        out.sum().backward()
    xs, ws = rounded(x, outer).astype(outer), rounded(w, outer).astype(outer)
    s, v = xs.astype(own), ws.astype(own)
    product = s * v + s
    same(inner.detach().float(), product)
    same(out.detach(), product.astype(outer) * ws)
    to_inner = ws.astype(own)  # the gradient of the cast back
    to_small = to_inner * v + to_inner  # of the product and of the sum, added in the dtype
    same(a.grad, to_small.astype(outer))
    same(b.grad, product.astype(outer) + (to_inner * s).astype(outer))


def chain(a, b):
    """Exact products of narrow values, added in float32 in ascending k."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total = total + (a[:, k : k + 1].astype(np.float32) * b[k].astype(np.float32)).astype(np.float32)
    return total


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("dtype", HALVES)
def test_an_autocast_region_multiplies_in_its_dtype(dtype, granularity):
    own, layer, x = DTYPES[dtype], nn.Linear(7, 3), numbers(4, 7)
    sim = fpsim.run(layer, "bf16", "fp32", granularity=granularity)
    with sim, torch.autocast("cpu", dtype):
        y = sim(x)
    with sim:
        y.float().sum().backward()
    weight, bias, read = (rounded(t.detach(), ml_dtypes.bfloat16) for t in (layer.weight, layer.bias, x))
    weight, bias, read = (item.astype(own) for item in (weight, bias, read))
    expected = (chain(read, weight.T) + bias.astype(np.float32)).astype(own)
    assert y.dtype is dtype
    same(y.detach().float(), expected)
    ones = np.ones((4, 3), own)
    same(sim.weight.grad, chain(ones.T, read).astype(own).astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", HALVES)
def test_in_fp32_a_region_is_what_it_is_under_native(dtype):
    model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    x, grads = numbers(3, 6), []
    for fmt in ("fp32", "native"):
        sim = fpsim.run(model, fmt, "fp32")
        with sim:
            small = x.to(dtype)
            region = torch.nn.functional.softmax(small @ small.T, -1) @ small
            grads.append([region, torch.nn.functional.silu(region).float()])
    for first, second in zip(*grads, strict=True):
        assert torch.equal(first, second)


class Recurrent(nn.Module):
    """A buffer of 16 bits beside float32 parameters."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("normalizer", torch.tensor(4**0.5 + 0.003, dtype=torch.bfloat16))
        self.scale = nn.Parameter(torch.tensor([0.1, 0.7, -3.0, 5.0], dtype=torch.bfloat16))

    def forward(self, x):
        return self.linear(x) * self.normalizer + x * self.scale


def test_a_model_holds_small_buffers_and_parameters_and_trains_them():
    model, x = Recurrent(), numbers(3, 4)
    sim = fpsim.run(model, "fp16", "fp32")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.25)
    with sim:
        sim(x).sum().backward()
        gradient, before = sim.scale.grad.clone(), sim.scale.detach().clone()
        optimizer.step()
    half = rounded(x, np.float16).astype(np.float16)
    column = np.zeros(4, np.float32)
    for row in half:
        column = column + row.astype(np.float32)
    same(gradient.float(), column.astype(np.float16).astype(ml_dtypes.bfloat16))
    assert sim.scale.dtype is torch.bfloat16 and sim.normalizer.dtype is torch.bfloat16
    step = before.double() - 0.25 * gradient.double()
    same(sim.scale.detach().float(), step.numpy().astype(ml_dtypes.bfloat16))


def test_a_model_without_float32_parameters_names_the_format_for_it():
    with pytest.raises(fpsim.emulation.UnsupportedTensor, match="native"):
        fpsim.run(nn.Linear(2, 2).bfloat16(), "fp16")


@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp16"}], ids=str)
def test_where_dtypes_meet_the_result_has_the_format_and_what_is_written_its_own(fmt):
    x, y = torch.tensor([1.1, -2.3, 7e4]), torch.tensor([1.3, 0.001, 2.0], dtype=torch.bfloat16)
    with fpsim.emulate(fmt):
        total, joined = x + y, torch.cat([y, x])
        target = y.clone()
        assert target.add_(x) is target and target.dtype is torch.bfloat16
        wide = x.clone()
        wide.mul_(y)
        with pytest.raises(RuntimeError, match="same dtype"):
            x @ y
        mean, ones = torch.zeros(3), torch.ones(3)
        normal = torch.nn.functional.batch_norm(y[None].expand(4, 3), mean, ones.clone(), ones, None, True)
    half, narrow = rounded(x, np.float16).astype(np.float16), y.float().numpy().astype(np.float16)
    with np.errstate(over="ignore"):
        same(total, half + narrow)
        same(target.float(), (half + narrow).astype(ml_dtypes.bfloat16))
        same(wide, half * narrow)
    same(joined, np.concatenate([narrow, half]))
    assert normal.dtype is torch.bfloat16
    assert torch.equal(mean, mean.half().float())  # a running mean is of the format


# float8


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("call", [
    lambda x: x + x.flip(0), lambda x: (x * x.flip(0)).sum(), lambda x: x.reshape(4, -1) @ x.reshape(-1, 4),
    lambda x: torch.softmax(x, 0), lambda x: torch.cat([x, x.neg()]).sort().values,
])  # fmt: skip
def test_float8_under_native_is_the_named_format(call, name):
    x = rounded(numbers(32), getattr(ml_dtypes, name))
    with fpsim.emulate("native"):
        found = call(torch.from_numpy(x).to(getattr(torch, name)))
    with fpsim.emulate(name):
        expected = call(torch.from_numpy(x))
    assert found.dtype is getattr(torch, name)
    same(found.float(), expected)


def operands(k=48, names=("float8_e4m3fn", "float8_e4m3fn"), seed=0):
    arrays = [rounded(numbers(*shape, seed=seed + i), getattr(ml_dtypes, names[i])) for i, shape in enumerate([(5, k), (k, 6)])]
    return arrays, [torch.from_numpy(x).to(getattr(torch, name)) for x, name in zip(arrays, names, strict=True)]


@pytest.mark.parametrize("out", [None, torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("by_row", [False, True])
@pytest.mark.parametrize("fmt", ["native", "fp16"])
def test_scaled_products_round_each_step_in_the_accumulator_and_once_to_the_result(fmt, by_row, out):
    (a, b), (left, right) = operands(names=("float8_e4m3fn", "float8_e5m2"))
    shapes = ((5, 1), (1, 6)) if by_row else ((), ())
    scales = [numbers(*shape, seed=7).abs() + 0.5 for shape in shapes]
    bias = numbers(6, seed=8).bfloat16()
    with fpsim.emulate(fmt, "fp32"):
        found = torch._scaled_mm(left, right, *scales, bias=bias, out_dtype=out)
        by_function = torch.nn.functional.scaled_mm(
            left, right, scales[0], torch.nn.functional.ScalingType(by_row), scales[1],
            torch.nn.functional.ScalingType(by_row), bias=bias, output_dtype=out or torch.float8_e4m3fn,
        )  # fmt: skip
    if fmt == "fp16":
        scales = [scale.half().float() for scale in scales]
    expected = chain(a, b) * scales[0].numpy() * scales[1].numpy() + bias.float().numpy()
    assert found.dtype is (out or torch.float8_e4m3fn)
    inside = np.float16 if fmt == "fp16" else np.float32
    same(found.float(), expected.astype(inside if out is torch.float32 else DTYPES[found.dtype]))
    same(by_function.float(), found.float())


def test_fast_accumulation_is_the_units_own_and_without_it_parts_of_128_terms_are_added_in_fp32():
    a, b = torch.zeros(1, 256), torch.zeros(256, 1)
    a[0, 0], b[0, 0], a[0, 128], b[128, 0] = 1.0, 1.0, 2.0**-7, 2.0**-7  # the second lies below the 14 bits of a register
    left, right, one = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), torch.ones(())
    found = {}
    for unit in ("h100", "b200"):
        for fast in (False, True):
            with fpsim.emulate("native", unit):
                product = torch._scaled_mm(left, right, one, one, out_dtype=torch.float32, use_fast_accum=fast)
            found[unit, fast] = product.item()
    kept = 1 + 2.0**-14
    assert found == {("h100", False): kept, ("h100", True): 1.0, ("b200", False): kept, ("b200", True): kept}


def test_what_no_cpu_has_raises_and_says_so():
    _, (left, right) = operands(k=32)
    blocks = [torch.ones(shape).to(torch.float8_e4m3fn) for shape in ((5, 2), (2, 6))]
    with fpsim.emulate("native"):
        with pytest.raises(UnsupportedOp, match="scaled_product"):
            torch._scaled_mm(left, right, *blocks, out_dtype=torch.bfloat16)
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            torch._scaled_mm(left, left, torch.ones(()), torch.ones(()))
        with pytest.raises(RuntimeError, match="Promotion"):
            left + torch.ones(32)
    with fpsim.emulate("native", "a100"), pytest.raises(UnsupportedOp, match="no instruction"):
        torch._scaled_mm(left, right, torch.ones(()), torch.ones(()))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.BatchNorm1d(8)], ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_gradients_of_float32_parameters_of_a_16_bit_norm_are_values_of_the_format(fmt, norm):
    sim = fpsim.run(nn.Sequential(nn.Linear(4, 8), norm), fmt)
    with sim:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = sim(numbers(3, 4))
        (y.float() * numbers(3, 8, seed=1)).sum().backward()
    name = fmt if isinstance(fmt, str) else fmt["*"]
    for parameter in sim.parameters():
        same(fpsim.round(parameter.grad.numpy(), name), parameter.grad.numpy())
