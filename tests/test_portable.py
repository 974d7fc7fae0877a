"""Functions of float64 that are fpsim's own: their accuracy, their constants, and that no rule computes with a library's."""

import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd.profiler import profile
from torch.nn import functional as F

import fpsim
from fpsim.arrays import elementary
from fpsim.backend.numba import error_function, formulas, functions, trigonometric
from fpsim.emulation.machine.portable import PORTABLE, _formula, in_float64, power, sqrt
from fpsim.emulation.rules import elementwise
from tests.elementary_reference import REFERENCE, pairs
from tests.processor_cases import NUMBERS

UNIT = 2.0**-53
#: Relative errors in units of 2^-53 that the docstrings state; what the reference has to less is no error.
ERRORS = {
    "exp": 2, "exp2": 2, "expm1": 4, "log": 4, "log2": 6, "log10": 6, "log1p": 8, "sin": 4, "cos": 4, "tan": 8, "asin": 8,
    "acos": 8, "atan": 4, "sinh": 8, "cosh": 4, "tanh": 8, "asinh": 8, "acosh": 8, "atanh": 8, "sigmoid": 4, "erf": 8,
    "erfc": 32, "rsqrt": 3,
}  # fmt: skip


def arguments():
    """Of every size, around 0, 1 and multiples of pi/2, and special."""
    draw = np.random.default_rng(3)
    single = draw.integers(0, 2**32, 60, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = np.arange(1, 20) * (math.pi / 4)
    values = np.concatenate([
        np.nan_to_num(single).astype(np.float64), draw.normal(size=60) * np.exp2(draw.integers(-30, 9, 60)), near,
        near.astype(np.float32).astype(np.float64), 1 + draw.normal(size=30) * np.exp2(draw.integers(-30, 0, 30)),
        [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, math.inf, -math.inf, math.nan, 1e22, 2.0**120, 1e16, 26.4, 1000.0],
    ])  # fmt: skip
    return np.concatenate([values, -values])


@pytest.mark.parametrize("name", REFERENCE)
def test_functions_are_as_accurate_as_they_say(name):
    x = arguments()
    high, low = pairs(name, x)
    found = np.empty_like(x)
    functions.apply(name, x, found)
    normal = np.isfinite(high) & (np.abs(high) > 1e-290) & (np.abs(high) < 1e290)
    error = np.abs((found[normal] - high[normal]) - low[normal]) / np.abs(high[normal])
    assert error.max() <= ERRORS[name] * UNIT
    special = ~normal & (np.isnan(high) | (high == 0) | (np.isinf(x)))
    assert np.array_equal(found[special], high[special], equal_nan=True)
    assert (np.signbit(found) == np.signbit(high))[special & ~np.isnan(high)].all()


def test_powers_follow_c_at_the_edges():
    edges = np.array([0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.25, math.inf, -math.inf, math.nan, 3.0, -3.0, 0.5, -0.5, 1e300])
    x, y = (grid.reshape(-1) for grid in np.meshgrid(edges, edges))
    with np.errstate(all="ignore"):
        wanted = np.power(x, y)
    found = functions.power(x, y)
    assert np.allclose(found, wanted, rtol=2.0**-44, atol=0, equal_nan=True)
    assert (np.signbit(found) == np.signbit(wanted))[~np.isnan(wanted)].all()


def test_powers_are_within_their_bound_and_exact_where_they_can_be():
    draw = np.random.default_rng(4)
    x = np.abs(draw.normal(size=300) * np.exp2(draw.integers(-40, 40, 300))).astype(np.float32).astype(np.float64)
    y = np.concatenate([draw.normal(size=150) * 3, draw.integers(-40, 40, 150) / 4]).astype(np.float32).astype(np.float64)
    with mpmath.workprec(140):
        for base, exponent, found in zip(x, y, functions.power(x, y), strict=True):
            exact = mpmath.mpf(base) ** mpmath.mpf(exponent)
            if 2.0**-149 < exact < 2.0**128:
                assert abs(found - exact) <= exact * mpmath.mpf(2) ** -44
    bases = np.arange(1.0, 12.0)
    for exponent in (3, 5, 7, 11):
        assert functions.power(bases, float(exponent)).tolist() == [float(int(base) ** exponent) for base in bases]
        assert functions.power(bases**4, exponent / 4).tolist() == [float(int(base) ** exponent) for base in bases]
    assert power(0.999, 1000) == pytest.approx(0.999**1000, rel=1000 * 2 * UNIT) and power(0.5, 0) == 1.0


def test_the_table_of_turns():
    """2^e * 2/pi modulo 4, over 4."""
    with mpmath.workprec(1400):
        for exponent in (-32, -1, 0, 1, 500, 971):
            turns = mpmath.mpf(2) ** exponent / (2 * mpmath.pi)
            limbs = trigonometric.turns()[exponent + 32].tolist()
            found = sum(limb << (32 * i) for i, limb in enumerate(limbs))
            assert found == int(mpmath.floor((turns - mpmath.floor(turns)) * mpmath.mpf(2) ** 192))


def test_the_coefficients_of_erfc():
    count, extra = len(error_function.COEFFICIENTS), 12
    first, last = (mpmath.mpf(end) for end in (error_function._FIRST, error_function._LAST))
    with mpmath.workprec(200):
        ends = (first - 3) / (first + 3), (last - 3) / (last + 3)

        def height(u):
            t = (ends[0] + ends[1]) / 2 + (ends[1] - ends[0]) / 2 * u
            x = 3 * (1 + t) / (1 - t)
            return mpmath.exp(x * x) * mpmath.erfc(x) * (x + 3)

        size = count + extra
        angles = [mpmath.pi * (2 * j + 1) / (2 * size) for j in range(size)]
        nodes = [(angle, height(mpmath.cos(angle))) for angle in angles]
        found = [2 * mpmath.fsum(value * mpmath.cos(i * angle) for angle, value in nodes) / size for i in range(size)]
        found[0] /= 2
        powers = [[mpmath.mpf(1)], [mpmath.mpf(0), mpmath.mpf(1)]]  # T_k by the recurrence 2 u T_(k - 1) - T_(k - 2)
        for k in range(2, count):
            doubled = [0, *(2 * value for value in powers[-1])]
            powers.append([value - (powers[-2][i] if i < k - 1 else 0) for i, value in enumerate(doubled)])
        sums = [mpmath.fsum(found[k] * powers[k][i] for k in range(i, count)) for i in range(count)]
        assert tuple(float(value) for value in sums) == error_function.COEFFICIENTS
        assert max(abs(value) for value in found[count:]) < 1e-18


# Formulas are torch's.

_X = torch.from_numpy(np.linspace(-6, 6, 241)).double()
_Y = _X.roll(100)
_UNIT_INTERVAL, _BITS = _X.abs() / 7, (_Y > 0).double()
FORMULAS = {
    "gelu": [(_X,)],
    "gelu_backward": [(_Y, _X)],
    "silu": [(_X,)],
    "silu_backward": [(_Y, _X)],
    "mish": [(_X,)],
    "mish_backward": [(_Y, _X)],
    "softplus": [(_X,), (_X, 2.0, 5.0)],
    "softplus_backward": [(_Y, _X, 1, 20), (_Y, _X, 2.0, 5.0)],
    "elu": [(_X, 1.5, 1.25, 0.75)],
    "elu_backward": [(_Y, 1.5, 1.25, 0.75, False, _X), (_Y, 1.5, 1.25, 0.75, True, _X)],
    "celu": [(_X, 1.5)],
    "log_sigmoid_forward": [(_X,)],
    "glu": [(_X[:240], 0)],
    "glu_backward": [(_Y[:120], _X[:240], 0)],
    "glu_jvp": [(torch.ops.aten.glu(_X[:240], 0), _X[:240], _Y[:240], 0)],
    "glu_backward_jvp": [
        (torch.ops.aten.glu_backward(_Y[:120], _X[:240], 0), _Y[:120], _X[:240], _X[:120].sin(), _Y[:240].cos(), 0)
    ],
    "logit": [(_UNIT_INTERVAL,), (_UNIT_INTERVAL, 0.125)],
    "xlogy": [(_X, _Y)],
    "special_xlog1py": [(_X, _Y)],
    "special_entr": [(_X,)],
    "logaddexp": [(_X, _Y)],
    "logaddexp2": [(_X, _Y)],
    "sinc": [(_X,)],
    "hypot": [(_X, _Y)],
    "atan2": [(_X, _Y)],
    "pow": [(_X, _Y)],
    "binary_cross_entropy": [(_UNIT_INTERVAL, _BITS, None, 0), (_UNIT_INTERVAL, _BITS, _X.abs(), 0)],
    "binary_cross_entropy_with_logits": [(_X, _BITS, None, None, 0), (_X, _BITS, _X.abs(), _Y.abs(), 0)],
    "soft_margin_loss": [(_X, 2 * _BITS - 1, 0)],
    "soft_margin_loss_backward": [(_Y, _X, 2 * _BITS - 1, 1)],
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formulas_are_those_of_torch(name):
    packet = getattr(torch.ops.aten, name)
    op = packet.default if "default" in packet.overloads() else getattr(packet, "Tensor", None) or packet.Tensor_Tensor
    for given in FORMULAS[name]:
        found, wanted = in_float64(op)(*given), op(*given)
        for mine, theirs in zip(*(x if isinstance(x, tuple) else (x,) for x in (found, wanted)), strict=True):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
            assert torch.allclose(mine, theirs, rtol=2.0**-40, atol=2.0**-46, equal_nan=True)  # torch's own cancellation


def test_the_page_names_what_torch_still_computes():
    page = (Path(__file__).parents[1] / "docs/explanation/how-it-works.md").read_text()
    rest = [name for name in elementwise.ELEMENTARY if name not in PORTABLE]
    assert rest and [name for name in rest if not name.startswith("special_") and f"`{name}`" not in page] == []


def test_every_formula_is_tried():
    assert set(PORTABLE) - set(elementary.NAMES) == set(FORMULAS)


# What runs inside a rule, by torch's own record.

LIBRARY = {f"aten::{name}" for name in (*PORTABLE, "sqrt", "_softmax", "_log_softmax", "logsumexp", "log_sigmoid")}


def computed_by_torch(call):
    """Names of operations that ran inside a rule, and not through a rule of their own."""
    with fpsim.emulate(fmt="fp16"), profile() as record:
        call()
    found = set()
    for event in record.function_events:
        ancestors, parent = [], event.cpu_parent
        while parent is not None:
            ancestors.append(parent.name)
            parent = parent.cpu_parent
        emulated = any(child.name == "PythonDispatchMode" for child in event.cpu_children)
        if event.name in LIBRARY and "PythonDispatchMode" in ancestors and not emulated:
            found.add(event.name)
    return found


_UNARY = {name: getattr(torch, name) for name in elementary.NAMES}
_COMPOSITE = {
    "softmax": lambda x: F.softmax(x, -1),
    "log_softmax": lambda x: F.log_softmax(x, -1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": F.elu,
    "selu": F.selu,
    "glu": F.glu,
    "logsigmoid": F.logsigmoid,
    "power": lambda x: x.abs() ** 1.5 + x**3,
    "root": lambda x: x.abs().sqrt(),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(len(x), dtype=torch.int64)),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(x.sigmoid(), torch.zeros_like(x)),
    "binary_cross_entropy_with_logits": lambda x: F.binary_cross_entropy_with_logits(x, torch.zeros_like(x)),
    "soft_margin_loss": lambda x: F.soft_margin_loss(x, torch.ones_like(x)),
    "layer_norm": lambda x: F.layer_norm(x, (16,)),
    "rms_norm": lambda x: F.rms_norm(x, (16,)),
    "group_norm": lambda x: F.group_norm(x[:, :, None], 4),
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "normalize": lambda x: F.normalize(x, 3.0),
    "std": lambda x: x.std(-1),
    "attention": lambda x: F.scaled_dot_product_attention(*[x[None]] * 3),
    "logaddexp": lambda x: torch.logaddexp(x, -x),
    "atan2": lambda x: torch.atan2(x, x + 1),
}


@pytest.mark.parametrize("name", [*_UNARY, *_COMPOSITE])
def test_no_function_of_a_library_is_in_a_result(name):
    x = torch.from_numpy(np.linspace(-0.75, 0.75, 128).reshape(8, 16).astype(np.float16).astype(np.float32)).requires_grad_()
    call = (_UNARY | _COMPOSITE)[name]
    assert computed_by_torch(lambda: call(x).sum().backward()) == set()


def test_large_and_small_tensors_have_the_same_bits():
    """Blocks of a large tensor go another way; so do tensors that are not contiguous."""
    x = torch.from_numpy(np.random.default_rng(5).normal(size=(300, 100)).astype(np.float32))
    with fpsim.emulate(fmt="fp32"):
        for function in (F.gelu, torch.tanh, lambda x: x.abs() ** 1.7, F.silu):
            whole = function(x)
            assert torch.equal(whole, torch.cat([function(row[None]) for row in x]))
            assert torch.equal(whole, function(x.t()).t()) and function(x.t()).stride() == x.t().stride()


# Formulas as kernels: the same operations of torch and of fpsim's functions, one after the other.


def _log_add(power, factor):
    def function(x, y):
        largest = torch.maximum(x, y)
        summed = largest + PORTABLE["log1p"](power(-(x - y).abs())) * factor
        return torch.where(x.isinf() & (x == y), x, summed)

    return function


def _x_times(logarithm):
    def function(x, y):
        product = x * logarithm(y)
        return torch.where((x == 0) & ~y.isnan(), torch.zeros_like(product), product)

    return function


def _atan2(y, x):
    ratio = y.abs() / x.abs()
    ratio = torch.where(y == 0, torch.where(x.isnan(), x, 0.0), torch.where(y.isinf() & x.isinf(), 1.0, ratio))
    angle = PORTABLE["atan"](ratio)
    return torch.where(x.signbit(), math.pi - (angle - 1.2246467991473532e-16), angle).copysign(y)


def _entropy(x):
    lowest = torch.full_like(x, -math.inf)
    positive = torch.where(x > 0, -x * PORTABLE["log"](x), torch.where(x == 0, torch.zeros_like(x), lowest))
    return torch.where(x.isnan(), x, positive)


def _sinc(x):
    turned = math.pi * x
    return torch.where(x == 0, torch.ones_like(x), PORTABLE["sin"](turned) / turned)


def _logistic(x):
    return 1.0 / (1.0 + PORTABLE["exp"](-x))


def _softplus_gradient(g, x, beta, threshold):
    z = PORTABLE["exp"](x * beta)
    return torch.where(x * beta > threshold, g, g * z / (z + 1.0))


def _mish_gradient(g, x):
    s, t = _logistic(x), PORTABLE["tanh"](PORTABLE["log1p"](PORTABLE["exp"](x)))
    return g * (t + x * s * (1.0 - t * t))


def _elu_gradient(g, x, scale, slope, input_scale):
    return torch.where(x > 0, g * scale, g * (slope * PORTABLE["exp"](x * input_scale)))


def _log_sigmoid(x):
    return x.clamp(max=0.0) - PORTABLE["log1p"](PORTABLE["exp"](-x.abs()))


def _cross_entropy(x, t):
    logarithms = PORTABLE["log1p"](-x).clamp(min=-100.0), PORTABLE["log"](x).clamp(min=-100.0)
    return (t - 1.0) * logarithms[0] - t * logarithms[1]


_ROOT_HALF = math.sqrt(0.5)
STEPS = {
    "logistic": _logistic,
    "silu": lambda x: x / (1.0 + PORTABLE["exp"](-x)),
    "silu_gradient": lambda g, x: g * _logistic(x) * (1.0 + x * (1.0 - _logistic(x))),
    "gelu": lambda x: x * (0.5 * PORTABLE["erfc"](-x * _ROOT_HALF)),
    "gelu_gradient": lambda g, x: g * (
        0.5 * PORTABLE["erfc"](-x * _ROOT_HALF) + x * (PORTABLE["exp"](x * x * -0.5) * (_ROOT_HALF / math.sqrt(math.pi)))
    ),
    "gelu_tanh": lambda x: x * _logistic(2.0 * math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))),
    "mish": lambda x: x * PORTABLE["tanh"](PORTABLE["log1p"](PORTABLE["exp"](x))),
    "mish_gradient": _mish_gradient,
    "exp_below": lambda x: PORTABLE["exp"](-x.abs()),
    "log_sigmoid": _log_sigmoid,
    "softplus": lambda x, b, t: torch.where(x * b > t, x, PORTABLE["log1p"](PORTABLE["exp"](x * b)) / b),
    "softplus_gradient": _softplus_gradient,
    "elu": lambda x, scale, below, inner: torch.where(x > 0, x * scale, PORTABLE["expm1"](x * inner) * below),
    "elu_gradient": _elu_gradient,
    "x_log_y": _x_times(PORTABLE["log"]),
    "x_log1p_y": _x_times(PORTABLE["log1p"]),
    "entropy": _entropy,
    "log_add": _log_add(PORTABLE["exp"], 1.0),
    "log_add2": _log_add(PORTABLE["exp2"], 1.0 / math.log(2.0)),
    "hypotenuse": lambda x, y: torch.where(x.isinf() | y.isinf(), math.inf, sqrt(x * x + y * y)),
    "angle": _atan2,
    "power": lambda x, y: torch.from_numpy(functions.power(x.numpy(), y.numpy())),
    "power_by_number": lambda x, y: torch.from_numpy(functions.power(x.numpy(), y)),
    "sinc": _sinc,
    "cross_entropy": _cross_entropy,
    "cross_entropy_of_logit": lambda x, t: (1.0 - t) * x - _log_sigmoid(x),
}


