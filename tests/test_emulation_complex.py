"""Complex numbers as pairs of values: exact rationals, mpmath rounded once, and NumPy's float16 step by step."""

from fractions import Fraction

import ml_dtypes
import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import UnsupportedOp
from fpsim.emulation.dispatch import context
from fpsim.emulation.machine.complex_functions import FUNCTIONS
from fpsim.emulation.registry import COMPLEX
from fpsim.emulation.schemas import name_of
from fpsim.numbers.rounding import Rounding, get_rounding
from tests.oracles import exact_sqrt, round_exact

HALF, NEAREST = np.float16, Rounding.NEAREST_EVEN
DTYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}


def complex_numbers(*shape, fmt="fp16", seed=0, scale=1.0):
    """Values of the format, of many magnitudes."""
    generator = np.random.default_rng(seed)
    parts = generator.normal(size=(2, *shape)) * 2.0 ** generator.integers(-4, 4, size=(2, *shape)) * scale
    real, imaginary = parts.astype(DTYPES[fmt]).astype(np.float32)
    return real + 1j * imaginary


def tensor_of(x):
    return torch.from_numpy(np.asarray(x, np.complex64))


def parts(x):
    x = x.detach().resolve_conj().numpy() if isinstance(x, torch.Tensor) else np.asarray(x)
    return np.stack([x.real, x.imag], -1) if np.iscomplexobj(x) else x


def joined(pairs):
    """Complex numbers from parts along the last axis, infinite ones too."""
    return np.ascontiguousarray(pairs, np.float64).view(np.complex128)[..., 0]


def same(found, expected):
    """Equal numbers, part by part, NaN too; zeros of both signs are equal."""
    found, expected = parts(found).astype(np.float64), parts(expected).astype(np.float64)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected, equal_nan=True), (found[found != expected], expected[found != expected])


def half(x):
    """Both parts rounded to float16."""
    with np.errstate(over="ignore"):
        rounded = parts(x).astype(HALF)
    return joined(rounded) if np.iscomplexobj(x) else rounded.astype(np.float32)


# Arithmetic: exact rationals, each part rounded once


def exact(z):
    return Fraction(float(z.real)), Fraction(float(z.imag))


ARITHMETIC = {
    "add": lambda a, b, c, d: (a + c, b + d),
    "sub": lambda a, b, c, d: (a - c, b - d),
    "mul": lambda a, b, c, d: (a * c - b * d, a * d + b * c),
    "div": lambda a, b, c, d: ((a * c + b * d) / (c * c + d * d), (b * c - a * d) / (c * c + d * d)),
}


@pytest.mark.parametrize("mode", ["nearest-even", "toward-zero", "up"])
@pytest.mark.parametrize("fmt", DTYPES)
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_rounds_each_part_of_the_exact_result_once(name, fmt, mode):
    z, w = complex_numbers(80, fmt=fmt), complex_numbers(80, fmt=fmt, seed=1)
    with fpsim.emulate(fmt, rounding=mode):
        found = getattr(torch, name)(tensor_of(z), tensor_of(w))
    target = fpsim.get_format(fmt)
    wanted = [
        [float(round_exact(part, target, get_rounding(mode))) for part in ARITHMETIC[name](*exact(a), *exact(b))]
        for a, b in zip(z, w, strict=True)
    ]
    same(found, joined(wanted))


@pytest.mark.parametrize("fmt", DTYPES)
def test_lengths_are_correctly_rounded(fmt):
    z = complex_numbers(300, fmt=fmt)
    with fpsim.emulate(fmt):
        found = tensor_of(z).abs()
    squares = [a * a + b * b for a, b in map(exact, z)]
    roots = [exact_sqrt(x)[0] for x in squares]
    same(found, [float(round_exact(root, fpsim.get_format(fmt), NEAREST)) for root in roots])


# Functions: mpmath with 200 bits, rounded once

