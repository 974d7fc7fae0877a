"""Large tensors take faster ways than small ones: the same bits and the same counts, however many threads share the work."""

import decimal

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

import fpsim
from fpsim.backend import threads
from fpsim.backend.numba import counting
from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.transcendental import exp64
from fpsim.emulation.machine.finishing import Finish
from fpsim.emulation.rules import elementwise
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding

SIZE = 70_000  # more than a block of anything, and no multiple of one
PIECE = 1000  # less than any fast path takes


@pytest.fixture(params=[1, 3])
def several_threads(request, monkeypatch):
    monkeypatch.setattr(threads, "SPLIT_ABOVE", 1)
    threads.set_num_threads(request.param)
    yield
    threads.set_num_threads(None)


def all_values(fmt, seed, size=SIZE):
    """Values of the format in random order, every kind of number among them."""
    generator = np.random.default_rng(seed)
    bits = generator.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0], np.float32)
    scaled = generator.standard_normal(size).astype(np.float32) * np.exp2(generator.integers(-30, 20, size)).astype(np.float32)
    chosen = np.where(generator.random(size) < 0.1, generator.choice(special, size), scaled)
    return fpsim.round(torch.from_numpy(np.where(generator.random(size) < 0.1, bits, chosen)), fmt)


def same(actual, expected):
    actual, expected = actual.numpy(), expected.numpy()
    assert np.array_equal(actual, expected, equal_nan=True)
    assert np.array_equal(np.signbit(actual)[~np.isnan(actual)], np.signbit(expected)[~np.isnan(actual)])


def agree(function, *operands, fmt="fp16", repeat=1, along=0, piece=PIECE, **policy):
    """`function` of whole tensors, and of pieces of them: bits and counts agree."""
    with fpsim.emulate(fmt, "fp16", **policy) as whole:
        for _ in range(repeat):
            whole.reset()
            result = function(*operands)
    with fpsim.emulate(fmt, "fp16", **policy) as small:
        parts = [function(*items) for items in zip(*(item.split(piece, along) for item in operands), strict=True)]
    same(result, torch.cat(parts, along))
    assert (sum(whole.rows().values()) == sum(small.rows().values())).all()
    return whole.machine


@pytest.mark.parametrize("mode", [Rounding.NEAREST_EVEN, Rounding.TOWARD_ZERO, Rounding.UP, Rounding.STOCHASTIC], ids=str)
@pytest.mark.parametrize("fmt", ["fp16", "bf16", "e4m3", "fp32"])
@pytest.mark.parametrize("carrier", [np.float32, np.float64])
def test_finishing_rounds_and_counts(fmt, mode, carrier, several_threads):
    target = get_format(fmt)
    generator = np.random.default_rng(1)
    x = (generator.standard_normal(SIZE) * np.exp2(generator.integers(-160, 130, SIZE).astype(float))).astype(carrier)
    edges = [target.max_finite, target.min_subnormal, target.min_subnormal / 2, target.min_normal, 0.0, np.inf, np.nan]
    x[:7], x[7:14] = edges, np.negative(edges)
    expected, key = np.empty_like(x), 5 if mode is Rounding.STOCHASTIC else 0
    fpsim.numbers.rounding.round_into(x, expected, target, mode, key)
    out, row = np.empty(SIZE, np.float32), np.zeros(counting.LENGTH, np.int64)
    finish = Finish(target, mode)
    finish.round(x, out, row, key)
    same(torch.from_numpy(out), torch.from_numpy(expected.astype(np.float32)))
    finite = np.isfinite(x)
    assert row[counting.ELEMENTS] == SIZE
    assert row[counting.NAN] == np.isnan(x).sum() and row[counting.INFINITE] == np.isinf(x).sum()
    assert row[counting.UNDERFLOWS] == ((x != 0) & (expected == 0)).sum()
    if mode is Rounding.NEAREST_EVEN and target.has_infinity and not target.saturate:
        assert row[counting.OVERFLOWS] == (finite & np.isinf(expected)).sum()
    if carrier is np.float32:
        counts = np.zeros_like(row)
        finish.round(x, x, counts, key)
        same(torch.from_numpy(x), torch.from_numpy(out))
        assert (counts == row).all()


