"""Certificates against exact arithmetic: no bound is ever violated, and every term of one is needed."""

import copy
import itertools
import math
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fpsim
from fpsim.emulation.certification import certify, costs, derivatives, long_products, passes, products, single, table
from fpsim.emulation.certification.methods import METHODS
from fpsim.emulation.certification.normalization import Rows, _probabilities, _softmax_moved
from fpsim.emulation.certification.norms import convolution_norm, matrix_norm
from fpsim.emulation.certification.segments import normal_between
from fpsim.emulation.certification.slopes import Operand, Slope
from fpsim.emulation.certification.trace import Ref, record
from fpsim.theory import accumulations, units
from tests.certificate_oracle import (
    Attention,
    Product,
    Residual,
    exact,
    gelu,
    logits,
    normalized,
    number,
    seeded,
    softmax,
    violations,
)

#: (format, accumulator, rounding): every kind of accumulator, every mode, saturation and flushing.
MACHINES = [
    ("fp16", "fp16", "nearest-even"),
    ("fp16", "fp32", "nearest-even"),
    ("fp16", "fp16:pairwise", "nearest-away"),
    ("fp16", "fp16:fma", "toward-zero"),
    ("bf16", "bf16:lanes(2)", "up"),
    ("bf16", "bf16:blocked(2)->fp32", "nearest-even"),
    ("fp16", "fp32:split(2)->bf16", "nearest-even"),
    ("bf16", "fp16", "down"),
    ("fp16", "fp16:kahan", "nearest-even"),
    ("fp16", "fp16:neumaier", "nearest-even"),
    ("fp16", "exact", "odd"),
    ("fp16", "native", "nearest-even"),
    ("float8_e4m3fn", "fp16:exact-products", "nearest-even"),
    ("float8_e5m2", "fp32", "stochastic"),
    ("fp16", "fp16", "stochastic"),
    ("float6_e3m2fn", "fp32", "nearest-even"),
    ("fp32", "fp32", "nearest-even"),
    ("fp16", "v100", "nearest-even"),
    ("fp16", "h100:fp16", "nearest-even"),
    ("bf16", "avx512_bf16", "nearest-even"),
    ("bf16", "mi250", "nearest-even"),
    ("float8_e4m3fn", "h100", "nearest-even"),
    (fpsim.get_format("fp16").replace(name="fp16-flushed", flush="after"), "fp16", "nearest-even"),
]
#: What the plain tests draw from: every machine has kernels of its own to compile.
FEW_MACHINES = [MACHINES[place] for place in (0, 1, 3, 8)]
pytestmark = pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors are small here: a second thread costs more than it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def seed_for(rounding):
    return 5 if rounding == "stochastic" else None


def check(model, x, machine, method="shadow", expected=None, **options):
    """Certify, and compare the emulated logits with exact ones; returns the certificate."""
    fmt, accumulate, rounding = machine
    certificate = certify(model, x, fmt, accumulate, rounding, method, seed=seed_for(rounding), **options)
    expected = logits(model, x) if expected is None else expected
    emulated = certificate.logits
    if method == "a-priori":
        emulated = fpsim.run(model, fmt, accumulate, rounding, seed_for(rounding))(x).detach().double()
    assert violations(certificate.bound, emulated, expected) == [], (machine, method)
    if method != "probabilistic":
        wrong = expected.argmax(-1) != emulated.argmax(-1).numpy()
        assert not (certificate.certified.numpy() & wrong).any()
    return certificate


def methods_for(rounding):
    one_sided = rounding in ("toward-zero", "up", "down", "odd")
    return [method for method in METHODS if not (one_sided and method == "probabilistic")]


# Rigour, on networks and data made to break it


