"""Operations on tensors that all hold values of the format take a short way; it gives the bits and counts of their rules."""

import functools
import itertools

import numpy as np
import pytest
import torch

import fpsim
from fpsim.emulation.dispatch.context import current
from fpsim.emulation.registry import SHORT, TABLE
from fpsim.emulation.schemas import name_of
from tests.frequency import often

OPS = [op for op in TABLE if id(op) in SHORT]
SPECIALS = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, 6e-8, -6e-8, 6.1e-5, 65504.0, -65504.0, np.inf, -np.inf, np.nan, 1 / 3, 2049.0]
NUMBERS = [0.0, -0.0, 1, -1 / 3, 1e-40, 1e30, -np.inf, np.nan, 3.4028234663852886e38, 2**24 + 1]
FORMATS = [
    {"fmt": "fp16", "accumulate": "fp16"},
    {"fmt": "bf16", "accumulate": "fp32"},
    {"fmt": "e4m3fn", "accumulate": "fp32"},
    {"fmt": "fp16", "accumulate": "fp16", "granularity": "primitive"},
    {"fmt": "fp16", "accumulate": "fp16", "rounding": "stochastic", "seed": 3},
    {"fmt": "fp16", "accumulate": "fp16", "rounding": "toward-zero"},
    {"fmt": "int8", "accumulate": "fp32"},
]


def takes_a_number(op):
    return op._overloadname == "Scalar" or "clamp_" in op._schema.name


def makers(seed):
    """What makes operands, each anew and each with all special values: small, large, transposed, without dimensions, empty."""

    @functools.cache
    def fixed(*shape):
        generator = np.random.default_rng(seed)
        flat = generator.standard_normal(int(np.prod(shape))) * 2.0 ** generator.integers(-20, 14, int(np.prod(shape)))
        flat[: len(SPECIALS)] = SPECIALS[: flat.size]
        return torch.from_numpy(generator.permutation(flat).astype(np.float32).reshape(shape))

    def values(*shape):
        return fixed(*shape).clone()

    return {
        "small": lambda: values(5, 8),
        "large": lambda: values(130, 40),
        "transposed": lambda: values(8, 5).t(),
        "no dimensions": lambda: values(1)[0],
        "row": lambda: values(8),
        "every other": lambda: values(10, 8)[::2],
        "empty": lambda: values(0, 8),
    }


def pairs(op, numbers):
    """First operands of every shape beside what may come second: the same shape, ones that broadcast, one that does not."""
    firsts, seconds, thirds = makers(7), makers(8), makers(9)
    if len(op._schema.arguments) == 1:
        return [(first, None) for first in firsts.values()]
    name = name_of(op).rstrip("_")
    if name in ("addcmul", "addcdiv"):
        alike = [(firsts[shape], (seconds[shape], thirds[shape])) for shape in firsts]
        broadcast = [(firsts["row"], (seconds["small"], thirds["row"])), (firsts["small"], (seconds["large"], thirds["row"]))]
        return [*alike, *broadcast]
    if name in ("clamp", "hardtanh"):
        bounds = [(-0.1, 2049.0), (1.0, -1.0), (-np.inf, 1e30), (np.nan, 1.0), (-0.0, 3)]
        return list(itertools.product(firsts.values(), [*bounds, (None, 0.1), (0.1, None)] if name == "clamp" else bounds))
    if takes_a_number(op):
        return list(itertools.product(firsts.values(), numbers))
    beside = [("small", "transposed"), ("small", "row"), ("row", "small"), ("large", "no dimensions"), ("small", "large")]
    return [(firsts[one], seconds[two]) for one, two in [*zip(firsts, firsts, strict=True), *beside]]


def outcomes(kind, op, cases, short, wrap=None):
    """(what each call gives: bits, counts, draws, or the kind of its error; how often the short way was taken)."""
    found, called = [], []
    with fpsim.emulate(**kind) as emulation:
        mode = current().machine.mode
        taken = {id(op): lambda *args, **named: called.append(0) or SHORT[id(op)](*args, **named)} if short else {}
        for first, second, keywords in cases:
            mode.short = {}
            a = first() + 0
            a = a if wrap is None else wrap(a)
            seconds = second if isinstance(second, tuple) else () if second is None else (second,)
            b = [item() + 0 if callable(item) else item for item in seconds]
            mode.short = taken
            emulation.reset()
            try:
                with torch.set_grad_enabled(wrap is None):
                    result = op(a, *b, **keywords)
            except (RuntimeError, ArithmeticError) as error:
                found.append(type(error))
                continue
            made = [(item.shape, item.dtype, item.detach().contiguous().numpy().tobytes()) for item in (result, a)]
            counts = {tuple(map(str, where)): row.tolist() for where, row in current().rows().items() if row.any()}
            found.append((made, counts, current().machine.calls))
    return found, len(called)


def text_of(kind):
    return " ".join(map(str, kind.values()))


@pytest.mark.parametrize("kind", often(FORMATS, [FORMATS[place] for place in (0, 3, 4)]), ids=text_of)
@pytest.mark.parametrize("op", OPS, ids=str)
def test_the_short_way_gives_what_the_rule_gives(op, kind):
    factor = {"add": "alpha", "sub": "alpha", "addcmul": "value", "addcdiv": "value"}.get(name_of(op).rstrip("_"))
    keywords = [{}] if factor is None else [{}, {factor: 2}, {factor: -1 / 3}]
    cases = [(*pair, named) for pair, named in itertools.product(pairs(op, NUMBERS), keywords)]
    plain, _ = outcomes(kind, op, cases, short=False)
    short, taken = outcomes(kind, op, cases, short=True)
    assert short == plain
    assert taken or kind["fmt"] == "int8"


@pytest.mark.parametrize("op", OPS, ids=str)
@pytest.mark.parametrize("kind", FORMATS[:2], ids=text_of)
def test_changes_of_parameters_are_counted_the_same(op, kind):
    cases = [(*pair, {}) for pair in pairs(op, [0.999, 1.0, 2])]
    plain, _ = outcomes(kind, op, cases, False, torch.nn.Parameter)
    short, _ = outcomes(kind, op, cases, True, torch.nn.Parameter)
    assert short == plain


def test_zeros_of_both_signs_are_two_numbers():
    with fpsim.emulate(fmt="fp16", accumulate="fp16"):
        one = torch.ones(3)
        for sign in (0.0, -0.0, 0.0):
            assert torch.signbit(one * sign).all() == bool(np.signbit(sign))


def test_a_rule_of_ones_own_is_asked_first():
    op = torch.ops.aten.mul.Tensor
    entry, short = TABLE[op], SHORT[id(op)]
    fpsim.emulation.unregister(op)
    try:
        fpsim.emulation.register(op)(lambda machine, a, b: machine.finish(torch.full_like(a, 42.0)))
        with fpsim.emulate(fmt="fp16", accumulate="fp16"):
            assert (torch.ones(3) * torch.ones(3)).tolist() == [42.0] * 3
    finally:
        fpsim.emulation.unregister(op)
        fpsim.emulation.register(op, family=entry.family)(entry.rule)
        SHORT[id(op)] = short