@pytest.mark.parametrize("name", formulas.NAMES)
def test_kernels_of_formulas_are_their_steps(name):
    x = torch.from_numpy(arguments())
    y = x[torch.from_numpy(np.random.default_rng(6).permutation(len(x)))]
    special = torch.tensor([0.0, -0.0, math.inf, math.nan], dtype=torch.float64).repeat_interleave(len(x))
    for first, second in ((x, y), (x, x), (x, -x), (x.repeat(4), special)):
        tensors = (first, second)[: formulas.operands_of(name)]
        for numbers in NUMBERS.get(name, [()]):
            found, wanted = _formula(name)(*tensors, *numbers), STEPS[name](*tensors, *numbers)
            is_nan = wanted.isnan()
            assert torch.equal(found.isnan(), is_nan)
            assert torch.equal(found[~is_nan].view(torch.int64), wanted[~is_nan].view(torch.int64))


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 4), (4,)), ((3, 1), (1, 4)), ((), (2, 3)), ((0, 2), (2,))])
def test_formulas_broadcast_into_the_layout_of_torch(shapes):
    x, y = (torch.rand(shape, dtype=torch.float64) for shape in shapes)
    for first, second in ((x, y), (x.t() if x.dim() == 2 else x, y.t() if y.dim() == 2 else y)):
        try:
            wanted = torch.hypot(first, second)
        except RuntimeError:
            continue
        found = _formula("hypotenuse")(first, second)
        assert (found.shape, found.stride()) == (wanted.shape, wanted.stride())
        assert torch.equal(found, STEPS["hypotenuse"](first, second))