def weird(draw, shape, scale):
    """Weights or inputs of one flavor: normal, subnormal, cancelling in pairs, huge, or of one sign and size."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = generator.standard_normal(shape)
    match draw(st.sampled_from(["normal", "tiny", "cancelling", "huge", "equal", "sparse"])):
        case "tiny":
            values = values * 2.0**-24
        case "cancelling":
            values[..., 1::2] = -values[..., : values.shape[-1] // 2 * 2 : 2] * (1 + 2.0**-12)
        case "huge":
            values = values * scale
        case "equal":
            values = np.full(shape, 1 + 2.0**-12)
        case "sparse":
            values = np.where(generator.random(shape) < 0.7, 0.0, values)
    return torch.from_numpy(values.astype(np.float32))


@st.composite
def networks(draw):
    """(model, inputs): linear layers with activations between, perhaps a residual or a product of two branches."""
    widths = draw(st.lists(st.integers(2, 9), min_size=2, max_size=4))
    parts = []
    for wide, narrow in itertools.pairwise(widths):
        layer = nn.Linear(wide, narrow, bias=draw(st.booleans()))
        for tensor in layer.parameters():
            tensor.data = weird(draw, tuple(tensor.shape), 300.0)
        parts += [layer, draw(st.sampled_from([nn.ReLU(), nn.ReLU(inplace=True), nn.Tanh(), nn.GELU(), nn.SiLU()]))]
    model = nn.Sequential(*parts[:-1])
    wrapped = draw(st.sampled_from(["no", "residual", "product"])) if widths[0] == widths[-1] else "no"
    if wrapped == "residual":
        model = nn.Sequential(Residual(model))
    elif wrapped == "product":
        model = nn.Sequential(Product(model, nn.Tanh()))
    return model.eval(), weird(draw, (2, widths[0]), 200.0)


def no_certificate_is_violated(network, machine, method):
    model, x = network
    if machine[2] in ("toward-zero", "up", "down", "odd"):  # elementary functions have no directed rounding
        for name, part in list(model.named_modules()):
            if isinstance(part, (nn.Tanh, nn.GELU, nn.SiLU)):
                parent = model.get_submodule(name.rpartition(".")[0])
                setattr(parent, name.rpartition(".")[2], nn.ReLU().eval())
    if method not in methods_for(machine[2]):
        method = "mean-value"
    # a probabilistic bound may fail: at this confidence it must not, in any number of examples that a machine can run
    check(model, x, machine, method, confidence=1 - 1e-12)


@settings(max_examples=25, deadline=None)
@given(network=networks(), machine=st.sampled_from(FEW_MACHINES), method=st.sampled_from(sorted(METHODS)))
def test_no_certificate_is_ever_violated(network, machine, method):
    no_certificate_is_violated(network, machine, method)


def test_a_bound_for_all_runs_holds_whatever_is_drawn_for_the_inputs():
    """Inputs below the smallest subnormal number become it or 0, by the place where they stand."""
    model = nn.Sequential(nn.Linear(2, 3, bias=False)).eval()
    model[0].weight.data = torch.tensor([[37.7, -39.6], [192.1, 31.5], [-160.7, 108.5]])
    x = torch.tensor([[7.5e-9, -7.9e-9], [3.8e-8, 6.3e-9]])
    expected = logits(model, x)
    certificate = certify(model, x, "fp16", "fp16", "stochastic", "a-priori", seed=5)
    found = fpsim.run(model, "fp16", "fp16", "stochastic", 5)(x.repeat(40, 1)).detach().double().reshape(40, *expected.shape)
    assert len({tuple(one.flatten().tolist()) for one in found}) > 3
    assert all(violations(certificate.bound, one, expected) == [] for one in found)


@pytest.mark.exhaustive
@settings(max_examples=400, deadline=None)
@given(network=networks(), machine=st.sampled_from(MACHINES), method=st.sampled_from(sorted(METHODS)))
def test_no_certificate_is_ever_violated_in_many_examples(network, machine, method):
    no_certificate_is_violated(network, machine, method)


# Every rule of the table


def _after_convolution(*parts):
    return [nn.Conv2d(2, 4, 3, padding=1), *parts, nn.Flatten()]


FAMILIES = {
    "convolution": _after_convolution(nn.ReLU(), nn.Conv2d(4, 2, 3, stride=2)),
    "batch norm": _after_convolution(nn.BatchNorm2d(4), nn.ReLU6()),
    "group norm": _after_convolution(nn.GroupNorm(2, 4), nn.AvgPool2d(2)),
    "max pooling": _after_convolution(nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)),
    "residual": _after_convolution(Residual(nn.Conv2d(4, 4, 1))),
    "leaky": _after_convolution(nn.LeakyReLU(0.1), nn.Hardswish()),
    "smooth": _after_convolution(nn.GELU(), nn.Sigmoid()),
    "exponential": _after_convolution(nn.ELU(), nn.Hardsigmoid()),
    "softmax": [nn.Flatten(), nn.Linear(32, 3), nn.Softmax(-1)],
    "attention": [nn.Flatten(2), nn.Linear(16, 4), nn.LayerNorm(4), Attention(4), nn.Flatten(), nn.Linear(8, 3)],
    "silu": [nn.Flatten(), nn.Linear(32, 4), nn.SiLU(), Product(nn.Linear(4, 3), nn.Linear(4, 3)), nn.Tanh()],
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_operations(name):
    model = seeded(3, *copy.deepcopy(FAMILIES[name]))
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(4))
    expected = logits(model, x)
    for method in METHODS:
        certificate = check(model, x, ("fp16", "fp16", "nearest-even"), method, expected)
        assert torch.isfinite(certificate.bound).all(), (name, method)


class Heads(nn.Module):
    """Attention of every kind: heads of queries that share heads of keys, masks, a learned bias, a scale."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.query, self.key, self.value = nn.Linear(6, 8), nn.Linear(6, 4), nn.Linear(6, 4)
        self.bias = nn.Parameter(torch.zeros(2, 3, 3))

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, 4)).transpose(1, 2) for part in (self.query, self.key, self.value))
        how = {
            "shared": {},
            "causal": {"is_causal": True},
            "masked out": {"attn_mask": torch.tensor([[True, False, True], [False] * 3, [True] * 3])},
            "bias": {"attn_mask": self.bias},
            "scale": {"scale": -0.3},
        }[self.kind]
        y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True, **how)
        return y.transpose(1, 2).flatten(1)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