MPMATH = {
    "exp": mpmath.exp, "expm1": lambda z: mpmath.exp(z) - 1, "log": mpmath.log, "log1p": lambda z: mpmath.log(1 + z),
    "log2": lambda z: mpmath.log(z) / mpmath.log(2), "log10": lambda z: mpmath.log(z) / mpmath.log(10),
    "sqrt": mpmath.sqrt, "rsqrt": lambda z: 1 / mpmath.sqrt(z), "sin": mpmath.sin, "cos": mpmath.cos, "tan": mpmath.tan,
    "sinh": mpmath.sinh, "cosh": mpmath.cosh, "tanh": mpmath.tanh, "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "asin": mpmath.asin, "acos": mpmath.acos, "atan": mpmath.atan, "asinh": mpmath.asinh, "acosh": mpmath.acosh,
    "atanh": mpmath.atanh, "exp2": lambda z: mpmath.exp(z * mpmath.log(2)),
    "reciprocal": lambda z: 1 / z, "angle": mpmath.arg, "sgn": lambda z: z / abs(z),
}  # fmt: skip


def rounded_by_mpmath(function, *values, fmt="fp16"):
    target, found = fpsim.get_format(fmt), []
    with mpmath.workprec(200):
        for row in zip(*values, strict=True):
            value = function(*(mpmath.mpc(float(z.real), float(z.imag)) for z in row))
            both = [value.real, value.imag] if isinstance(value, mpmath.mpc) else [value]
            fractions = [Fraction(int(part.man)) * Fraction(2) ** int(part.exp) * (-1 if part < 0 and part.man > 0 else 1)
                         for part in both]  # fmt: skip
            found.append([float(round_exact(part, target, NEAREST)) for part in fractions])
    found = np.array(found)
    return found[:, 0] if found.shape[1] == 1 else joined(found)


@pytest.mark.parametrize("name", MPMATH)
def test_functions_are_rounded_once(name):
    z = np.concatenate([complex_numbers(80), half(np.exp(1j * np.linspace(0.1, 3, 30)))])  # near the unit circle too
    with fpsim.emulate("fp16"):
        found = getattr(torch, name)(tensor_of(z))
    same(found, rounded_by_mpmath(MPMATH[name], z))


def test_every_function_has_an_oracle_here():
    composed = {"rsub", "addcmul", "addcdiv", "sigmoid_backward", "tanh_backward", "abs", "lerp"}
    assert set(FUNCTIONS) == {*MPMATH, *ARITHMETIC, *composed}


def test_powers_and_polar_coordinates():
    z, w, r = complex_numbers(60), complex_numbers(60, seed=1, scale=0.25), np.abs(complex_numbers(60, seed=2).real)
    with fpsim.emulate("fp16"):
        cube, power = tensor_of(z) ** 3, tensor_of(z) ** tensor_of(w)
        polar = torch.polar(torch.from_numpy(r), tensor_of(z).real)
    same(cube, rounded_by_mpmath(lambda a: a**3, z))
    same(power, rounded_by_mpmath(lambda a, b: mpmath.exp(b * mpmath.log(a)), z, w))
    same(polar, rounded_by_mpmath(lambda a, t: a * mpmath.expj(t.real), r + 0j, z))


def test_numbers_keep_fp32_under_kernel_and_are_rounded_under_primitive():
    z = complex_numbers(40)
    with fpsim.emulate("fp16"):
        found = tensor_of(z) * (0.1 + 0.3j) + 1
    number = np.complex64(0.1 + 0.3j)
    with mpmath.workprec(200):
        first = rounded_by_mpmath(lambda a: a * mpmath.mpc(float(number.real), float(number.imag)), z)
    same(found, half(first + 1))
    with fpsim.emulate("fp16", granularity="primitive"):
        found = tensor_of(z) * (0.1 + 0.3j)
    same(found, steps_of_product(z, np.full_like(z, 0.1 + 0.3j)))


# "primitive": float16 operation by operation


def halves(z):
    return z.real.astype(HALF), z.imag.astype(HALF)


def steps_of_product(z, w):
    (a, b), (c, d) = halves(z), halves(w)
    return (a * c - b * d).astype(np.float32) + 1j * (a * d + b * c).astype(np.float32)


def f16(function, x):
    with np.errstate(over="ignore"):
        return function(x.astype(np.float64)).astype(HALF)


def steps_of_length(a, b):
    return np.sqrt(a * a + b * b)


