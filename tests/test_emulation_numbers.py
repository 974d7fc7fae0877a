"""Python numbers among the arguments of operations: rounded where torch rounds them, saturated where they only fill."""

import numpy as np
import pytest
import torch
from torch.nn import functional

import fpsim
from fpsim.emulation import UnsupportedOp
from fpsim.emulation.numbers import FILLING, IN_THE_FORMAT
from fpsim.emulation.registry import RULES
from fpsim.emulation.schemas import name_of

LARGEST = torch.finfo(torch.float32).max
NAMED = ["fp16", "bf16", "float8_e4m3fn", "float8_e5m2", "tf32"]
GRANULARITIES = ["kernel", "primitive"]
MASK = torch.tensor([1.0, 0.0, 1.0])

#: Operations that torch computes in the tensor's own dtype, of a tensor and a number.
IN_FORMAT_CALLS = {
    "eq": lambda x, c: x == c,
    "ne": lambda x, c: x != c,
    "lt": lambda x, c: x < c,
    "le": lambda x, c: x <= c,
    "gt": lambda x, c: x > c,
    "ge": lambda x, c: x >= c,
    "reversed": lambda x, c: c > x,
    "eq in place": lambda x, c: x.clone().eq_(c),
    "eq into": lambda x, c: torch.eq(x, c, out=torch.empty(x.shape, dtype=torch.bool)),
    "eq a number by name": lambda x, c: torch.eq(x, other=c),
    "eq a tensor": lambda x, c: x == torch.tensor(c, dtype=torch.float64),
    "isin": lambda x, c: torch.isin(x, c),
    "fmod": lambda x, c: torch.fmod(x, c),
    "fmod in place": lambda x, c: x.clone().fmod_(c),
    "remainder": lambda x, c: x % c,
    "remainder of a number": lambda x, c: c % x,
    "pow": lambda x, c: x.abs() ** c,
    "foreach pow": lambda x, c: torch._foreach_pow([x.abs()], c)[0],
    "bucketize": lambda x, c: torch.bucketize(c, x.sort().values),
    "searchsorted": lambda x, c: torch.searchsorted(x.sort().values, c, right=True),
    "hardshrink": lambda x, c: functional.hardshrink(x, c),
    "choice": lambda x, c: torch.where(x >= c, x, c),
}


def around(number, fmt):
    """The number rounded to the format, its neighbours and some multiples."""
    value = float(fpsim.round(number, fmt))
    near = [value, float(fpsim.next_up(value, fmt)), float(fpsim.next_down(value, fmt))]
    return torch.as_tensor(fpsim.round(np.array([*near, -value, 2 * value, 3 * value, 10 * value], np.float32), fmt))


