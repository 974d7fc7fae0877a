"""Stochastic results are what they always were: digests of what each seed gave when they were recorded."""

import hashlib

import numpy as np
import pytest
import torch

import fpsim

SEEDS = (0, 1, 7, 12345, 2**40 + 3)
ACCUMULATORS = (
    "fp16", "bf16", "fp32", "e4m3", "fp16:pairwise", "fp16:blocked(16)", "fp16:blocked(16)->fp32", "fp16:lanes(8):fma",
    "fp16:split(3)", "bf16:fma", "fp16:pairwise:exact-products", "fp16:kahan", "bf16:neumaier", "exact", "h100",
)  # fmt: skip
SHAPES = ((1, 300, 1), (1, 64, 200), (70, 33, 3), (37, 50, 41))


def digest(arrays):
    result = hashlib.sha256()
    for array in arrays:
        array = np.array(array)
        array[np.isnan(array)] = np.nan
        result.update(np.ascontiguousarray(array).tobytes())
    return result.hexdigest()[:16]


def normal(shape, fmt, number):
    return fpsim.round(np.random.Generator(np.random.Philox(number)).standard_normal(shape).astype(np.float32), fmt)


def products(seed):
    for accumulate in ACCUMULATORS:
        for rows, leaves, columns in SHAPES:
            a, b = normal((rows, leaves), "e4m3fn", 1), normal((leaves, columns), "e4m3fn", 2)
            addend = normal((rows, columns), "e4m3fn", 3)
            how = {"fmt": "e4m3fn", "accumulate": accumulate, "rounding": "stochastic", "seed": seed}
            yield fpsim.matmul(a, b, **how)
            yield fpsim.matmul(a, b, addend=addend, **how)


def sums(seed):
    x = normal((5, 40, 6), "fp16", 4)
    for accumulate in ("fp16", "bf16:pairwise", "fp16:blocked(8)->fp32", "fp16:kahan", "exact", "fp32"):
        how = {"fmt": "fp16", "accumulate": accumulate, "rounding": "stochastic", "seed": seed}
        for axis in (None, 1, (0, 2)):
            yield fpsim.sum(x, axis, **how)
            yield fpsim.mean(x, axis, **how)
    yield fpsim.cumsum(x, 1, fmt="fp16", accumulate="fp16", rounding="stochastic", seed=seed)
    weight, bias = normal((8, 3, 3, 3), "fp16", 5), normal((8,), "fp16", 6)
    image = normal((2, 3, 9, 9), "fp16", 7)
    how = {"fmt": "fp16", "accumulate": "fp16", "rounding": "stochastic", "seed": seed}
    yield fpsim.conv(image, weight, bias, stride=2, padding=1, **how)
    gradient = normal((2, 8, 5, 5), "fp16", 8)
    yield fpsim.conv_input_gradient(gradient, weight, image.shape, stride=2, padding=1, **how)
    yield fpsim.conv_weight_gradient(gradient, image, weight.shape, stride=2, padding=1, **how)


def elements(seed):
    x, y = normal((400,), "fp32", 9), normal((400,), "fp32", 10)
    for fmt in ("fp16", "bf16", "e5m2", "fp32"):
        left, right = fpsim.round(x, fmt), fpsim.round(y, fmt)
        yield fpsim.round(x, fmt, "stochastic", seed=seed)
        for function in (fpsim.add, fpsim.mul, fpsim.div):
            yield function(left, right, fmt=fmt, rounding="stochastic", seed=seed)
        yield fpsim.fma(left, right, left, fmt=fmt, rounding="stochastic", seed=seed)


def training(seed):
    """Two steps whose results rest on arithmetic alone, no library's functions."""
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(48, 4))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.from_numpy(normal(tuple(parameter.shape), "bf16", number) / 4))
    x, target = (torch.from_numpy(normal(shape, "bf16", 20 + len(shape))) for shape in ((5, 1, 6, 6), (5, 4)))
    for granularity in ("kernel", "primitive"):
        how = {"fmt": "bf16", "accumulate": "bf16", "rounding": "stochastic", "seed": seed, "granularity": granularity}
        sim = fpsim.run(model, **how)
        optimizer = torch.optim.SGD(sim.parameters(), lr=0.125, momentum=0.5)
        with sim:
            for _ in range(2):
                optimizer.zero_grad()
                ((sim(x) - target) ** 2).mean().backward()
                optimizer.step()
        yield from (parameter.detach().numpy() for parameter in sim.parameters())


RECORDED = {
    "products": ["5b2aa2eca85a0a16", "7dd06113a0161342", "99a667926da4330e", "f4ced0c7571596db", "116fb57b4b6a7108"],
    "sums": ["96d90e7264e8a883", "e98cb808816fef71", "cfba9b48ba9f4b88", "f3fc1f67cf3c7058", "0cdc591a6cade541"],
    "elements": ["bed7df72ed24e841", "ccec26f70da2e093", "7aa914429d13e072", "3798efd58ca11efc", "dc13137dcf8df609"],
    "training": ["f2effe05295ed7e7", "0a0e119dfe175cce", "eac7d5730dc96f46", "69d2e2443ac84b23", "c92bd27dde84b275"],
}


@pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")
@pytest.mark.parametrize("kind", [products, sums, elements, training])
def test_draws_are_those_recorded(kind):
    assert [digest(kind(seed)) for seed in SEEDS] == RECORDED[kind.__name__]