def steps_of(name, z, w):
    (a, b), (c, d) = halves(z), halves(w)
    if name == "mul":
        return a * c - b * d, a * d + b * c
    if name == "div":
        square = c * c + d * d
        return (a * c + b * d) / square, (b * c - a * d) / square
    if name == "exp":
        size = f16(np.exp, a)
        return size * f16(np.cos, b), size * f16(np.sin, b)
    if name == "abs":
        return (steps_of_length(a, b),)
    if name == "sgn":
        length = steps_of_length(a, b)
        return a / length, b / length
    assert name == "sqrt"
    first = np.sqrt((np.abs(a) + steps_of_length(a, b)) / HALF(2))
    second = np.abs(b) / (HALF(2) * first)
    left = a < 0
    return np.where(left, second, first), np.copysign(np.where(left, first, second), b)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", ["mul", "div", "exp", "abs", "sgn", "sqrt"])
def test_primitive_rounds_every_operation(name):
    z, w = complex_numbers(200), complex_numbers(200, seed=1)
    with fpsim.emulate("fp16", granularity="primitive"):
        found = getattr(torch, name)(tensor_of(z), *([tensor_of(w)] if name in ("mul", "div") else []))
    steps = np.stack(steps_of(name, z, w), -1)
    same(found, steps[:, 0] if name == "abs" else joined(steps))


# Products of matrices: real terms by turns, in the accumulator


def chain(a, b):
    """Real part: a c, then -b d for every k; imaginary part: a d, then b c. Every operation in float16."""
    total = np.zeros((a.shape[0], b.shape[1], 2), HALF)
    for k in range(a.shape[1]):
        (p, q), (r, s) = halves(a[:, k, None]), halves(b[None, k])
        for real, imaginary in ((p * r, p * s), (-(q * s), q * r)):
            total = total + np.stack([real, imaginary], -1)
    return joined(total)


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_products_go_through_the_accumulator_forward_and_backward(granularity):
    a, b, g = complex_numbers(4, 5), complex_numbers(5, 3, seed=1), complex_numbers(4, 3, seed=2)
    x, y = tensor_of(a).requires_grad_(), tensor_of(b).requires_grad_()
    with fpsim.emulate("fp16", "fp16", granularity=granularity):
        product = x @ y
        product.backward(tensor_of(g))
        others = {
            "bmm": torch.bmm(tensor_of(a)[None], tensor_of(b)[None])[0], "einsum": torch.einsum("ik,kj->ij", x, y),
            "mv": tensor_of(a) @ tensor_of(b)[:, 1], "dot": torch.dot(tensor_of(a)[0], tensor_of(b)[:, 0]),
            "vdot": torch.vdot(tensor_of(a)[0], tensor_of(b)[:, 0]), "adjoint": tensor_of(a).mH.mH @ tensor_of(b),
        }  # fmt: skip
    wanted = chain(a, b)
    same(product, wanted)
    same(x.grad, chain(g, b.conj().T))
    same(y.grad, chain(a.conj().T, g))
    for name, value in {"bmm": wanted, "einsum": wanted, "mv": wanted[:, 1], "dot": wanted[0, 0], "adjoint": wanted}.items():
        same(others[name], value)
    same(others["vdot"], chain(a[:1].conj(), b[:, :1])[0, 0])


def test_sums_of_parts_and_an_addend():
    z, c = complex_numbers(3, 6), complex_numbers(3, 3, seed=3)
    with fpsim.emulate("fp16", "fp16"):
        total, everything, running = tensor_of(z).sum(1), tensor_of(z).sum(), tensor_of(z).cumsum(-1)
        product = torch.addmm(tensor_of(c), tensor_of(z), tensor_of(z).mT)
    sums, steps = np.zeros((3, 2), HALF), []
    for column in parts(z).astype(HALF).swapaxes(0, 1):
        sums = sums + column
        steps.append(sums)
    same(total, joined(sums))
    same(running, joined(np.stack(steps, 1)))
    flat = np.zeros(2, HALF)
    for row in parts(z).reshape(-1, 2).astype(HALF):
        flat = flat + row
    same(everything, joined(flat[None])[0])
    same(product, half(chain(z, z.T) + c))


# Gradients


