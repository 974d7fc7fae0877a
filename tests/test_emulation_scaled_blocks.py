"""Products of float8 matrices with scales for blocks, against NumPy's float32 loop."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import fpsim

ROWS, TERMS, COLUMNS = 130, 288, 16  # neither rows nor terms are whole blocks


def of(*shape, seed, scale=1.0):
    return torch.from_numpy((np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32))


def positive(*shape, seed):
    return of(*shape, seed=seed).abs() + 0.1


def powers(*shape, seed):
    exponents = np.random.default_rng(seed).integers(-4, 5, shape)
    return torch.from_numpy((2.0**exponents).astype(np.float32)).to(torch.float8_e8m0fnu)


def blocks(size):
    return -(-TERMS // size)


KINDS = functional.ScalingType
SCALES = {  # recipes, scales, and the elements that share one: rows and terms of a, terms and columns of b
    "1x128, 128x128": (KINDS.BlockWise1x128, KINDS.BlockWise128x128, positive(ROWS, blocks(128), seed=2),
                       positive(blocks(128), 1, seed=3), (1, 128), (128, 128)),
    "1x128": (KINDS.BlockWise1x128, KINDS.BlockWise1x128, positive(ROWS, blocks(128), seed=2),
              positive(blocks(128), COLUMNS, seed=3), (1, 128), (128, 1)),
    "128x128, 1x128": (KINDS.BlockWise128x128, KINDS.BlockWise1x128, positive(2, blocks(128), seed=2),
                       positive(blocks(128), COLUMNS, seed=3), (128, 128), (128, 1)),
    "1x32": (KINDS.BlockWise1x32, KINDS.BlockWise1x32, powers(ROWS, blocks(32), seed=2), powers(blocks(32), COLUMNS, seed=3),
             (1, 32), (32, 1)),
}  # fmt: skip


def expected(a, b, scale_a, scale_b, sizes, bias):
    a, b = (item.float().numpy() for item in (a, b))
    left = np.repeat(np.repeat(scale_a.float().numpy(), sizes[0][0], 0), sizes[0][1], 1)[:ROWS, :TERMS]
    right = np.repeat(np.repeat(scale_b.float().numpy(), sizes[1][0], 0), sizes[1][1], 1)[:TERMS, :COLUMNS]
    total, step = np.zeros((ROWS, COLUMNS), np.float32), sizes[0][1]
    for begin in range(0, TERMS, step):
        own = np.zeros_like(total)
        for k in range(begin, min(begin + step, TERMS)):
            own = own + a[:, k, None] * b[k]
        total = total + own * left[:, begin, None] * right[begin]
    return torch.from_numpy(total + bias.numpy())


@pytest.mark.parametrize("fmt", ["native", "fp16"])
@pytest.mark.parametrize("name", SCALES)
def test_each_block_is_scaled_before_they_are_added(name, fmt):
    recipe_a, recipe_b, scale_a, scale_b, *sizes = SCALES[name]
    a, b = of(ROWS, TERMS, seed=0).to(torch.float8_e4m3fn), of(TERMS, COLUMNS, seed=1).to(torch.float8_e4m3fn)
    bias = of(COLUMNS, seed=4).bfloat16()
    with fpsim.emulate(fmt, "fp32"):
        by_shape = torch._scaled_mm(a, b, scale_a, scale_b, bias=bias, out_dtype=torch.bfloat16)
        by_name = functional.scaled_mm(a, b, scale_a, recipe_a, scale_b, recipe_b, bias=bias, output_dtype=torch.bfloat16)
    if fmt == "fp16" and scale_a.dtype is torch.float32:  # scales are values of the format as well
        scale_a, scale_b = scale_a.half(), scale_b.half()
    wanted = expected(a, b, scale_a, scale_b, sizes, bias.float())
    assert torch.equal(by_shape, by_name) and by_name.dtype is torch.bfloat16
    assert torch.equal(by_name, wanted.bfloat16())


def test_what_is_not_known_says_what_to_do():
    a, b = of(ROWS, TERMS, seed=0).to(torch.float8_e4m3fn), of(TERMS, COLUMNS, seed=1).to(torch.float8_e4m3fn)
    recipe_a, recipe_b, scale_a, scale_b, *_ = SCALES["1x128"]
    with fpsim.emulate("native", "native"), pytest.raises(fpsim.UnsupportedOp, match="say what to accumulate in"):
        torch._scaled_mm(a, b, scale_a, scale_b, out_dtype=torch.bfloat16)
    with fpsim.emulate("native", "fp32"):
        with pytest.raises(fpsim.UnsupportedOp, match="scaled_product"):
            torch._scaled_mm(a, b, scale_a[:, :1].expand(-1, 2), scale_b, out_dtype=torch.bfloat16)
        swizzled = [functional.SwizzleType.SWIZZLE_32_4_4] * 2
        with pytest.raises(fpsim.UnsupportedOp, match="swizzled"):
            functional.scaled_mm(a, b, scale_a, recipe_a, scale_b, recipe_b, *swizzled, output_dtype=torch.bfloat16)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no packed float4")
def test_float4_factors_are_refused_with_what_has_their_products():
    a = torch.zeros(4, 8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    b = a.t()
    for fmt in ("native", "fp16"):
        with fpsim.emulate(fmt), pytest.raises(fpsim.UnsupportedOp, match="scaled_product"):
            torch._scaled_mm(a, b, torch.ones(1), torch.ones(1), out_dtype=torch.bfloat16)


@pytest.mark.parametrize("fmt", ["native", "fp16", {"*": "fp32"}], ids=str)
def test_a_product_into_a_tensor_and_what_does_not_fit(fmt):
    a, b, one = of(16, 32, seed=0).to(torch.float8_e4m3fn), of(16, 32, seed=1).to(torch.float8_e5m2).t(), torch.ones(())
    with fpsim.emulate(fmt, "fp32"):
        for dtype in (torch.bfloat16, torch.float32, torch.float8_e5m2):
            wanted, out = torch._scaled_mm(a, b, one, one, out_dtype=dtype), torch.empty(16, 16, dtype=dtype)
            assert torch._scaled_mm(a, b, one, one, out_dtype=dtype, out=out) is out
            assert torch.equal(out.float(), wanted.float())
        for bias in (torch.ones(1), torch.ones(15)):
            with pytest.raises(RuntimeError, match="16 elements"):
                torch._scaled_mm(a, b, one, one, bias=bias, out_dtype=torch.bfloat16)
        with pytest.raises(fpsim.UnsupportedOp, match="out_dtype"):
            torch._scaled_mm(a, b, one, one, out_dtype=torch.int32)
        with pytest.raises(fpsim.UnsupportedOp, match="takes it"):
            torch._scaled_mm(a.bfloat16(), b, one, one, out_dtype=torch.bfloat16)
