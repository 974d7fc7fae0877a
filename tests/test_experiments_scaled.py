"""Scaled fp8 products: what each of the three products reads, against ml_dtypes and exact sums."""

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn

from experiments.models.scaled import Products, ScaledLinear, with_products

DTYPES = {"e4m3fn": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2, "bf16": ml_dtypes.bfloat16}
LARGEST = {"e4m3fn": 448.0, "e5m2": 57344.0, "bf16": math.inf}


def read(tensor, fmt, scaled):
    """What a product reads, scale taken out again: exact float64."""
    values = tensor.detach().double().numpy()
    scale = 1.0
    if scaled:
        while np.abs(values * scale).max() <= LARGEST[fmt]:
            scale *= 2
        while np.abs(values * scale).max() > LARGEST[fmt]:
            scale /= 2
    values = np.clip(values * scale, -LARGEST[fmt], LARGEST[fmt]).astype(np.float32).astype(DTYPES[fmt])
    return values.astype(np.float64) / scale


@pytest.mark.parametrize(
    "products",
    [Products("e4m3fn", "e5m2"), Products("e4m3fn", "e4m3fn"), Products("e4m3fn", "e5m2", scaled=False),
     Products("bf16", "bf16", scaled=False)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("size", [2.0**-12, 3.0, 1000.0])
def test_every_product_reads_the_rounded_numbers(products, size):
    generator = torch.Generator().manual_seed(0)
    layer = ScaledLinear(nn.Linear(24, 5), products)
    x = torch.randn(7, 24, generator=generator).mul(size).requires_grad_()
    gradient = torch.randn(7, 5, generator=generator) * size
    (layer(x) * gradient).sum().backward()
    a, w = (read(tensor, products.forward, products.scaled) for tensor in (x, layer.weight))
    g = read(gradient, products.backward, products.scaled)
    exact = {"result": a @ w.T + layer.bias.detach().double().numpy(), "inputs": g @ w, "weights": g.T @ a}
    found = {"result": layer(x), "inputs": x.grad, "weights": layer.weight.grad}
    for name, value in found.items():
        bound = 2.0**-24 * 26 * max(np.abs(exact[name]).max(), 1e-30) * 8  # sums of up to 25 terms in float32
        assert np.abs(value.detach().double().numpy() - exact[name]).max() <= bound, name


def test_scales_are_exact():
    """A power of two on the inputs is one on the result: no bit but the exponent depends on it."""
    layer = ScaledLinear(nn.Linear(64, 3, bias=False), Products("e4m3fn", "e5m2", "h100"))
    x = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x * 2.0**-20), layer(x) * 2.0**-20)


def test_promotion_keeps_what_fourteen_bits_lose():
    """128 ones after 2^16, which is the addend of their blocks: its 14 bits end above them. Another piece starts from 0."""
    weights = torch.zeros(1, 256)
    weights[0, 0], weights[0, 128:] = 256.0, 1.0
    x = torch.ones(1, 256)
    x[0, 0] = 256.0
    found = {}
    for promoted in (0, 128):
        layer = ScaledLinear(nn.Linear(256, 1, bias=False), Products("e4m3fn", "e5m2", "h100", promoted, scaled=False))
        with torch.no_grad():
            layer.weight.copy_(weights)
        found[promoted] = float(layer(x).detach())
    assert found == {0: 2.0**16, 128: 2.0**16 + 128}


def test_only_linear_layers_are_replaced():
    model = with_products(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)), Products("bf16", "bf16"))
    assert [type(layer) for layer in model] == [ScaledLinear, nn.BatchNorm1d, ScaledLinear]
