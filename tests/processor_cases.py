"""Results that must be the same bits on every processor, as digests: `python -m tests.processor_cases [--all]`.

Operands are made of integers alone, so that they depend on no machine's functions. All NaNs are one in a digest: their signs
and payloads are unspecified. Each kernel is compiled anew for a processor that is tried, so the cases share kernels.
"""

import argparse
import dataclasses
import hashlib
import json

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from fpsim.accumulation import Accumulator
from fpsim.arrays import elementary
from fpsim.backend.numba import formulas, functions as kernels
from tests.strategies import DETERMINISTIC, random_values

FP16, BF16, FP32 = (fpsim.get_format(name) for name in ("fp16", "bf16", "fp32"))
HALVES = (FP16, BF16)


def digest(*arrays):
    """A digest of the values, every NaN the same one."""
    found = hashlib.sha256()
    for array in arrays:
        values = np.ascontiguousarray(array)
        if values.dtype.kind == "f":
            values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
        found.update(f"{values.dtype.str}{values.shape}".encode() + values.tobytes())
    return found.hexdigest()[:16]


def generator():
    return np.random.default_rng(20)


def near(fmt, shape, center, spread, draw):
    """Values of the format whose exponents lie about `center`, both signs, of few bits or of all."""
    count = int(np.prod(shape))
    bits = np.where(draw.integers(0, 2, count) == 0, 2, fmt.precision)
    significand = draw.integers(2 ** (bits - 1), 2**bits) * np.exp2(1.0 - bits)
    scale = np.exp2(np.maximum(center + draw.integers(-spread, spread + 1, count), fmt.emin))
    return (draw.choice([-1.0, 1.0], count) * significand * scale).astype(np.float32).reshape(shape)


