"""Every public entry of fpsim once, and training steps; run by itself, prints which functions were compiled for it."""

import functools
import json
import sys
import warnings

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from numba.core import event
from torch import nn

import fpsim
import fpsim.bounds
import fpsim.hardware

RANDOM = np.random.default_rng(0)
X = fpsim.round(RANDOM.normal(size=(8, 40)).astype(np.float32), "e4m3")
Y = fpsim.round(RANDOM.normal(size=(40, 40)).astype(np.float32), "e4m3")
POSITIVE = fpsim.round(RANDOM.uniform(1, 2, (8, 40)).astype(np.float32), "e4m3")
IMAGE = fpsim.round(RANDOM.normal(size=(2, 3, 9, 9)).astype(np.float32), "e4m3")
WEIGHT = fpsim.round(RANDOM.normal(size=(4, 3, 3, 3)).astype(np.float32), "e4m3")
GRADIENT = fpsim.round(RANDOM.normal(size=(2, 4, 7, 7)).astype(np.float32), "e4m3")

ACCUMULATORS = (
    "fp16", "fp16:pairwise", "fp16:blocked(8)", "fp16:blocked(8)->fp32", "fp16:lanes(4)", "fp16:lanes(4,pairwise)",
    "fp16:split(3)", "fp16:fma", "fp16:exact-products", "fp16:kahan", "fp16:neumaier", "bf16", "bf16:fma", "fp32",
    "fp32:pairwise", "exact", "native",
)  # fmt: skip
MODES = ("nearest-even", "toward-zero", "up", "down", "nearest-away", "odd")
FUNCTIONS = (
    "acos acosh asin asinh atan atanh cos cosh erf erfc exp exp2 expm1 log log10 log1p log2 rsqrt sigmoid sin sinh tan tanh"
)
VALUES = (  # which compute nothing
    "Accumulator Certificate Counters FORMATS FixedPoint Format NumberSystem Order Report Rounding Simulation Tolerance Tree "
    "UnsupportedOp get_accumulator get_format get_num_threads get_rounding get_system set_num_threads"
)


def modes():
    for mode in MODES:
        yield {"rounding": mode}
    yield {"rounding": "stochastic", "seed": 1}


def roundings():
    for fmt in ("fp16", "bf16", "e5m2", "e4m3", "tf32", "fp32", "e2m1", "int8"):
        for how in modes():
            fpsim.round(X.astype(np.float64), fmt, **how)
            fpsim.round(X, fmt, **how)
    fpsim.round(np.ones(1 << 20, np.float32), "fp16")


def operations():
    for fmt in ("fp16", "bf16", "tf32", "fp32"):
        for how in modes():
            for operation in (fpsim.add, fpsim.sub, fpsim.mul, fpsim.div):
                operation(X, POSITIVE, fmt, **how)
            fpsim.fma(X, POSITIVE, X, fmt, **how)
            fpsim.sqrt(POSITIVE, fmt, **how)


def codes():
    for fmt in fpsim.FORMATS:
        values = POSITIVE if fmt != "e8m0fnu" else np.ones(8, np.float32)
        values = fpsim.round(values.astype(np.float64), fmt)
        fpsim.decode(fpsim.encode(values, fmt), fmt)
        fpsim.ulp(values, fmt), fpsim.next_up(values, fmt), fpsim.next_down(values, fmt)


def each_accumulator(function):
    for accumulate in ACCUMULATORS:
        function(fmt="fp16", accumulate=accumulate)
    for how in modes():
        function(fmt="fp16", accumulate="fp16", **how)
    function(fmt="fp16", accumulate="fp16", error_bound=True)


def products():
    each_accumulator(functools.partial(fpsim.matmul, X, Y))
    each_accumulator(functools.partial(fpsim.dot, X[0], X[1]))
    for accumulate in ("fp16", "fp32", "fp16:pairwise"):
        fpsim.matmul(X, Y, fmt="fp16", accumulate=accumulate, counters=fpsim.Counters())
    for accumulate in ("fp16", "fp32", "fp16:pairwise", "exact"):
        fpsim.matmul(X[None].repeat(3, 0), Y[None].repeat(3, 0), fmt="fp16", accumulate=accumulate)
        fpsim.matmul(X, Y, fmt="fp16", accumulate=accumulate, addend=np.ones(40, np.float32))
    for name, unit in fpsim.hardware.UNITS.items():
        for instruction in unit.instructions:
            for fmt in instruction.operands:
                fpsim.matmul(fpsim.round(X, fmt), fpsim.round(Y, fmt), fmt=fmt, accumulate=name)