ARITHMETIC = {
    "add": lambda x, y, z: x + y,
    "add scaled": lambda x, y, z: torch.add(x, y, alpha=0.3),
    "add number": lambda x, y, z: x + 0.1,
    "sub": lambda x, y, z: x - y,
    "sub scaled": lambda x, y, z: torch.sub(x, y, alpha=3),
    "sub number": lambda x, y, z: x - 0.1,
    "from number": lambda x, y, z: 0.1 - x,
    "mul": lambda x, y, z: x * y,
    "mul number": lambda x, y, z: 0.7 * x,
    "div": lambda x, y, z: x / y,
    "div number": lambda x, y, z: x / 0.7,
    "addcmul": lambda x, y, z: torch.addcmul(x, y, z, value=0.3),
    "addcdiv": lambda x, y, z: torch.addcdiv(x, y, z, value=-0.3),
    "lerp near": lambda x, y, z: torch.lerp(x, y, 0.1),
    "lerp far": lambda x, y, z: torch.lerp(x, y, 0.9),
    "sqrt": lambda x, y, z: torch.sqrt(x),
    "in place": lambda x, y, z: x.clone().mul_(0.9).add_(y, alpha=0.3).sub_(z).div_(y).mul_(z),
    "lerp in place": lambda x, y, z: x.clone().lerp_(y, 0.1).lerp_(z, 0.9),
    "products in place": lambda x, y, z: x.clone().addcmul_(y, z, value=0.3).addcdiv_(z, y, value=-0.3),
}


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_in_one_pass(name, fmt, several_threads):
    agree(ARITHMETIC[name], *(all_values(fmt, seed) for seed in range(3)), fmt=fmt)