def operands(fmt, shape, draw):
    """Matrices whose products underflow, are usual, overflow, or are anything: (left, right) of each kind."""
    rows, terms, columns = shape
    for center in (fmt.emin // 2 - fmt.precision // 2, 0, fmt.emax // 2):
        yield near(fmt, (rows, terms), center, 3, draw), near(fmt, (terms, columns), center, 3, draw)
    yield (
        random_values(fmt, rows * terms, draw, np.float32).reshape(rows, terms),
        random_values(fmt, terms * columns, draw, np.float32).reshape(terms, columns),
    )


def products(accumulate, formats=HALVES, rounding="nearest-even", shape=(8, 9, 32), **options):
    """Products of each kind of operands."""
    draw = generator()
    for fmt in formats:
        for left, right in operands(fmt, shape, draw):
            found = fpsim.matmul(left, right, fmt=fmt, accumulate=accumulate.format(fmt.name), rounding=rounding, **options)
            yield from found if isinstance(found, tuple) else (found,)


def bits():
    """Numbers of any kind: float32, float64."""
    draw = generator()
    single, double = (draw.integers(0, 2**64, 4096, dtype=np.uint64) for _ in range(2))
    return (single >> np.uint64(32)).astype(np.uint32).view(np.float32), double.view(np.float64)


def roundings(modes=("nearest-even", "odd"), carriers=(1,)):
    for x in (bits()[carrier] for carrier in carriers):
        for fmt in (*HALVES, BF16.replace(flush="after")):
            yield from (fpsim.round(x, fmt, mode) for mode in modes)
    yield fpsim.round(bits()[1], FP16, "stochastic", seed=3)


def arithmetic():
    draw = generator()
    for fmt in (FP16, BF16, FP32, fpsim.get_format("tf32")):
        a, b, c = (random_values(fmt, 2048, draw, np.float32) for _ in range(3))
        for mode in ("nearest-even", "odd"):
            for function in (fpsim.add, fpsim.mul, fpsim.div):
                yield function(a, b, fmt, rounding=mode)
            yield fpsim.fma(a, b, c, fmt, rounding=mode)
            yield fpsim.sqrt(a, fmt, rounding=mode)


def functions(names=("exp", "log1p", "sin", "tanh", "erf")):
    """Of float64's own bits too: a last place of theirs differs between C libraries."""
    draw = generator()
    for fmt in (FP16, FP32):
        x = random_values(fmt, 1024, draw, np.float32)
        yield from (getattr(elementary, name)(x, fmt) for name in names)
    x = near(FP32, 4096, -1, 4, draw).astype(np.float64)
    for name in names:
        out = np.empty_like(x)
        kernels.apply(name, x, out)
        yield out


def powers():
    draw = generator()
    x, y = np.abs(near(FP32, 4096, 0, 9, draw).astype(np.float64)), near(FP32, 4096, 0, 3, draw).astype(np.float64)
    yield kernels.power(x, y)
    yield kernels.power(x, 1.75)


#: What formulas take beside operands.
NUMBERS = {
    "softplus": [(1.0, 20.0), (2.0, 3.0)],
    "softplus_gradient": [(1.0, 20.0), (2.0, 3.0)],
    "elu": [(1.0, 1.0, 1.0), (1.25, 0.7, 0.3)],
    "elu_gradient": [(1.0, 1.0, 1.0), (1.25, 0.7, 0.3)],
    "power_by_number": [(3.0,), (0.25,), (-1.7,), (0.0,), (np.inf,)],
}


def all_formulas():
    """Of float64's own bits."""
    draw = generator()
    operands = [near(FP32, 4096, 0, 9, draw).astype(np.float64) for _ in range(2)]
    for name in formulas.NAMES:
        for numbers in NUMBERS.get(name, [()]):
            out = np.empty(4096)
            places = (x.ctypes.data for x in (*operands[: formulas.operands_of(name)], out))
            formulas.apply(name, out.size, *places, *numbers)
            yield out


def sums():
    draw = generator()
    for fmt in HALVES:
        x = near(fmt, (6, 40), 0, 4, draw)
        yield fpsim.sum(x, axis=1, fmt=fmt, accumulate=f"{fmt.name}:pairwise")
        yield fpsim.cumsum(x, axis=1, fmt=fmt, accumulate=fmt.name)


def counters():
    for accumulate in ("{}", "{}:fma"):
        counted = fpsim.Counters()
        yield from products(accumulate, counters=counted)
        yield np.array([getattr(counted, field.name) for field in dataclasses.fields(counted)])


def units():
    draw = generator()
    for unit in ("h100", "avx512_bf16"):
        fmt = BF16 if unit == "avx512_bf16" else FP16
        for left, right in operands(fmt, (4, 32, 16), draw):
            yield fpsim.matmul(left, right, fmt=fmt, accumulate=unit)


class Network(nn.Module):
    """A convolution, a normalization, an activation and a linear layer."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.linear = nn.Conv2d(2, 4, 3), nn.LayerNorm(16), nn.Linear(64, 5)

    def forward(self, x):
        return self.linear(F.gelu(self.norm(self.convolution(x).flatten(2))).flatten(1))


def training(accumulate):
    """Losses and parameters of two steps."""
    draw = generator()
    model = Network()
    for parameter in model.parameters():
        parameter.data = torch.from_numpy(near(FP16, tuple(parameter.shape), -3, 2, draw))
    x = torch.from_numpy(near(FP16, (3, 2, 6, 6), 0, 2, draw))
    sim = fpsim.run(model, fmt="fp16", accumulate=accumulate)
    optimizer = torch.optim.AdamW(sim.parameters(), lr=2.0**-7)
    for _ in range(2):
        with sim:
            optimizer.zero_grad()
            loss = F.cross_entropy(sim(x), torch.tensor([0, 3, 1]))
            loss.backward()
            optimizer.step()
        yield loss.detach().numpy()
    for parameter in model.parameters():
        yield parameter.detach().numpy()


def losses():
    """Losses and activations in a format of more bits than portable rounding needs, forward and backward."""
    draw = generator()
    x = torch.from_numpy(near(FP32, (32, 24), 0, 2, draw)).requires_grad_()
    target = torch.from_numpy(draw.integers(0, 2, (32, 24)).astype(np.float32))
    with fpsim.emulate(fmt="fp32", accumulate="fp32"):
        for function in (
            F.gelu, F.silu, F.mish, F.softplus, F.logsigmoid, lambda x: F.softmax(x, -1), lambda x: x.logsumexp(-1),
            lambda x: F.binary_cross_entropy_with_logits(x, target), lambda x: F.cross_entropy(x, target),
            lambda x: F.layer_norm(x, (24,)), lambda x: F.normalize(x, 3.0), lambda x: x.abs() ** 1.7,
        ):  # fmt: skip
            x.grad = None
            y = function(x)
            y.sum().backward()
            yield from (y.detach().numpy(), x.grad.numpy())


FEW = {
    "roundings": roundings,
    "arithmetic": arithmetic,
    "elementary functions": functions,
    "chains": lambda: products("{}"),
    "fused chains": lambda: products("{}:fma"),
    "fused chains in fp32": lambda: products("fp32:fma", (*HALVES, FP32)),
    "fused chains downward": lambda: products("{}:fma", (BF16,), rounding="down"),
    "chains toward zero": lambda: products("{}", (BF16,), rounding="toward-zero"),
    "exact products": lambda: products("exact", (FP16,)),
    "sums": sums,
    "units": units,
}
ORDERS_AND_MODES = [
    ("{}", DETERMINISTIC),
    ("{}:fma", DETERMINISTIC),
    *((order, ("nearest-even", "down")) for order in ("{}:pairwise:exact-products", "{}:lanes(4)", "{}:split(2)")),
]
MORE = {
    "training": lambda: training("fp16:fma"),
    "roundings of any mode": lambda: roundings(DETERMINISTIC, carriers=(0, 1)),
    "every elementary function": lambda: functions(sorted(elementary.NAMES)),
    "powers": powers,
    "formulas": all_formulas,
    "losses": losses,
    "fused multiply-adds downward and stochastic": lambda: (
        fpsim.fma(*(random_values(fmt, 2048, generator(), np.float32) for _ in range(3)), fmt, **mode)
        for fmt in (BF16, FP32)
        for mode in ({"rounding": "down"}, {"rounding": "stochastic", "seed": 5})
    ),
    "chains of any mode": lambda: (
        item
        for accumulate, modes in ORDERS_AND_MODES
        for mode in modes
        for item in products(accumulate, (*HALVES, fpsim.get_format("tf32")), mode)
    ),
    "chains in fp32 of any mode": lambda: (
        item for mode in DETERMINISTIC for order in ("", ":fma") for item in products(f"fp32{order}", (*HALVES, FP32), mode)
    ),
    "stochastic chains": lambda: (
        item for order in ("", ":fma") for item in products("{}" + order, rounding="stochastic", seed=11)
    ),
    "flushing": lambda: (
        item
        for fmt in (BF16.replace(name="after", flush="after"), FP16.replace(name="before", flush="before"))
        for accumulate in (Accumulator(format=fmt), Accumulator(format=fmt, products="fma"))
        for left, right in operands(fmt.replace(flush=None), (8, 9, 32), generator())
        for item in [fpsim.matmul(*(fpsim.round(x, fmt) for x in (left, right)), fmt=fmt, accumulate=accumulate)]
    ),
    "compensated": lambda: (item for name in ("fp16:kahan", "fp32:neumaier") for item in products(name)),
    "counters": counters,
    "training in bf16": lambda: training("fp32"),
}


def digests(everything=False):
    with np.errstate(all="ignore"):
        cases = FEW | MORE if everything else FEW
        return {name: digest(*case()) for name, case in cases.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--all", action="store_true")
    print(json.dumps(digests(parser.parse_args().all), indent=1))