@settings(max_examples=8, deadline=None)
@given(
    kind=st.sampled_from(["shared", "causal", "masked out", "bias", "scale"]), method=st.sampled_from(sorted(METHODS)),
    machine=st.sampled_from(MACHINES), seed=st.integers(0, 999), weights=st.sampled_from([0.1, 1.0, 10.0]),
)  # fmt: skip
@example(kind="shared", method="a-priori", machine=("fp16", "exact", "odd"), seed=0, weights=0.1)  # scores left in fp64
def test_attention_of_every_kind_is_never_violated(backend, kind, method, machine, seed, weights):
    """Against float64, whose own error is far below what is added to the bound."""
    if method not in methods_for(machine[2]):
        method = "mean-value"
    if backend is SDPBackend.MATH and ("00" in machine[1] or machine[1] in ("avx512_bf16", "mi250")):
        machine = MACHINES[0]  # a unit multiplies no fp32 numbers
    model = seeded(seed, Heads(kind))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(weights)
    x = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(seed))
    fmt, accumulate, rounding = machine
    with sdpa_kernel(backend):
        how = {"seed": seed_for(rounding), "confidence": 1 - 1e-12}
        certificate = certify(model, x, fmt, accumulate, rounding, method, **how)
        emulated = fpsim.run(model, fmt, accumulate, rounding, seed_for(rounding))(x).detach().double()
    with sdpa_kernel(SDPBackend.MATH):
        exact = copy.deepcopy(model).double()(x.double()).detach()
    if rounding != "stochastic":
        assert torch.equal(certificate.logits, emulated) or method == "a-priori"
        assert bool((certificate.bound + 1e-12 * (1 + exact.abs()) >= (emulated - exact).abs()).all())
    if method != "a-priori":
        assert bool((certificate.bound + 1e-12 * (1 + exact.abs()) >= (certificate.logits - exact).abs()).all())


NEAREST = [machine for machine in MACHINES if machine[2] in ("nearest-even", "nearest-away", "stochastic")]
ANY_FAMILY = {
    "name": st.sampled_from(sorted(FAMILIES)), "machine": st.sampled_from(NEAREST), "method": st.sampled_from(sorted(METHODS)),
    "seed": st.integers(0, 999), "weights": st.sampled_from([0.01, 1.0, 10.0]), "size": st.sampled_from([1e-3, 1.0, 100.0]),
}  # fmt: skip


def no_family_is_violated(name, machine, method, seed, weights, size):
    """Weights and inputs small and large: flat norms, sure and unsure softmax, overflow."""
    model = seeded(seed, *copy.deepcopy(FAMILIES[name]))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(weights)
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)) * size
    check(model, x, machine, method, confidence=1 - 1e-12)


@settings(max_examples=25, deadline=None)
@given(**{**ANY_FAMILY, "machine": st.sampled_from([machine for machine in FEW_MACHINES if machine in NEAREST])})
def test_no_family_is_violated(**drawn):
    no_family_is_violated(**drawn)


@pytest.mark.exhaustive
@settings(max_examples=400, deadline=None)
@given(**ANY_FAMILY)
def test_no_family_is_violated_on_any_machine_in_many_examples(**drawn):
    no_family_is_violated(**drawn)