@pytest.mark.parametrize("shift", [1, SIZE // 2])
def test_what_an_operation_overwrites_part_of_is_read_before(shift, several_threads):
    x = all_values("fp16", 1)
    with fpsim.emulate("fp16", "fp16"):
        for operation in (torch.Tensor.mul_, lambda left, right: left.lerp_(right, 0.3)):
            apart, together = x.clone(), x.clone()
            operation(apart[shift:], x[:-shift])
            operation(together[shift:], together[:-shift])
            same(together, apart)


FUNCTIONS = {
    "exp": torch.exp,
    "log": torch.log,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "rsqrt": torch.rsqrt,
    "sin": torch.sin,
    "cube": lambda x: x**3,
    "inverse square": lambda x: x**-2.0,
    "power of two": lambda x: 2.0**x,
    "gelu": functional.gelu,
    "gelu tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "silu": functional.silu,
    "softplus": lambda x: functional.softplus(x, beta=0.5),
    "elu": functional.elu,
}


@pytest.mark.parametrize("fmt, mode", [("fp16", "nearest-even"), ("bf16", "nearest-even"), ("e4m3", "nearest-away")])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_looked_up_functions_are_those_computed(name, fmt, mode):
    every = torch.arange(2**32 >> (24 - get_format(fmt).precision))
    bits = (every << (24 - get_format(fmt).precision)).to(torch.uint32).view(torch.float32)
    values = fpsim.round(bits, fmt)  # every value of the format, some more than once
    machine = agree(FUNCTIONS[name], values.repeat(max(1, SIZE // len(values))), fmt=fmt, rounding=mode, repeat=8, piece=16_000)
    assert machine.arithmetic.tables._tables


def test_functions_that_differ_in_a_zero_have_tables_of_their_own():
    x = torch.zeros(1 << 20)
    with fpsim.emulate("fp16", "fp16") as emulation:
        found = [torch.pow(torch.tensor(2.0) + x, exponent)[0].item() for exponent in (2, 2.0, 3, -1)]
    assert found == [4, 4, 8, 0.5] and len(emulation.machine.arithmetic.tables._tables) == 4


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "silu", "softplus"])
def test_gradients_block_by_block(name, several_threads):
    function = getattr(functional, name) if hasattr(functional, name) else getattr(torch, name)

    def gradient(x, g):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(function(x), x, g)[0]

    agree(gradient, all_values("fp16", 1), all_values("fp16", 2))


def finite(*shape, seed):
    return fpsim.round(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), "fp16")


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
@pytest.mark.parametrize("dim", [0, 1])
def test_rows_of_a_softmax_do_not_meet(name, dim, several_threads):
    x, g = finite(301, 203, seed=1), finite(301, 203, seed=2)
    x[:, 3], x[5, 7] = float("-inf"), float("nan")

    def both(x, g):
        x = x.clone().requires_grad_()
        y = getattr(torch, name)(x, dim)
        return torch.cat([y.detach(), torch.autograd.grad(y, x, g)[0]], dim)

    agree(both, x, g, along=1 - dim, piece=10)


def test_rows_of_a_layer_norm_do_not_meet(several_threads):
    def both(x, g):
        x = x.clone().requires_grad_()
        y = functional.layer_norm(x, (203,))
        return torch.cat([y.detach(), torch.autograd.grad(y, x, g)[0]], 1)

    agree(both, finite(301, 203, seed=1), finite(301, 203, seed=2), piece=10)


@pytest.mark.parametrize("training", [True, False])
def test_channels_of_a_batch_norm_do_not_meet(training, several_threads):
    x, g = finite(7, 30, 13, 11, seed=1), finite(7, 30, 13, 11, seed=2)
    statistics = finite(2, 30, 1, 1, seed=3).abs()

    def both(x, g, means):
        x = x.clone().requires_grad_()
        mean, variance = (item.reshape(-1).clone() for item in means)
        weight, bias = (torch.ones(x.shape[1], requires_grad=True) for _ in range(2))
        y = functional.batch_norm(x, mean, variance, weight, bias, training)
        gradients = torch.autograd.grad(y, (x, weight, bias), g)
        sums = [item.reshape(1, -1, 1, 1).expand(7, -1, 13, 11) for item in (*gradients[1:], mean, variance)]
        return torch.cat([y.detach(), gradients[0], *sums])

    agree(both, x, g, statistics, along=1, piece=1)


@pytest.mark.parametrize(
    "fmt, accumulate, mode",
    [
        ("fp16", "fp16", "nearest-even"),
        ("fp16", "fp16:pairwise", "nearest-away"),
        ("fp16", "fp16:fma", "up"),
        ("fp16", "fp32", "nearest-even"),
        ("bf16", "fp32", "toward-zero"),
        ("e4m3", "fp16", "nearest-even"),
    ],
)
def test_batches_of_products_are_products(fmt, accumulate, mode, several_threads):
    a, b = (fpsim.round(finite(9, *shape, seed=1) * 8, fmt) for shape in ((31, 17), (17, 43)))
    a[3, 4, 5], a[5], b[6, :2] = float("inf" if fmt != "e4m3" else "nan"), get_format(fmt).max_finite, 0
    a[7] = get_format(fmt).min_subnormal
    for left, right in ((a, b), (a, b.mT.contiguous().mT), (a[::2], b[::2]), (a, b[:1].expand(9, -1, -1))):
        policy = (fmt, accumulate, mode)
        with fpsim.emulate(*policy) as whole:
            result = torch.bmm(left, right)
        with fpsim.emulate(*policy) as single:
            parts = [torch.mm(x, y) for x, y in zip(left, right, strict=True)]
        same(result, torch.stack(parts))
        assert (sum(whole.rows().values()) == sum(single.rows().values())).all()


def test_batches_with_addends_are_products(several_threads):
    a, b, c = finite(9, 31, 17, seed=1), finite(9, 17, 23, seed=2), finite(9, 31, 23, seed=3)
    agree(torch.baddbmm, c, a, b, piece=1)


@kernel
def _exponentials(x, out):
    for i in range(x.size):
        out[i] = exp64(x[i])


def test_exponential_is_within_an_ulp():
    x = np.random.default_rng(0).uniform(-708, 709.7, 3000)
    x[:6] = 0.0, -0.0, 1.0, -1.0, 709.78, -708.0
    out = np.empty_like(x)
    _exponentials(x, out)
    with decimal.localcontext(prec=40):
        errors = [
            abs(decimal.Decimal(float(y)) - decimal.Decimal(float(value)).exp()) / decimal.Decimal(float(np.spacing(y)))
            for value, y in zip(x, out, strict=True)
        ]
    assert max(errors) <= 1
    limits = np.array([np.inf, -np.inf, np.nan, 710.0, -709.0])
    _exponentials(limits, out[:5])
    assert np.array_equal(out[:5], [np.inf, 0, np.nan, np.inf, 0], equal_nan=True)


SMALL = {
    "mish": functional.mish,
    "elu": lambda x: functional.elu(x, 0.7),
    "gelu of tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "glu": functional.glu,
    "log_sigmoid": functional.logsigmoid,
    "softplus": lambda x: functional.softplus(x, 0.3, 2.0),
    "pow": lambda x: x.abs() ** 0.3,
    "pow of a number": lambda x: 0.3**x,
    "atan2": lambda x: torch.atan2(x[:4], x[4:8]),
    "atan2, broadcast": lambda x: torch.atan2(x[:4], x[4:8, None]),
    "cdist": lambda x: torch.cdist(x.reshape(4, -1), x.reshape(4, -1), p=1.5),
    "remainder": lambda x: torch.remainder(x, 0.3),
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("policy", [{}, {"granularity": "primitive"}, {"rounding": "stochastic", "seed": 1}], ids=str)
def test_few_numbers_are_widened_as_many(name, policy, monkeypatch):
    x = all_values("fp16", 8, 64)
    with fpsim.emulate("fp16", "fp16", **policy) as quick:
        result = SMALL[name](x)
    monkeypatch.setattr(elementwise, "_few_widened", lambda *args: None)
    with fpsim.emulate("fp16", "fp16", **policy) as plain:
        expected = SMALL[name](x)
    same(result, expected)
    assert (sum(quick.rows().values()) == sum(plain.rows().values())).all()


@pytest.mark.parametrize("number", [0.3, 1, 0, -0.0, 1e6, -1e6, np.inf, -np.inf, np.nan, float(np.finfo(np.float32).max)])
@pytest.mark.parametrize("fmt", ["fp16", "e4m3fn", "fp8_e5m2"])
def test_numbers_that_came_before_are_what_they_were(number, fmt):
    x = all_values(fmt, 9, 64)
    operations = (torch.ne, torch.le, torch.fmod, torch.clamp_min)
    with fpsim.emulate(fmt, "fp32") as emulation:
        first = [operation(x, number).float() for operation in operations]
        once = sum(emulation.rows().values())
        for result, operation in zip(first, operations, strict=True):
            same(operation(x, number).float(), result)
        assert (sum(emulation.rows().values()) == 2 * once).all()


def test_classes_without_weights_have_weights_of_one():
    x, target = all_values("fp16", 10, 80).reshape(8, 10), torch.tensor([0, 3, 9, -100, 2, 2, -100, 5])
    for reduction in ("none", "sum", "mean"):
        with fpsim.emulate("fp16", "fp16"):
            same(
                functional.nll_loss(x, target, reduction=reduction),
                functional.nll_loss(x, target, torch.ones(10), reduction=reduction),
            )