def sums():
    for axis in (0, 1, None):
        each_accumulator(functools.partial(fpsim.sum, Y, axis=axis))
        fpsim.mean(Y, axis=axis, fmt="fp16", accumulate="fp16")
        fpsim.sum(Y, axis=axis, fmt="fp16", accumulate="fp16", counters=fpsim.Counters())
    for axis in (0, 1):
        fpsim.cumsum(Y, axis, fmt="fp16", accumulate="fp16")


def convolutions():
    each_accumulator(functools.partial(fpsim.conv, IMAGE, WEIGHT))
    each_accumulator(functools.partial(fpsim.conv_input_gradient, GRADIENT, WEIGHT, IMAGE.shape))
    each_accumulator(functools.partial(fpsim.conv_weight_gradient, GRADIENT, IMAGE, WEIGHT.shape))


def elementary():
    for name in FUNCTIONS.split():
        for fmt in ("fp16", "bf16", "fp32"):
            getattr(fpsim, name)(np.minimum(POSITIVE, 1) if name in ("acos", "asin", "atanh") else POSITIVE, fmt)


def hardware():
    for name, conversion in fpsim.hardware.CONVERSIONS.items():
        fpsim.hardware.convert(fpsim.encode(np.ones(8), conversion.source), name, conversion.roundings[0])
    fpsim.hardware.product(X, Y, unit="h100", fmt="fp16")
    fpsim.hardware.quantize_blocks(np.ones((32, 64), np.float32), kind="mxf8f6f4", fmt="e4m3fn")


def bounds():
    fpsim.bounds.matmul(X, Y, fmt="fp16", accumulate="fp16")
    fpsim.bounds.accumulation_bound("fp16", "fp16", 100)
    fpsim.bounds.probabilistic_bound("fp16", "fp16", 100)


def reveal():
    fpsim.reveal(lambda terms: terms.astype(np.float32).sum(), 16)


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * 3 * 3, 10),
    )  # fmt: skip


def gpt2():
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


def train(model, loss, optimizer, **policy):
    simulation = fpsim.run(model, **policy)
    steps = optimizer(simulation.parameters(), lr=1e-3)
    with simulation:
        for _ in range(2):
            steps.zero_grad()
            loss(simulation).backward()
            steps.step()
    simulation.report()


def training():
    adam = functools.partial(torch.optim.AdamW, eps=1e-4)
    images, labels, tokens = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,)), torch.randint(0, 50, (2, 48))
    for policy in ({"fmt": "fp16", "accumulate": "fp16"}, {"fmt": "bf16"}, {"fmt": "fp16", "granularity": "primitive"}):
        train(cnn(), lambda model: F.cross_entropy(model(images), labels), torch.optim.SGD, **policy)
        train(gpt2(), lambda model: model(tokens, labels=tokens).loss, adam, **policy)
    with fpsim.emulate(fmt="bf16", accumulate="bf16"):
        images @ images


def certificates():
    images, labels = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    fpsim.certify(cnn().eval(), images, fmt="fp16", accumulate="fp16")
    fpsim.tolerance(cnn().eval(), cnn().eval(), [(images, labels)])


def bundles():
    fpsim.record("suite.bundle", device="cpu", sections=["products"])
    with fpsim.recording("model.bundle", device="cpu"):
        torch.ones(8, 40) @ torch.ones(40, 8)
    for name in ("suite.bundle", "model.bundle"):
        fpsim.crosscheck(name)


ENTRIES = {
    roundings: "round",
    operations: "add div fma mul sqrt sub",
    codes: "decode encode next_down next_up ulp",
    products: "dot matmul",
    sums: "cumsum mean sum",
    convolutions: "conv conv_input_gradient conv_weight_gradient",
    elementary: FUNCTIONS,
    hardware: "",
    bounds: "",
    reveal: "reveal",
    training: "emulate run",
    certificates: "certify tolerance",
    bundles: "crosscheck record recording",
}


class Compiled(event.Listener):
    """The functions whose compilation began, in order."""

    def __init__(self):
        self.names = []

    def on_start(self, event):
        self.names.append(event.data["dispatcher"].__qualname__)

    def on_end(self, event):
        pass


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    covered = set(" ".join([VALUES, *ENTRIES.values()]).split())
    assert covered == set(fpsim.__all__), covered ^ set(fpsim.__all__)
    compiled = Compiled()
    event.register("numba:compile", compiled)
    torch.manual_seed(0)
    for entry in sys.argv[1:] or ENTRIES:
        globals()[entry.__name__ if callable(entry) else entry]()
    json.dump(compiled.names, sys.stdout)