@settings(max_examples=12, deadline=None)
@given(network=networks(), machine=st.sampled_from(FEW_MACHINES), method=st.sampled_from(["running", "a-priori", "mean-value"]))
def test_no_certificate_is_violated_with_bounds_in_float32(network, machine, method):
    """Which products of fewer terms are spared: here none is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "SINGLE_FROM", 0)
        patch.setattr(long_products, "_FROM", 0)
        no_certificate_is_violated(network, machine, method)


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_products_in_float32_are_bounds(scale):
    generator = torch.Generator().manual_seed(0)
    for shape_a, shape_b in (((5, 40), (40, 7)), ((3, 5, 40), (3, 40, 7))):
        a, b = (torch.randn(s, generator=generator, dtype=torch.float64).exp() * scale for s in (shape_a, shape_b))
        a[..., 0, :3] = 0.0
        multiply = torch.mm if a.dim() == 2 else torch.bmm
        sums = table.Products(multiply, (Operand(a, a), Operand(b, b)), 40, reach=products._rows_reach)
        wanted = np.matmul(*(np.vectorize(Fraction, otypes=[object])(t.numpy()) for t in (a, b)))
        above = single.product_above(sums, a, b).numpy()
        near, rest = single.product_near(sums, a, -b)
        rest = rest.expand(near.shape).numpy()
        for place in np.ndindex(above.shape):
            assert wanted[place] <= Fraction(above[place]) <= wanted[place] * (1 + Fraction(1, 10**4)) + Fraction(1, 10**30)
            if math.isfinite(rest[place]) and math.isfinite(near[place]):
                assert abs(Fraction(float(near[place])) + wanted[place]) <= Fraction(rest[place])
    infinite = single.product_above(sums, torch.full_like(a, torch.inf), 0 * b)
    assert torch.isinf(infinite).all()


SEGMENTS = {
    "softmax": (nn.Softmax(-1), softmax),
    "normalization": (nn.LayerNorm(6), None),
    "gelu": (nn.GELU(), np.vectorize(gelu, otypes=[object])),
    "relu": (nn.ReLU(), np.vectorize(lambda x: max(x, number(0)), otypes=[object])),
}


@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("apart", [0.5, 2.0**-10, 2.0**-30])
@pytest.mark.parametrize("radius", [0.0, 1e-6])
def test_slopes_between_two_points_say_what_lies_between(name, apart, radius):
    """S (x^ - x) is g(x^) - g(x) for every x within the radius, up to what the slope leaves open: and that is little."""
    module, meaning_of = SEGMENTS[name]
    meaning_of = meaning_of or (lambda x: normalized(x, module.eps))
    generator = torch.Generator().manual_seed(7)
    reference = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    value = reference + apart * torch.randn(4, 6, generator=generator, dtype=torch.float64)
    steps = record(fpsim.run(module.eval(), "fp32"), module, (reference.float(),)).steps
    (step,) = [step for step in steps if step.op in table.TABLE]
    operand = Operand(value, reference, torch.full_like(reference, radius))
    call = table.Call(step, (tuple(operand if i == 0 else None if isinstance(arg, Ref) else arg
                                   for i, arg in enumerate(step.args)), step.kwargs))  # fmt: skip
    call.result = call.run([value])
    slope = table.TABLE[step.op].slopes(call)[0]
    for moved in (-1, 0, 1, torch.sign(torch.randn(4, 6, generator=generator, dtype=torch.float64))):
        point = reference + moved * (0.99 * radius)
        wanted = (meaning_of(exact(value)) - meaning_of(exact(point))).astype(float)
        middle, rest = slope.known(value - point)
        assert (np.abs(middle.numpy() - wanted) <= rest.numpy() + 2.0**-50).all()
        if apart == 2.0**-10 and radius == 0:
            assert float(rest.max()) < 1e-9 * apart


def test_deep_networks_keep_norms():
    """Beyond a few layers |W| from layer to layer says nothing any more: there errors are bounded by norms."""
    parts = [part for _ in range(12) for part in (nn.Linear(24, 24), nn.ReLU())]
    model = seeded(5, *parts, nn.Linear(24, 3))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.mul_(2**0.5)
    x = torch.randn(2, 24, generator=torch.Generator().manual_seed(6))
    expected = logits(model, x)
    for method in ("shadow", "mean-value"):
        check(model, x, ("fp16", "fp32", "nearest-even"), method, expected)
    tight = certify(model, x, "fp16", "fp32").bound
    error = np.abs(expected - exact(fpsim.run(model, "fp16", "fp32")(x)))
    assert float((tight.numpy() / error.astype(float)).max()) < 1.001


def test_norms_are_upper_bounds_and_close():
    generator = torch.Generator().manual_seed(0)
    for shape in ((3, 20), (40, 40), (90, 7)):
        matrix = torch.randn(shape, generator=generator, dtype=torch.float64)
        assert 1 <= matrix_norm(matrix) / float(torch.linalg.matrix_norm(matrix, 2)) < 1.2
    for shape, size in (((3, 4, 3, 3), 9), ((2, 2, 2, 2), 8), ((4, 3, 5, 5), 11), ((4, 3, 1, 1), 3)):
        weight = torch.randn(shape, generator=generator, dtype=torch.float64)
        count = shape[1] * size * size
        every = torch.eye(count, dtype=torch.float64).reshape(count, shape[1], size, size)
        for stride in (1, 2):
            dense = nn.functional.conv2d(every, weight, padding=shape[2] // 2, stride=stride).reshape(count, -1)
            ratio = convolution_norm(weight) / float(torch.linalg.matrix_norm(dense, 2))
            assert ratio >= 1
            assert ratio < 1.4 or stride == 2


def test_embeddings_and_views_are_exact():
    model = seeded(1, nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    x = torch.tensor([[0, 3, 4], [1, 1, 2]])
    for method in METHODS:
        check(model, x, ("fp16", "fp16", "nearest-even"), method)


def test_a_transformer_layer_with_a_mask():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu").eval()
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(tensor.numel())) / 3)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))

    class Causal(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = layer, nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1]), is_causal=True))

    model = Causal().eval()
    wide = copy.deepcopy(model).double()(x.double()).detach()
    for method in METHODS:
        certificate = certify(model, x, "fp16", "fp32", method=method)
        error = (fpsim.run(model, "fp16", "fp32")(x).double() - wide).abs()
        assert torch.isfinite(certificate.bound).all()
        assert (error <= certificate.bound + 1e-9).all()


def test_every_input_of_the_box():
    model = seeded(7, nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3), nn.Tanh())
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, generator=generator)
    certificate = certify(model, x, "fp16", "fp16", method="a-priori", radius=0.02)
    sure = certify(model, x, "fp16", "fp16", method="a-priori", radius=2.0**-20).certified
    assert sure.any()
    sim = fpsim.run(model, "fp16", "fp16")
    for _ in range(10):
        other = x + 0.02 * (2 * torch.rand(x.shape, generator=generator) - 1)
        expected = logits(model, other.clamp(x - 0.02 + 1e-6, x + 0.02 - 1e-6))
        found = sim(other.clamp(x - 0.02 + 1e-6, x + 0.02 - 1e-6)).detach().double()
        assert violations(certificate.bound, found, expected) == []
        same = torch.from_numpy((expected.argmax(-1) == found.argmax(-1).numpy()).astype(bool))
        assert (same | ~certificate.certified).all()


@pytest.mark.parametrize("method", METHODS)
def test_an_fp32_run_as_the_reference(method):
    model = seeded(2, nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 4))
    x = torch.randn(4, 40, generator=torch.Generator().manual_seed(2))
    plain = certify(model, x, "fp16", "fp32", method=method)
    single = certify(model, x, "fp16", "fp32", method=method, reference="fp32")
    emulated = fpsim.run(model, "fp16", "fp32")(x).double()
    assert ((emulated - model(x).double()).abs() <= single.bound).all()
    assert (single.bound > plain.bound).all()


# Overflow


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("accumulate", ["fp16", "h100"])
@pytest.mark.parametrize("rounding", ["nearest-even", "toward-zero"])
def test_an_overflow_makes_the_bound_infinite_even_if_it_is_squashed(method, accumulate, rounding):
    if method not in methods_for(rounding):
        return
    last = nn.ReLU6() if rounding == "toward-zero" else nn.Tanh()
    model = seeded(1, nn.Linear(4, 4), last, nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.fill_(1000.0)
    x = torch.tensor([[1.0, 0.5, 0.25, 0.5], [100.0, 100.0, 100.0, 100.0]])
    certificate = certify(model, x, "fp16", accumulate, rounding, method)
    assert torch.isfinite(certificate.bound[0]).all()
    assert torch.isinf(certificate.bound[1]).all()
    assert not certificate.certified[1]


def test_saturation_makes_the_bound_infinite():
    saturating = fpsim.get_format("fp16").replace(name="fp16s", saturate=True)
    model = seeded(1, nn.Linear(2, 2, bias=False), nn.Hardswish(), nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(60000.0)
    for method in METHODS:
        assert torch.isinf(certify(model, torch.ones(1, 2), saturating, "fp32", method=method).bound).all(), method


def test_a_partial_sum_that_saturates_and_comes_back():
    saturating = fpsim.Accumulator(format=fpsim.get_format("fp16").replace(name="fp16s", saturate=True))
    model = seeded(1, nn.Linear(3, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[60000.0, 60000.0, -60000.0]] * 2))
    for method in METHODS:
        certificate = certify(model, torch.ones(1, 3), "fp16", saturating, method=method)
        assert torch.isinf(certificate.bound).all(), method


# Every term is needed: without it a certificate is violated


def underflowing():
    """256 weights of 2^-26, which round to 0, times 1024: the first-order form of the bound misses it 339-fold."""
    model = seeded(0, nn.Linear(256, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(2.0**-26)
    return model, torch.full((1, 256), 1024.0)


def violated(model, x, machine, method):
    fmt, accumulate, rounding = machine
    certificate = certify(model, x, fmt, accumulate, rounding, method)
    emulated = fpsim.run(model, fmt, accumulate, rounding)(x).detach().double()
    return bool(violations(certificate.bound, emulated, logits(model, x)))


RUNS = ("running", "mean-value", "a-priori")


@pytest.mark.parametrize("method", RUNS)
def test_the_rounding_of_weights_is_needed(method, monkeypatch):
    model, x = underflowing()
    machine = ("fp16", "fp32", "nearest-even")
    assert not violated(model, x, machine, method)
    for module in ("forward", "passes", "adjoint"):
        monkeypatch.setattr(f"fpsim.emulation.certification.{module}.signed", lambda call, row, slopes: (None, None))
    monkeypatch.setattr(long_products._Parts, "add_near", lambda self, a, b, change: None)
    assert violated(model, x, machine, method)


def test_the_growth_of_long_sums_is_needed(monkeypatch):
    """1, 62 times 2^-24, -1: the accumulator keeps none of what lies between, and the sum is stored exactly."""
    model = seeded(0, nn.Linear(64, 2, bias=False))
    with torch.no_grad():
        model[0].weight.fill_(2.0**-24)
        model[0].weight[:, 0], model[0].weight[:, -1] = 1.0, -1.0
    x, machine = torch.ones(1, 64), ("fp16", "fp32", "nearest-even")
    assert not violated(model, x, machine, "running")
    whole = long_products._add_factors
    monkeypatch.setattr(long_products, "_add_factors", lambda parts, singles, growth: whole(parts, singles, 0.0))
    assert violated(model, x, machine, "running")


def of_eight(weights, bias):
    model = seeded(0, nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([weights] * 2))
        model[0].bias.fill_(bias)
    return model, torch.ones(1, 8)


def test_the_last_rounding_of_long_products_is_needed(monkeypatch):
    """1 + 2^-12 is 1 in fp16."""
    model, x = of_eight([2.0**-15] * 8, 1.0)
    machine = ("fp16", "fp32", "nearest-even")
    assert not violated(model, x, machine, "running")
    monkeypatch.setattr(costs.Costs, "store", lambda self, held, addend=False: costs.Store(0.0, 0.0, 0.0))
    assert violated(model, x, machine, "running")


def test_the_rounding_of_a_bias_is_needed(monkeypatch):
    """1 + 2^-12 - 1 is 0 where the bias was rounded before."""
    model, x = of_eight([-1.0] + [0.0] * 7, 1.0 + 2.0**-12)
    machine = ("fp16", "fp32", "nearest-even")
    assert not violated(model, x, machine, "running")
    monkeypatch.setattr(long_products, "_add_addend", lambda *arguments: None)
    assert violated(model, x, machine, "running")


LONG = (
    seeded(5, nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 4)),
    seeded(6, nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=False), nn.Flatten(), nn.Linear(144, 4)),
)


@pytest.mark.parametrize(
    "accumulate, slack", [("fp16", 1e-4), ("exact", 1e-3), ("h100", 1e-3), ("fp32", 0.05), ("fp32:pairwise", 0.05)]
)
@pytest.mark.parametrize("number", range(len(LONG)))
def test_long_products_are_bounded_as_all_others_are(number, accumulate, slack, monkeypatch):
    """The float32 form of a running pass is as tight as the general one that follows every sum, or nearly so."""
    model, shape = LONG[number], [(5, 48), (3, 3, 8, 8)][number]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    served = []
    whole = passes.long_product_error

    def watching(*arguments):
        found = whole(*arguments)
        served.append(found is not None)
        return found

    monkeypatch.setattr(passes, "long_product_error", watching)
    quick = certify(model, x, "fp16", accumulate, method="running")
    assert len(served) == sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in model) and all(served)
    monkeypatch.setattr(passes, "long_product_error", lambda *arguments: None)
    monkeypatch.setattr(passes.Running, "rounded", lambda *arguments: None)
    monkeypatch.setattr(costs, "_SLIGHT", 0.0)
    plain = certify(model, x, "fp16", accumulate, method="running")
    assert torch.equal(quick.logits, plain.logits)
    assert bool((quick.bound <= plain.bound * (1 + slack)).all() and (quick.bound >= plain.bound).all())


def test_infinite_errors_stay_infinite_in_long_products():
    """What overflowed before is bounded by nothing behind a product of 64 terms and a ReLU either, in its own row."""
    model = seeded(0, nn.Linear(64, 64), nn.Hardtanh(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    x[1] *= 60000.0
    bound = certify(model, x, "fp16", "fp16", method="running").bound
    assert bool(torch.isfinite(bound[0]).all() and torch.isinf(bound[1]).all())


def test_softmax_of_wide_boxes():
    """Where one logit is sure to within 3000 and another to within 1000, either may be all."""
    low, high = torch.tensor([[-1000.0, -3000.0, -4.0]]).double(), torch.tensor([[1000.0, 3000.0, -2.0]]).double()
    least, most = _probabilities(low, high, -1)
    assert least.tolist() == [[0.0] * 3] and most.tolist() == [[1.0] * 3]
    point = torch.tensor([[1.0, -2.0, 0.5]]).double()
    least, most = _probabilities(point, point, -1)
    assert bool((least <= torch.softmax(point, -1)).all() and (most >= torch.softmax(point, -1)).all())
    assert float((most - least).max()) < 1e-10
    masked = torch.tensor([[-torch.inf, 2.0, -torch.inf]]).double()
    least, most = _probabilities(masked, masked, -1)
    assert most[0, 0] == most[0, 2] == 2.0**-1000 and float(least[0, 1]) > 1 - 1e-10


def test_errors_beyond_float32_stay_finite():
    """Normalized rows of uncertain deviation multiply errors by 1e15; float32 would make them infinite three layers on."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.LayerNorm(64))]
    model, x = seeded(0, *layers, nn.Linear(64, 3)), torch.randn(2, 64, generator=torch.Generator().manual_seed(1))
    bound = certify(model, x, "bf16", "bf16", method="running").bound
    assert bool(torch.isfinite(bound).all()) and float(bound.max()) > 1e39