def test_gradients_are_torchs_formulas_each_operation_rounded():
    z, w, g = complex_numbers(50, scale=0.25), complex_numbers(50, seed=1), complex_numbers(50, seed=2)
    x, y = tensor_of(z).requires_grad_(), tensor_of(w).requires_grad_()
    with fpsim.emulate("fp16"):
        (x * y).backward(tensor_of(g))
        length = x.detach().clone().requires_grad_()
        length.abs().backward(tensor_of(g).real)
        turned = x.detach().clone().requires_grad_()
        turned.exp().backward(tensor_of(g))
    product = lambda a, b: a * b  # noqa: E731
    same(x.grad, rounded_by_mpmath(product, g, w.conj()))
    same(y.grad, rounded_by_mpmath(product, g, z.conj()))
    same(length.grad, half(g.real * rounded_by_mpmath(MPMATH["sgn"], z)))
    same(turned.grad, rounded_by_mpmath(product, g, rounded_by_mpmath(mpmath.exp, z).conj()))


# Memory, marks, roles


def test_views_share_memory_and_writes_are_rounded():
    z = tensor_of([1.0001 + 2.0003j, 0.1 + 0.3j])
    with fpsim.emulate("fp16"):
        y = z * 1
        y.real.mul_(3)
        y.conj().imag.add_(0.1)
        y[0] = 0.1 + 0.7j
        torch.view_as_real(y)[1, 0] = 0.3
        made = torch.full((2,), 0.1 + 0.2j), torch.complex(torch.tensor([0.1]), torch.tensor([0.3])), torch.zeros(1) + 0.1j
        drawn, wide = torch.randn(9, dtype=torch.complex64), tensor_of([0.1 + 0.1j]).to(torch.complex128)
    first = half(np.complex64(0.1 + 0.7j))
    same(y, [first, half(np.complex64(0.3)) + 1j * half(half(np.float32(0.3)) - np.float32(0.1))])
    for item in (y, *made, drawn, wide):
        same(item, half(item.numpy()))
    assert wide.dtype is torch.complex128


class Spectral(nn.Module):
    """A filter in the frequency domain, as spectral layers have it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.complex64) / 4)

    def forward(self, x):
        return torch.fft.irfft(torch.fft.rfft(x) * self.weight, 8)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_model_with_complex_parameters_trains_in_the_format(optimizer, foreach):
    model, x = Spectral(), torch.randn(3, 8)
    for fmt in ("bf16", {"*": "bf16", "gradient": "fp16", "weight": "fp32"}):
        sim = fpsim.run(model, fmt)
        stepper = optimizer(sim.parameters(), lr=0.125, foreach=foreach)
        with sim:
            output = sim(x)
            output.square().sum().backward()
            stepper.step()
        same(output, output.detach().bfloat16().float().numpy())
        gradient = torch.view_as_real(sim.weight.grad)
        assert torch.equal(gradient, gradient.bfloat16().float() if fmt == "bf16" else gradient.half().float())
        assert not torch.equal(sim.weight, model.weight)
        if fmt == "bf16":
            same(sim.weight, torch.view_as_complex(torch.view_as_real(sim.weight).detach().bfloat16().float()).numpy())


def test_fp32_with_rules_of_the_identity_is_near_torch(monkeypatch):
    monkeypatch.setattr(context, "rules_of_the_identity", True)
    z, w = tensor_of(complex_numbers(5, 5)), tensor_of(complex_numbers(5, 5, seed=1))
    norm = torch.linalg.vector_norm
    for call in (lambda: z @ w, lambda: (z / w).tanh(), lambda: torch.fft.fft2(z) ** 2, lambda: norm(z, dim=1)):
        with fpsim.emulate("fp32", "native"):
            found = call()
        torch.testing.assert_close(found, call())


def test_what_has_no_rule_says_so():
    z = tensor_of(complex_numbers(3, 3))
    with fpsim.emulate("fp16"):
        for call in (torch.var, torch.nanmean, lambda x: x.logsumexp(0), lambda x: torch.linalg.vector_norm(x, 1)):
            with pytest.raises(UnsupportedOp, match="complex"):
                call(z)
        with pytest.raises(RuntimeError, match="dtype"):
            z @ torch.eye(3)
    with fpsim.emulate("native"), pytest.raises(UnsupportedOp, match="complex"):
        z * torch.ones(3).half()
    assert {"add", "mul", "exp", "mm", "sum"} <= {name_of(op) for op in COMPLEX}