def same_bits(a, b):
    return a.dtype == b.dtype and torch.equal(a.isnan(), b.isnan()) and torch.equal(a[~a.isnan()], b[~b.isnan()])


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fmt", NAMED)
@pytest.mark.parametrize("name", IN_FORMAT_CALLS)
def test_a_number_is_what_it_is_when_rounded(name, fmt, granularity):
    """Whatever torch computes in the tensor's dtype gives for a number what it gives for that number rounded."""
    call = IN_FORMAT_CALLS[name]
    largest = fpsim.get_format(fmt).max_finite
    for number in (0.1, 0.7, 1 / 3, min(2049.0, largest)):
        x, rounded = around(number, fmt), float(fpsim.round(number, fmt))
        with fpsim.emulate(fmt, granularity=granularity):
            actual, expected = call(x, number), call(x, rounded)
        assert same_bits(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", IN_FORMAT_CALLS)
def test_native_is_torch(name, dtype):
    call, fmt = IN_FORMAT_CALLS[name], "fp16" if dtype is torch.float16 else "bf16"
    for number in (0.1, 0.7, 1 / 3, 2049):
        x = around(number, fmt).to(dtype)
        with fpsim.emulate("native"):
            actual = call(x, number)
        assert same_bits(actual, call(x, number))


def test_a_tensor_of_integers_or_float64_meets_the_number_itself():
    with fpsim.emulate("fp16"):
        assert (torch.tensor([0.1], dtype=torch.float64) == 0.1).item()
        assert not (torch.tensor([0.1], dtype=torch.float64) * 0.1 != 0.1 * 0.1).item()
        assert torch.equal(torch.arange(3) * 3001, torch.tensor([0, 3001, 6002]))


def test_the_names_are_those_of_rules():
    known = {name_of(op) for op in RULES}
    assert known >= IN_THE_FORMAT | FILLING.keys()


# Beyond the range


#: What becomes of `x` (zeros and ones), with float32's lowest number taking part.
LOWEST = {
    "product": lambda x, low: (1 - x) * low,
    "product from the left": lambda x, low: low * (1 - x),
    "product in place": lambda x, low: (1 - x).mul_(low),
    "product into": lambda x, low: torch.mul(1 - x, low, out=torch.empty(3)),
    "foreach product": lambda x, low: torch._foreach_mul([1 - x], low)[0],
    "product with a constant": lambda x, low: (1 - x) * torch.tensor(low),
    "sum": lambda x, low: x + low,
    "difference": lambda x, low: x - -low,
    "choice": lambda x, low: torch.where(x > 0, x, low),
    "choice of constants": lambda x, low: torch.where(x > 0, torch.tensor(0.0), torch.tensor(low)),
    "filled": lambda x, low: x.masked_fill(x > 0, low),
    "full": lambda x, low: torch.full((3,), low),
    "clamped": lambda x, low: x.clamp(max=low),
    "padded": lambda x, low: functional.pad(x, (1, 1), value=low),
    "stored": lambda x, low: x.clone().index_put_((torch.tensor([0]),), torch.tensor(low)),
    "assigned": lambda x, low: assigned(x, low),
    "maximum": lambda x, low: torch.maximum(x, torch.tensor(low)),
}


def assigned(x, value):
    copy = x.clone()
    copy[x > 0] = value
    copy[1] = value
    return copy


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("fmt", [*NAMED, {"*": "fp16", "weight": "fp32"}])
@pytest.mark.parametrize("name", LOWEST)
def test_the_lowest_float32_number_is_the_lowest_of_the_format(name, fmt, granularity):
    """As if the model had been told the format's own, and nothing is reported."""
    model = torch.nn.Identity()
    sim = fpsim.run(model, fmt=fmt, granularity=granularity)
    own = -fpsim.get_format("fp16" if isinstance(fmt, dict) else fmt).max_finite
    with sim:
        actual, expected = LOWEST[name](MASK, -LARGEST), LOWEST[name](MASK, own)
        assert torch.equal(actual, expected)
        assert actual.isfinite().all()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_comparisons_with_the_lowest_number(granularity):
    with fpsim.emulate("fp16", granularity=granularity):
        filled = MASK.masked_fill(MASK > 0, -LARGEST)
        assert (filled == -LARGEST).tolist() == [True, False, True]
        assert (filled > -LARGEST).tolist() == [False, True, False]
        assert (filled <= torch.finfo(filled.dtype).min).tolist() == [True, False, True]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_masks_from_outside_and_buffers(granularity):
    class Masked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("lowest", torch.tensor([-LARGEST, 0.0, LARGEST]))

        def forward(self, mask):
            return self.lowest + 0, mask + 0

    sim = fpsim.run(Masked(), fmt="fp16", granularity=granularity)
    mask = (1 - MASK) * -LARGEST
    with sim:
        buffer, given = sim(mask)
    assert buffer.tolist() == [-65504, 0, 65504]
    assert given.tolist() == [0, -65504, 0]
    assert sim.report().total.overflows == 0


#: Numbers that only fill, or bound, elements.
FILLS = {
    "full": lambda x, c: torch.full((3,), c),
    "full_like": lambda x, c: torch.full_like(x, c),
    "new_full": lambda x, c: x.new_full((3,), c),
    "scalar_tensor": lambda x, c: torch.scalar_tensor(c),
    "fill_": lambda x, c: x.clone().fill_(c),
    "masked_fill": lambda x, c: x.masked_fill(x > 0, c),
    "masked_fill_": lambda x, c: x.clone().masked_fill_(x > 0, c),
    "index_fill": lambda x, c: x.index_fill(0, torch.tensor([0]), c),
    "scatter": lambda x, c: x.scatter(0, torch.tensor([0]), c),
    "where": lambda x, c: torch.where(x > 0, x, c),
    "where from the left": lambda x, c: torch.where(x > 0, c, x),
    "clamp": lambda x, c: (x / 0).clamp(-abs(c), abs(c)),
    "clamp_max": lambda x, c: (x / 0).clamp_max(abs(c)),
    "clamp_min in place": lambda x, c: (-x / 0).clamp_min_(-abs(c)),
    "foreach clamp": lambda x, c: torch._foreach_clamp_max([x / 0], abs(c))[0],
    "foreach maximum": lambda x, c: torch._foreach_maximum([x], abs(c))[0],
    "hardtanh": lambda x, c: functional.hardtanh(x / 0, -abs(c), abs(c)),
    "threshold": lambda x, c: functional.threshold(x, 0.5, c),
    "pad": lambda x, c: functional.pad(x, (1, 1), value=c),
    "nan_to_num": lambda x, c: (x / 0).nan_to_num(posinf=c, nan=c),
    "fill_diagonal_": lambda x, c: torch.eye(3).to(x.dtype).fill_diagonal_(c),
    "assigned": assigned,
}


UNSEEN = {("full", 100_000), ("scalar_tensor", 100_000), ("assigned", 1e39)}


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("number", [1e5, -1e9, 1e39, 100_000])
@pytest.mark.parametrize("name", FILLS)
def test_what_fills_saturates(name, number, granularity):
    if (name, number) in UNSEEN:
        pytest.skip("torch makes an integer tensor, or infinity, of it first")
    sign = -1 if number < 0 else 1
    with fpsim.emulate("fp16", granularity=granularity):
        actual, expected = FILLS[name](MASK, number), FILLS[name](MASK, sign * 65504.0)
    assert same_bits(actual, expected)
    assert 65504.0 in actual.abs()


@pytest.mark.parametrize(
    ("dtype", "numbers"), [(torch.float16, [1e5, -1e9, 65510.0, 100_000]), (torch.bfloat16, [1e39, -3.4e38])]
)
@pytest.mark.parametrize("name", [name for name in FILLS if name not in ("full", "scalar_tensor")])
def test_native_fills_as_torch_does(name, dtype, numbers):
    """The same infinities where torch casts, the same exception where torch raises."""
    x = MASK.to(dtype)
    for number in numbers:
        try:
            expected = FILLS[name](x, number)
        except RuntimeError as error:
            with pytest.raises(type(error)), fpsim.emulate("native"):
                FILLS[name](x, number)
            continue
        with fpsim.emulate("native"):
            assert same_bits(FILLS[name](x, number), expected)


@pytest.mark.parametrize("number", [-1e9, 1e5])
def test_native_makers_raise_or_overflow_as_torch_does(number):
    with pytest.raises(RuntimeError, match="without overflow"), fpsim.emulate("native"):
        torch.full((2,), number, dtype=torch.float16)
    with fpsim.emulate("native"):
        assert torch.equal(torch.scalar_tensor(number, dtype=torch.float16), torch.scalar_tensor(number, dtype=torch.float16))


def test_what_torch_refuses_leaves_everything_as_it_was():
    x, generator = MASK.half(), torch.Generator().manual_seed(1)
    state = generator.get_state()
    with fpsim.emulate("native"), pytest.raises(RuntimeError):
        x.uniform_(-1e9, 1e9, generator=generator)
    assert torch.equal(generator.get_state(), state)
    with fpsim.emulate("native"), pytest.raises(RuntimeError):
        x.masked_fill_(x > 0, -1e9)
    assert torch.equal(x, MASK.half())


def test_arithmetic_computes_in_fp32_or_overflows():
    x = torch.tensor([0.1])
    kernel, primitive = (fpsim.run(torch.nn.Identity(), fmt="fp16", granularity=granularity) for granularity in GRANULARITIES)
    with kernel:
        assert (x * 1e5).item() == 1e4
        assert (x * 100_000).item() == 1e4
    with primitive:
        assert (x * 1e5).item() == float("inf")
    assert [context.report().total.overflows for context in (kernel, primitive)] == [0, 1]


def test_infinite_numbers_where_there_is_no_infinity():
    infinite = float("inf")
    with fpsim.emulate("float8_e4m3fn"):
        assert MASK.masked_fill(MASK > 0, -infinite).tolist() == [-448, 0, -448]
        assert (MASK * infinite).tolist()[::2] == [448, 448]
        assert torch.where(MASK > 0, -infinite, MASK).tolist() == [-448, 0, -448]
        assert torch.full((1,), 448.0).isfinite().item()


# Numbers that are tensors


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_a_wider_tensor_of_no_dimensions_is_a_number_to_native_arithmetic(kind):
    x, number = around(0.1, "fp16").half(), torch.tensor(0.1, dtype=kind)
    with fpsim.emulate("native"):
        actual = [x * number, x / number, number * x, torch.floor_divide(x, number), x % number, torch.maximum(x, number)]
    expected = [x * number, x / number, x * 0.1, torch.floor_divide(x, number), x % number, torch.maximum(x, number)]
    assert all(map(same_bits, actual, expected))


@pytest.mark.parametrize("call", ["masked_fill", "index_fill", "index_put"])
def test_what_a_tensor_of_no_dimensions_fills(call):
    x, value, index = MASK.half(), torch.tensor(0.1), torch.tensor([0])
    calls = {
        "masked_fill": lambda: x.masked_fill(x > 0, value),
        "index_fill": lambda: x.index_fill(0, index, value),
        "index_put": lambda: x.index_put((x > 0,), value),
    }
    with fpsim.emulate("native"):
        actual = calls[call]()
    assert same_bits(actual, calls[call]())


#: Calls of half tensors and a float64 one of no dimensions, which torch takes in some way of its own, or refuses.
BESIDE = {
    "ldexp": lambda x, c: torch.ldexp(x, c),
    "ldexp in place": lambda x, c: x.clone().ldexp_(c),
    "huber_loss": lambda x, c: functional.huber_loss(x, c.expand(3), reduction="none"),
    "soft_margin_loss of no dimensions": lambda x, c: functional.soft_margin_loss(x[0], c * 0),
    "normal of no dimensions": lambda x, c: torch.normal(x[0], c * 0),
    "heaviside": lambda x, c: torch.heaviside(x, c),
    "lerp": lambda x, c: torch.lerp(x, c, 0.5),
    "masked_scatter": lambda x, c: x.masked_scatter(x > 0, c),
    "allclose": lambda x, c: torch.tensor(torch.allclose(x, c)),
    "layer_norm": lambda x, c: functional.layer_norm(x, (3,), c),
    "batch_norm": lambda x, c: functional.batch_norm(x.reshape(1, 3), c, x.abs()),
    "group_norm": lambda x, c: torch.native_group_norm(x.reshape(1, 3), c, x, 1, 3, 1, 1, 1e-5)[0],
    "index_put": lambda x, c: x.index_put((x > 0,), c),
    "index_put beyond": lambda x, c: x.index_put((x > 0,), c * 1e39),
    "index_put of a sum": lambda x, c: x.index_put((x > 0,), c, accumulate=True),
    "index_put at places": lambda x, c: x.index_put((torch.tensor([0]),), c),
}


def outcome_of(call):
    try:
        return call()
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BESIDE)
def test_native_takes_or_refuses_a_wider_tensor_of_no_dimensions_as_torch_does(name, dtype):
    x, number = torch.tensor([0.1, -0.3, 3.0]).to(dtype), torch.tensor(0.7, dtype=torch.float64)
    expected = outcome_of(lambda: BESIDE[name](x, number))
    with fpsim.emulate("native"):
        actual = outcome_of(lambda: BESIDE[name](x, number))
    if isinstance(expected, RuntimeError):
        assert (type(actual), str(actual)) == (type(expected), str(expected))
    else:
        assert same_bits(actual, expected)