FUNCTIONS = (*derivatives.RANGES.values(), *derivatives.GELU.values())
SMOOTH = [found for found in FUNCTIONS if isinstance(found, derivatives.Smooth)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("found", SMOOTH)
def test_derivatives_in_float32(found, dtype):
    """Over all values of both dtypes they err by less than the slack that bounds allow for."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).float()
    x = x[torch.isfinite(x)]
    error = (found.derivative(x).double() - found.derivative(x.double())).abs()
    assert float(error.max()) < 2.0**-18


def test_probabilities_in_float32():
    """They err by less than the share that bounds allow for, however far apart the logits are."""
    generator = torch.Generator().manual_seed(0)
    for width in (1.0, 10.0, 60.0, 300.0, 60000.0):
        x = ((torch.rand(400, 96, generator=generator) - 0.5) * width).half().float()
        wanted = torch.softmax(x.double(), -1)
        error = (torch.softmax(x, -1).double() - wanted).abs()
        assert bool((error <= (96 + 128) * 2.0**-22 * wanted / 4 + 2.0**-120).all())


@given(
    seed=st.integers(0, 999), scale=st.sampled_from([0.1, 3.0, 40.0]), size=st.sampled_from([1e-3, 0.3, 5.0]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_functions_move_less_than_their_bound(seed, scale, size):
    """Emulated numbers and exact ones within t of them, at the ends and inside."""
    generator = torch.Generator().manual_seed(seed)
    value = (torch.randn(6, 12, generator=generator) * scale).half().double()
    t = torch.rand(6, 12, generator=generator, dtype=torch.float64) * size
    shares = torch.rand(6, 12, generator=generator, dtype=torch.float64) * 2 - 1
    functions = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": nn.functional.silu, "erf": torch.erf}
    for other in (value + t, value - t, value + t * torch.sign(shares), value + t * shares):
        change = torch.softmax(value, -1) - torch.softmax(other, -1)
        assert bool((change.abs() <= _softmax_moved(value, t, -1)).all())
        for name, function in functions.items():
            bound = derivatives.RANGES[name].moved(value, t)
            assert bool(((function(value) - function(other)).abs() <= bound + 2.0**-50).all()), name
        for kind, found in derivatives.GELU.items():
            change = nn.functional.gelu(value, approximate=kind) - nn.functional.gelu(other, approximate=kind)
            assert bool((change.abs() <= found.moved(value, t) + 2.0**-48 * (1 + value.abs())).all()), kind


@pytest.mark.parametrize(
    "method, weight",
    [
        ("running", 2.0**-26),  # both sums underflow to 0: what is left is the product of their errors
        ("a-priori", 2.0**-25 * (1 + 2.0**-10)),  # both double: 3 times the exact product is the error, 2 times its first order
    ],
)
def test_the_second_order_is_needed(method, weight, monkeypatch):
    model = seeded(0, Product(nn.Linear(256, 2, bias=False), nn.Linear(256, 2, bias=False)))
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.fill_(weight)
    x, machine = torch.full((1, 256), 59392.0), ("fp16", "fp32", "nearest-even")
    assert not violated(model, x, machine, method)

    def of_middles(low, high, function, terms):
        middle = (low + high) / 2
        return Slope(lambda t: function(t, middle), lambda t: function(t, middle.abs()), None, terms)

    monkeypatch.setattr(products, "scaled", of_middles)
    assert violated(model, x, machine, method)


@pytest.mark.parametrize("method", RUNS)
def test_the_last_rounding_is_needed(method, monkeypatch):
    """1 + 2^-11 is 1 in fp16, four times over."""
    model = seeded(0, *(nn.Linear(2, 2) for _ in range(4)))
    with torch.no_grad():
        for layer in model:
            layer.weight.copy_(torch.eye(2))
            layer.bias.fill_(2.0**-11)
    x, machine = torch.ones(1, 2), ("fp16", "exact", "nearest-even")
    assert not violated(model, x, machine, method)
    without_last_rounding(monkeypatch)
    assert violated(model, x, machine, method)


def without_last_rounding(monkeypatch):
    monkeypatch.setattr(costs.Costs, "_stored", lambda self, call, store, inner: torch.zeros_like(call.result))
    monkeypatch.setattr("fpsim.running.products.stored_error", lambda result, *rest: np.zeros(result.shape))


@pytest.mark.parametrize("method", RUNS)
def test_alignment_is_needed(method, monkeypatch):
    """A tensor core cuts products off below 2^-23 of the largest: three of them are lost without any rounding."""
    model = seeded(0, nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 2.0**-12, 2.0**-12, 2.0**-12]] * 2))
    x = torch.tensor([[1.0, 2.0**-12, 2.0**-12, 2.0**-12]]) * 1.0
    machine = ("fp16", "v100", "nearest-even")
    assert not violated(model, x, machine, method)

    def nothing(*args, **kwargs):
        return units.Stage(Fraction(0), Fraction(0), sys.float_info.max)

    accumulations._bound.cache_clear()
    monkeypatch.setattr(accumulations, "unit_stage", nothing)
    monkeypatch.setattr("fpsim.running.products.unit_error", lambda a, b, *rest: np.zeros((a.shape[0], b.shape[1])))
    without_last_rounding(monkeypatch)
    try:
        assert violated(model, x, machine, method)
    finally:
        accumulations._bound.cache_clear()


# Probability


def probabilistic_failures(draws, rounding, confidence):
    model = seeded(11, nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(draws, 48, generator=torch.Generator().manual_seed(8))
    wide = copy.deepcopy(model).double()(x.double()).detach()
    certificate = certify(model, x, "fp16", "fp16", rounding, "probabilistic", confidence=confidence, seed=seed_for(rounding))
    return int(((certificate.logits - wide).abs() > certificate.bound).any(-1).sum())


@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_probabilistic_bounds_fail_no_more_often_than_stated(rounding):
    """60 inputs at 90 %: 13 failures or more have a probability below 1 % if the bound keeps what it says."""
    assert probabilistic_failures(60, rounding, 0.9) < 13


# What is refused


def test_an_operation_without_a_rule_is_named():
    class Sorted(nn.Module):
        def forward(self, x):
            return torch.sort(x).values

    with pytest.raises(fpsim.UnsupportedOp, match=r"aten\.sort\.default"):
        certify(Sorted().eval(), torch.randn(1, 3))


def test_a_choice_made_in_python_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(fpsim.UnsupportedOp, match=r"another path|inexact"):
        certify(Branch().eval(), torch.randn(1, 3))


def test_reading_through_another_view_after_a_write_is_refused():
    class Aliased(nn.Module):
        def forward(self, x):
            y = x * 2
            head = y[:, :2]
            y.relu_()
            return head

    with pytest.raises(fpsim.UnsupportedOp, match="view"):
        certify(Aliased().eval(), torch.randn(1, 3))


@pytest.mark.parametrize(
    "options, match",
    [
        ({"method": "magic"}, "known are shadow"),
        ({"reference": "fp64"}, "known are exact, fp32"),
        ({"radius": 0.1}, "a-priori"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"method": "probabilistic", "rounding": "up"}, "one side"),
    ],
)
def test_arguments_are_checked(options, match):
    with pytest.raises(ValueError, match=match):
        certify(nn.Linear(2, 2).eval(), torch.randn(1, 2), **options)


def test_torch_itself_is_refused():
    """Its softmax and norms err by more than one rounding, which no rule for an emulated machine allows for."""
    for method in METHODS:
        with pytest.raises(ValueError, match=r'is torch itself, .*: certify accumulate="fp32"'):
            certify(seeded(0, nn.Linear(4, 2)), torch.zeros(1, 4), "fp32", "native", method=method)


def test_no_inputs_are_refused():
    with pytest.raises(ValueError, match="x holds no inputs: its first axis has length 0"):
        certify(seeded(0, nn.Linear(4, 2)), torch.zeros(0, 4), "fp16")


def test_a_model_in_training_is_refused():
    with pytest.raises(ValueError, match="eval"):
        certify(nn.Linear(2, 2), torch.randn(1, 2))


# What is given back


def test_a_certificate_says_where_the_bound_comes_from():
    model = seeded(4, nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(3))
    for method in METHODS:
        certificate = certify(model, x, "fp16", "fp16", method=method)
        assert [layer.path for layer in certificate.layers] == ["0", "1", "2"]
        assert "largest bound" in certificate.table()
        assert "emulated run's" in certificate.statement or method == "a-priori"
        assert certificate.plot().axes
    parts = [layer.part for layer in certify(model, x, "fp16", "fp16", method="mean-value").layers]
    bound = certify(model, x, "fp16", "fp16", method="mean-value").bound.mean()
    assert sum(parts) == pytest.approx(float(bound), rel=0.5)
    assert parts[1] == pytest.approx(0.0, abs=1e-300)


def test_inputs_together_and_apart_have_one_certificate():
    model = seeded(4, nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 3))
    x = torch.randn(3, 20, generator=torch.Generator().manual_seed(3))
    for method in METHODS:
        whole = certify(model, x, "fp16", "fp16", method=method)
        alone = torch.cat([certify(model, x[i : i + 1], "fp16", "fp16", method=method).bound for i in range(3)])
        # float32's order of summation, which "running" bounds with, is the library's and depends on the shape
        torch.testing.assert_close(whole.bound, alone, rtol=1e-6 if method == "running" else 1e-9, atol=0)
        assert torch.equal(whole.logits.float(), fpsim.run(model, "fp16", "fp16")(x)) or method == "a-priori"


def test_exact_numbers_of_the_oracle():
    assert number(0.1) != number(1) / 10
    assert logits(seeded(0, nn.ReLU()), torch.tensor([[-1.0, 2.0]])).tolist() == [[0, 2]]


@pytest.mark.parametrize(
    ("large", "moved", "entry"),
    [((1,), 1, (5, 5)), ((1,), 5, (5, 1)), ((0, 1, 2), 2, (0, 1))],
    ids=["the inverse deviation", "the centered row", "the factor of the outer product"],
)
def test_the_slope_between_normalized_rows_holds_where_one_radius_dominates(large, moved, entry):
    """y^ - y = S (x^ - x): the exact point is `reference` but for one element, which lies anywhere within its radius."""
    size, eps, delta = 16, 1e-5, 1e-4
    generator = torch.Generator().manual_seed(0)
    reference = torch.zeros(1, size, dtype=torch.float64)
    reference[0, list(large)] = 1.0
    emulated = reference + 1e-6 * torch.randn(1, size, generator=generator, dtype=torch.float64)
    radius = torch.zeros_like(reference)
    radius[0, moved] = delta
    slope = normal_between(
        Rows(Operand(emulated, emulated), (1, size), eps), Rows(Operand(reference, reference, radius), (1, size), eps),
        torch.ones((), dtype=torch.float64),
    )  # fmt: skip
    assert slope is not None and slope.radius is not None
    units_of = torch.eye(size).double()[:, None]
    center, slack = (torch.stack([part(unit)[0] for unit in units_of], 1) for part in (slope.center, slope.radius))

    def parts(x):
        centered = x - x.mean()
        return centered, 1 / torch.sqrt(centered.square().mean() + eps)

    reached = 0.0
    for sign in (-1, 1):
        exact = reference[0] + sign * radius[0]
        (first, s_first), (second, s_second) = parts(emulated[0]), parts(exact)
        s, c = (s_first + s_second) / 2, (first + second) / 2
        flat = torch.eye(size).double() - 1 / size
        matrix = s * flat - (s_first * s_second) ** 2 / s * torch.outer(c, c) / size
        change = matrix @ (emulated[0] - exact) - (first * s_first - second * s_second)
        assert float(change.abs().max()) < 2.0**-45  # an identity but for float64's rounding
        error = (matrix - center).abs()
        assert bool((error <= slack).all())
        reached = max(reached, float(error[entry] / slack[entry]))
    assert reached > 0.1