@pytest.mark.parametrize("fmt", ["fp16", "native"])
@pytest.mark.parametrize("shape", [(1,), (1, 1), ()])
def test_addbmm_in_place_gives_its_target_the_shape_of_the_result(shape, fmt):
    dtype = torch.float16 if fmt == "native" else torch.float32
    target, a, b = torch.ones(shape, dtype=dtype), torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 4, 5, dtype=dtype)
    with fpsim.emulate(fmt):
        result = target.addbmm_(a, b, beta=0.5, alpha=2)
    assert result is target
    assert torch.equal(target, torch.full((3, 5), 16.5, dtype=dtype))


NEXT = {
    "functional": torch.nextafter,
    "in place": lambda x, y: x.clone().nextafter_(y),
    "into": lambda x, y: torch.nextafter(x, y, out=torch.empty_like(x)),
}


@pytest.mark.parametrize("form", NEXT)
def test_every_form_of_nextafter_steps_in_the_format(form):
    x, y = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([2.0, 0.0, -1.0])
    expected = torch.nextafter(x.half(), y.half())
    with fpsim.emulate("fp16"):
        named = NEXT[form](x, y)
    with fpsim.emulate("native"):
        native = NEXT[form](x.half(), y.half())
    assert torch.equal(named, expected.float())
    assert torch.equal(native, expected)


MAKERS_BEYOND = {
    "linspace": lambda: torch.linspace(1e39, -3, 1, dtype=torch.bfloat16),
    "logspace": lambda: torch.logspace(1e39, 1e39, 1, dtype=torch.bfloat16),
    "normal": lambda: torch.normal(1e39, torch.ones(3, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("name", MAKERS_BEYOND)
def test_native_makers_overflow_beyond_float32_as_torch_does(name):
    expected = MAKERS_BEYOND[name]()
    with fpsim.emulate("native"):
        assert same_bits(MAKERS_BEYOND[name](), expected)


@pytest.mark.parametrize("order", [1, 2, 3, -1, 1e5, -1e9, float("inf"), float("-inf")])
def test_a_norm_of_one_element_is_its_magnitude(order):
    x = torch.tensor([[0.1], [-3.0], [60000.0]]).half()
    with fpsim.emulate("native"):
        assert torch.equal(torch.linalg.vector_norm(x, order, dim=1), x[:, 0].abs())


def test_what_is_no_tensor_is_refused_as_torch_refuses_it():
    with fpsim.emulate("fp16"), pytest.raises(TypeError, match="must be Tensor"):
        functional.rms_norm(0.1, (1,))
    with fpsim.emulate("fp16"), pytest.raises(TypeError, match="must be Tensor"):
        functional.rms_norm(torch.ones(1), (1,), 0.1)


# Printing and tracing

PRINTED = {
    "half": lambda x: x.half(),
    "bfloat16": lambda x: x.bfloat16(),
    "float8": lambda x: x.to(torch.float8_e5m2),
    "double": lambda x: x.double(),
    "as it is": lambda x: x,
    "one number": lambda x: x[0].half(),
    "large": lambda x: x.repeat(700).half(),
    "not finite": lambda x: (x / 0).half(),
}


@pytest.mark.parametrize("fmt", ["fp16", "bf16", "float8_e4m3fn", "native", {"*": "fp16", "weight": "fp32"}])
@pytest.mark.parametrize("name", PRINTED)
def test_printing_shows_the_numbers_and_changes_nothing(name, fmt):
    x = torch.tensor([0.0, 1.5, -0.75])
    sim = fpsim.run(torch.nn.Identity(), fmt=fmt)
    with sim:
        made = PRINTED[name](x)
        before = str(sim.report()), sim.rng_state()
        text = repr(made), str(made)
        assert (str(sim.report()), sim.rng_state()) == before
        numbers = made.tolist(), made.reshape(-1)[0].item()
    assert text == (repr(made), str(made))
    assert repr(numbers) == repr((made.tolist(), made.reshape(-1)[0].item()))


def test_printing_draws_nothing():
    x = torch.tensor([0.1, 0.7])
    results = []
    for prints in (False, True):
        with fpsim.emulate("bf16", rounding="stochastic", seed=1):
            y = x * 3
            if prints:
                assert repr(y)
                assert f"{y[0].item()}"
            results.append(y / 7)
    assert torch.equal(*results)


def test_casts_round_once_in_the_rounding_of_the_run():
    x = torch.tensor([1.0 + 2.0**-10])
    with fpsim.emulate("fp16", rounding="up"):
        assert x.bfloat16().item() == 1 + 2.0**-7


def _traced(model, x):
    return torch.jit.trace(model, x)


TRACERS = {
    "torch.jit.trace": _traced,
    "torch.export": lambda model, x: torch.export.export(model, (x,)),
    "make_fx of numbers": lambda model, x: torch.fx.experimental.proxy_tensor.make_fx(lambda y: y.sin())(x),
    "torch.func.linearize": lambda model, x: torch.func.linearize(torch.sin, x),
    "make_fx": lambda model, x: torch.fx.experimental.proxy_tensor.make_fx(model, tracing_mode="fake")(x),
}


class Scaled(torch.nn.Module):
    def forward(self, x):
        return x * 0.3 + torch.where(x > 0.1, 0.7, x)


@pytest.mark.parametrize("fmt", ["fp16", "native"])
@pytest.mark.parametrize("name", TRACERS)
def test_tracers_inside_are_told_to_trace_outside(name, fmt):
    with fpsim.emulate(fmt), pytest.raises(UnsupportedOp, match="trace the model outside of the emulation"):
        TRACERS[name](Scaled(), torch.ones(3))


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_traced_model_runs_inside_as_the_model_does(granularity):
    x, model = around(0.1, "fp16"), Scaled()
    traced = torch.jit.trace(model, x)
    with fpsim.emulate("fp16", granularity=granularity):
        assert torch.equal(traced(x), model(x))
