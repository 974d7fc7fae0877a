"""The first event names the fault: ten planted ones, and what is no fault."""

import gc
import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation.errors import NonFinite
from fpsim.emulation.observers.events import Events
from fpsim.emulation.observers.observer import get_observers
from fpsim.emulation.observers.timeline import said_of
from tests.planted_faults import FAULTS

CASES = [pytest.param(fault, fmt, id=f"{name}-{fmt}") for name, fault in FAULTS.items() for fmt in fault.formats]


@pytest.mark.parametrize(("fault", "fmt"), CASES)
def test_the_first_event_names_the_planted_fault(fault, fmt):
    report = fault.run(fmt).report()
    first = report.first
    found = (first.kind, first.module, first.operation, first.phase, first.step)
    assert found == (fault.kind, fault.module, fault.operation, fault.phase, fault.step), said_of(first)
    for text in fault.says:
        assert text in first.text, (text, first.text)
    assert first.place.file == fault.run.__code__.co_filename
    assert first.format == fpsim.get_format(fmt).name and first.count > 0
    assert [link.module for link in first.chain][-2:-1] == [*fault.chain][-1:] or not fault.chain


def test_an_overflow_says_its_operands_exact_and_rounded_result():
    x = torch.tensor([1.0, 300.0, 2.0])
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        y = x * x
        (y + 1).sum()
    first, passed = list(events.events.values())[:2]
    assert first.operands == (("self", 300.0), ("other", 300.0)) and first.index == (1,)
    assert (first.exact, first.rounded, first.count, first.elements) == (90000.0, math.inf, 1, 3)
    assert first.place.text == "y = x * x"
    assert passed.kind == "passed-on" and passed.place.text == "(y + 1).sum()"
    assert [link.operation for link in passed.chain][-2:] == ["mul.Tensor", "add.Tensor"]
    assert "made here" in passed.chain[-2].note


def test_a_backward_pass_is_placed_at_the_line_of_its_forward_call():
    events = Events()
    w = torch.nn.Parameter(torch.tensor([200.0]))
    with fpsim.emulate("fp16", observe=events):
        a = w * 2.0**-10
        b = (a * 2.0**15).tanh()
        c = b * 0
        (c + a * 2.0**10).sum().mul(2.0**7).backward()
    first = next(iter(events.events.values()))
    assert (first.kind, first.phase) == ("overflow", "backward")
    assert first.place.text == "(c + a * 2.0**10).sum().mul(2.0**7).backward()"


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        twice = ctx.saved_tensors[0] * 2
        return twice * gradient * 1e5


def scaled(gradient):
    return gradient * 1e6


@pytest.mark.parametrize("has_hook", [False, True])
def test_what_the_user_has_autograd_run_is_placed_at_its_own_line(has_hook):
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        x = torch.nn.Parameter(torch.ones(2))
        if has_hook:
            x.register_hook(scaled)
        (x * 1.5 if has_hook else Squared.apply(x * 1.5)).sum().backward()
    first = next(iter(events.events.values()))
    assert (first.kind, first.phase) == ("overflow", "backward")
    assert first.place.text == ("return gradient * 1e6" if has_hook else "return twice * gradient * 1e5")


@pytest.mark.parametrize(
    ("fmt", "value", "kind", "rounded", "limit"),
    [
        ("fp16", 1e5, "overflow", math.inf, "(the largest number of fp16 is 65504)"),
        ("e4m3", -300.0, "overflow", -math.inf, "(the largest number of float8_e4m3 is 240)"),
        ("e4m3fn", 500.0, "overflow", math.nan, "(the largest number of float8_e4m3fn is 448)"),
        ("fixed(8,4)", -9.0, "overflow", -8.0, "(the least number of fixed(8,4) is -8)"),
        ("fp16", 1e-8, "underflow", 0.0, "(the smallest number of fp16 is 5.96046e-08)"),
        ("e5m2", -1e-6, "underflow", -0.0, "(the smallest number of float8_e5m2 is 1.52588e-05)"),
    ],
)
def test_a_weight_that_the_format_does_not_hold_is_the_first_event(fmt, value, kind, rounded, limit):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    nn.init.constant_(model[1].weight, value)
    sim = fpsim.run(model, fmt, observe="events")
    first = next(iter(sim.report().events))
    assert (first.kind, first.module, first.operation, first.step) == (kind, "1", "run", 0)
    assert first.place.text.startswith("sim = fpsim.run(model") and first.count == first.elements == 4
    assert first.exact == np.float32(value) and np.array_equal(first.rounded, rounded, equal_nan=True)
    assert dict(first.operands).keys() == {"1.weight[0, 0]"}
    assert limit in first.text
    if not math.isfinite(rounded):
        with pytest.raises(NonFinite, match=r"4 of 4 elements of 1\.weight, when the model was rounded"):
            fpsim.run(model, fmt, on_nonfinite="raise")


def test_weights_that_a_format_holds_are_no_event():
    largest = torch.finfo(torch.float32).max  # stands for the format's own
    model = nn.ParameterList([torch.tensor([65504.0, 1e-8]), torch.zeros(2), torch.tensor([math.inf, largest])])
    assert fpsim.run(model, "fp16", observe="events").report().events == ()


def test_a_gradient_that_overflows_where_it_is_stored_is_of_its_parameters_module():
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1, bias=False))
    nn.init.zeros_(model[0].bias)
    nn.init.ones_(model[1].weight)
    sim = fpsim.run(model, "fp16", observe="events")
    with sim:
        for _ in range(2):
            sim(torch.zeros(1, 1)).backward(torch.full((1, 1), 40000.0))
    first = sim.report().first
    assert (first.kind, first.module, first.operation, first.phase) == ("overflow", "0", "add_.Tensor", "backward")
    assert "1 of 1 elements of the gradient of 0.bias;" in first.text and first.exact == 80000.0


def test_deliberate_infinities_are_no_event():
    mask = torch.tensor([[False, True], [False, False]])
    outside = torch.tensor([[0.0, -math.inf], [0.0, 0.0]])
    large = torch.tensor([[0.0, -1e9], [0.0, 0.0]])
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        scores = torch.ones(2, 2).masked_fill(mask, -math.inf)
        torch.softmax(scores + outside, dim=1)
        torch.softmax(scores + large, dim=1)
        torch.softmax(torch.ones(2, 2) + (1.0 - (~mask).float()) * -1e9, dim=1)
        torch.full((2,), math.inf)
        best = torch.full((2,), -math.inf)
        torch.maximum(best, torch.ones(2))
    assert not events.events


@pytest.mark.parametrize(("mask", "number"), [([0.0, 0.0], -1e9), ([1.0, 0.0], 1e9)])
def test_a_mask_of_infinities_that_leads_to_something_is_told_of(mask, number):
    """All of a row, and infinities above."""
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        torch.softmax((1.0 - torch.tensor(mask)) * number, dim=0)
    first = next(iter(events.events.values()))
    assert (first.kind, first.operation, first.exact) == ("overflow", "mul.Tensor", number)


def test_of_infinities_that_came_in_only_the_nan_was_made_here():
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        scores = torch.ones(4).masked_fill(torch.tensor([True, False, True, False]), -math.inf)
        scores - torch.tensor([0.0, 0.0, -math.inf, 0.0])
    (first,) = events.events.values()
    assert (first.kind, first.index, first.count) == ("nonfinite", (2,), 1) and math.isnan(first.rounded)
    assert dict(first.operands) == {"self": -math.inf, "other": -math.inf}


def test_numbers_from_outside_that_are_not_finite_are_passed_on():
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        torch.tensor([1.0, math.nan]) * 2
    (first,) = events.events.values()
    assert first.kind == "passed-on"


OUTSIDE = torch.tensor([1.0, 1e6])
READ = {
    "its result is infinite": (lambda: OUTSIDE * 2, "self"),
    "its result is finite": (lambda: torch.clamp(OUTSIDE, max=3.0), "self"),
    "its result is no number": (lambda: OUTSIDE > 3.0, "self"),
    "one of a list": (lambda: torch.stack([torch.ones(2), OUTSIDE]), "tensors[1]"),
    "a keyword": (lambda: torch.ops.aten.mul.Tensor(torch.ones(2), other=OUTSIDE), "other"),
}


@pytest.mark.parametrize(("fmt", "rounded"), [("fp16", math.inf), ("e4m3fn", math.nan), ("fixed(8,4)", 7.9375)])
@pytest.mark.parametrize("case", READ)
def test_an_overflow_where_an_operand_from_outside_is_read_names_it_and_its_number(case, fmt, rounded):
    compute, name = READ[case]
    events = Events()
    with fpsim.emulate(fmt, observe=events):
        compute()
    first = next(iter(events.events.values()))
    assert (first.kind, first.index, first.operands, first.exact) == ("overflow", (1,), ((f"{name}[1]", 1e6),), 1e6)
    assert np.array_equal(first.rounded, rounded, equal_nan=True)
    assert f"1 of 2 elements of {name}, which came from outside" in first.text
    stops = nullcontext() if math.isfinite(rounded) else pytest.raises(NonFinite)
    with stops, fpsim.emulate(fmt, on_nonfinite="raise"):
        compute()


@pytest.mark.parametrize(("fmt", "rounded"), [("fp16", math.inf), ("e4m3fn", math.nan)])
def test_of_many_results_that_which_overflowed_is_explained(fmt, rounded):
    events = Events()
    with fpsim.emulate(fmt, observe=events):
        torch._foreach_mul([torch.ones(2), torch.full((2,), 256.0), torch.ones(3)], 256.0)
    (first,) = events.events.values()
    assert (first.kind, first.exact, first.count, first.elements) == ("overflow", 65536.0, 2, 2)
    assert np.array_equal(first.rounded, rounded, equal_nan=True)


def test_what_underflowed_where_it_was_read_is_told_beside_what_it_led_to():
    events = Events()
    with fpsim.emulate("fp16", observe=events):
        torch.log(torch.tensor([1e-9, 1.0])).sum()
    first = next(iter(events.events.values()))
    assert first.kind == "nonfinite" and dict(first.operands) == {"self from outside": float(np.float32(1e-9)), "self": 0.0}


@pytest.mark.filterwarnings("error::FutureWarning")
def test_on_nonfinite():
    def run(action):
        sim = fpsim.run(nn.Linear(2, 2), "fp16", on_nonfinite=action)
        with sim:
            sim(torch.full((1, 2), 6e4)).mul(1e3).mul(2)
        return sim

    with pytest.raises(NonFinite, match=r"became -?inf in fp16") as caught:
        run("raise")
    assert "behind it, the cause first:" in str(caught.value) and "addmm" in str(caught.value)
    assert "outside =" not in str(caught.value)
    with pytest.warns(UserWarning, match="became -?inf in fp16") as told:
        run("warn")
    assert [warning.filename for warning in told] == [__file__]
    with pytest.raises(ValueError, match="on_nonfinite is"):
        run("stop")
    with pytest.warns(UserWarning, match="nan"), fpsim.emulate("fp16", on_nonfinite="warn"):
        torch.zeros(1) / torch.zeros(1)


def test_a_healthy_training_has_no_events():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    sim = fpsim.run(model, "fp16", observe="events")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9)
    with sim:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(sim(torch.randn(8, 8)), torch.arange(8) % 3).backward()
            optimizer.step()
    assert sim.report().events == ()


@pytest.mark.parametrize("implementation", ["foreach", "fused"])
def test_optimizers_on_lists_are_explained_by_the_parameter(implementation):
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    sim = fpsim.run(model, "fp16", observe="events")
    optimizer = torch.optim.Adam(sim.parameters(), eps=0.0, betas=(0.5, 0.5), **{implementation: True})
    with sim:
        for layer in sim:
            layer.weight.grad = torch.ones_like(layer.weight)
        sim[1].weight.grad[0, 1] = 0.0
        optimizer.step()
    first = sim.report().first
    name = {"foreach": "_foreach_addcdiv_", "fused": "_fused_adam_"}[implementation]
    assert (first.kind, first.module, first.phase, first.index) == ("nonfinite", "1", "optimizer", (0, 1))
    assert first.operation.startswith(name) and "1 of 2 elements of 1.weight" in first.text and math.isnan(first.rounded)
    assert 0.0 in dict(first.operands).values()


def test_a_weight_of_which_hardly_an_element_moves_has_stopped():
    weight = torch.nn.Parameter(torch.cat([torch.ones(63), torch.zeros(1)]))
    sim = fpsim.run(nn.ParameterList([weight]), "bf16", observe="events")
    optimizer = torch.optim.SGD(sim.parameters(), lr=2.0**-12)
    with sim:
        sim[0].grad = torch.ones(64)
        optimizer.step()
    first = sim.report().first
    assert (first.kind, first.operation, first.count) == ("stopped", "add_.Tensor", 63)
    assert "1 elements changed, and a step was meant to change 64 of 64" in first.text


def test_events_are_bounded():
    events = Events(most=3)
    with fpsim.emulate("fp16", observe=events):
        for name in ("exp", "square", "reciprocal", "log", "cosh"):
            getattr(torch, name)(torch.tensor([-1e4, 0.0]))
    assert len(events.events) == 3


def test_saturating_formats_overflow_to_their_largest_number():
    events = Events()
    with fpsim.emulate(fpsim.get_format("e4m3fn").replace(name="saturating", saturate=True), observe=events):
        x = torch.tensor([30.0, 1.0])
        x * x
    (first,) = events.events.values()
    assert (first.kind, first.exact, first.rounded, first.index) == ("overflow", 900.0, 448.0, (0,))
    assert np.isfinite(first.rounded)


class Lookahead(torch.optim.Optimizer):
    """Has another optimizer step."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.param_groups, inner.defaults)

    def step(self, closure=None):
        self.inner.step()


AROUND = {
    "none": (lambda sgd: sgd, 2.0**-12, ["add_.Tensor"]),
    "of somebody's": (Lookahead, 2.0**-12, ["Lookahead(SGD)"]),
    "its change kept in a compensation": (fpsim.optim.Kahan, 2.0**-12, []),
    "its change below the smallest number": (fpsim.optim.Kahan, 2.0**-140, ["Kahan(SGD)"]),
    "its change drawn": (lambda sgd: fpsim.optim.Stochastic(sgd, seed=0), 2.0**-30, []),
}


@pytest.mark.parametrize("case", AROUND)
def test_a_weight_has_stopped_where_nothing_keeps_its_change_and_the_optimizer_is_named(case):
    wrap, rate, operations = AROUND[case]
    sim = fpsim.run(nn.Linear(4, 4, bias=False), "bf16", observe="events", inplace=True)
    nn.init.ones_(sim.weight)
    sim.reset_report()
    optimizer = wrap(torch.optim.SGD(sim.parameters(), lr=rate))
    with sim:
        sim.weight.grad = torch.ones(4, 4)
        optimizer.step()
    report = sim.report()
    assert (report.total.updates, report.total.lost) == (16, 16)
    assert [event.operation for event in report.events] == operations
    for event in report.events:
        assert (event.kind, event.module, event.count) == ("stopped", "Linear", 16) and "weight stays" in event.text
        assert any((row.module, row.operation, row.counts.lost) == ("Linear", event.operation, 16) for row in report.rows)


@pytest.mark.parametrize("wrap", [lambda adam: adam, fpsim.optim.Kahan])
def test_a_decay_is_lost_unless_the_optimizer_adds_it_to_the_step(wrap):
    sim = fpsim.run(nn.Linear(4, 4, bias=False), "bf16", observe="events", inplace=True)
    nn.init.ones_(sim.weight)
    optimizer = wrap(torch.optim.AdamW(sim.parameters(), lr=2.0**-5, weight_decay=2.0**-6))
    with sim:
        sim.weight.grad = torch.ones(4, 4)
        optimizer.step()
    assert [event.kind for event in sim.report().events] == (["decay-lost"] if isinstance(optimizer, torch.optim.AdamW) else [])


def test_by_drawn_rounding_a_step_that_does_not_show_had_its_chance():
    sim = fpsim.run(nn.Linear(4, 4, bias=False), "bf16", observe="events", rounding="stochastic", seed=0, inplace=True)
    nn.init.ones_(sim.weight)
    optimizer = torch.optim.SGD(sim.parameters(), lr=2.0**-30)
    with sim:
        sim.weight.grad = torch.ones(4, 4)
        optimizer.step()
    assert sim.report().total.lost == 16 and sim.report().events == ()


class Keys(nn.Module):
    """Attention, which a constant added to every key leaves as it is."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


WITHOUT_A_GRADIENT = {
    "linear before batch norm": (lambda: nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16)), (32, 8), "0.bias"),
    "convolution before batch norm": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), (16, 3, 8, 8), "0.bias"),
    "keys of attention": (Keys, (8, 5, 8), "key.bias"),
}


WIDE_WEIGHTS = {"*": "bf16", "weight": "fp32", "optimizer": "fp32"}


@pytest.mark.parametrize(("fmt", "rate"), [("fp16", 2.0**-10), ("bf16", 2.0**-10), (WIDE_WEIGHTS, 2.0**-26)])
@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("case", WITHOUT_A_GRADIENT)
def test_a_bias_whose_gradient_is_rounding_errors_alone_has_not_stopped(case, fmt, rate, granularity):
    make, shape, name = WITHOUT_A_GRADIENT[case]
    torch.manual_seed(0)
    sim = fpsim.run(make(), fmt, observe="events", granularity=granularity)
    optimizer = torch.optim.SGD(sim.parameters(), lr=rate)
    with sim:
        for _ in range(3):
            optimizer.zero_grad()
            sim(torch.randn(shape)).square().sum(-1).sin().mean().backward()
            optimizer.step()
    report = sim.report()
    assert report.total.lost > 0 and not [event.text for event in report.events if f"{name} stays" in event.text]


POLES = {
    "nobody uses it": (lambda x: torch.where(x > 0, (x.log() / 2.0).clamp(min=-8.0), 0.0).sum(), []),
    "as an integer": (lambda x: (x.log() * 4.0).long().clamp(min=0).float().sum(), []),
    "it is the mask of a softmax": (lambda x: torch.softmax(x.log(), 0)[1], []),
    "it meets a zero": (lambda x: ((x.log() * x) + 1.0).exp(), ["nonfinite", "passed-on"]),
    "it is in the loss": (lambda x: (x.log() * 0.5).mean(), ["nonfinite", "passed-on"]),
}


@pytest.mark.parametrize("case", POLES)
def test_an_infinity_that_is_exact_is_told_of_when_it_leads_to_something(case):
    compute, kinds = POLES[case]
    events = Events()
    with fpsim.emulate("fp16", observe=events) as emulation:
        compute(torch.arange(3).float())
    assert [event.kind for event in events.events.values()] == kinds
    assert emulation.report().verdict.word == ("breaks" if kinds else "survives")
    for first in list(events.events.values())[:1]:
        assert (first.operation, first.exact, first.rounded, first.index) == ("log", -math.inf, -math.inf, (0,))
    with pytest.raises(NonFinite, match="log") if kinds else nullcontext(), fpsim.emulate("fp16", on_nonfinite="raise"):
        compute(torch.arange(3).float())


def test_a_gradient_or_parameter_that_is_infinite_is_told_of_at_once():
    sim = fpsim.run(nn.ParameterList([nn.Parameter(torch.tensor([0.0, 1.0]))]), "fp16", observe="events")
    with sim:
        sim[0].sqrt().sum().backward()
    first = sim.report().first
    assert (first.kind, first.phase, first.exact) == ("nonfinite", "backward", math.inf)


AT_POLES = {
    "log": (lambda x: x.log(), [0.0, 1.0]),
    "a power": (lambda x: x**-1.5, [0.0, 2.0]),
    "atanh": (lambda x: x.atanh(), [0.5, -1.0]),
    "digamma": (lambda x: x.digamma(), [0.0, 1.0]),
    "a quotient by a number": (lambda x: x / 0.0, [1.0, 2.0]),
    "a quotient in a sum": (lambda x: torch.addcdiv(x, x, torch.zeros(2)), [1.0, 2.0]),
}


@pytest.mark.parametrize("case", AT_POLES)
def test_a_pole_is_told_of_when_it_leads_to_something(case):
    """An infinity that is exact may be for nobody to use; what is beyond the range of float64 even is an overflow."""
    compute, numbers = AT_POLES[case]
    events = Events()
    with fpsim.emulate("bf16", observe=events):
        y = compute(torch.tensor(numbers))
        assert bool(y.isinf().any()) and not events.events
        y.sum()
    first = next(iter(events.events.values()))
    assert first.kind == "nonfinite" and math.isinf(first.exact)
    events = Events()
    with fpsim.emulate("bf16", observe=events):
        torch.exp(torch.tensor([1000.0, 1.0])), torch.tensor([1e30, 1.0]) ** 20
    assert [event.kind for event in events.events.values()] == ["overflow", "overflow"]


@pytest.mark.parametrize("layer", [nn.Conv2d(1, 2, 1), nn.ConvTranspose2d(1, 2, 1), nn.Conv1d(1, 2, 1)])
def test_of_a_convolutions_gradients_that_which_was_swamped_is_explained(layer):
    sim = fpsim.run(layer, "fp16", accumulate="fp16", observe="events")
    batch = torch.zeros(4096, 1, 1) if isinstance(layer, nn.Conv1d) else torch.zeros(64, 1, 8, 8)
    with sim:
        y = sim(batch)
        y.backward(torch.ones_like(y))
    first = sim.report().first
    assert (first.kind, first.operation, first.phase) == ("swamped", "convolution_backward", "backward")
    assert (first.exact, first.rounded) == (4096.0, 2048.0) and sim.bias.grad.tolist() == [2048.0, 2048.0]


@pytest.mark.parametrize("bag", [False, True])
def test_a_sparse_gradient_whose_entries_of_one_place_are_swamped_is_told_of(bag):
    layer = nn.EmbeddingBag(4, 2, mode="sum", sparse=True) if bag else nn.Embedding(4, 2, sparse=True)
    sim = fpsim.run(nn.Sequential(layer), "fp16", accumulate="fp16", observe=["events", "swamping"])
    words = torch.ones(4096, dtype=torch.long)
    with sim:
        sim(words[:, None] if bag else words).backward(torch.ones(4096, 2))
    report = sim.report()
    assert sim[0].weight.grad.to_dense()[1].tolist() == [2048.0] * 2
    assert (report.first.kind, report.first.module, report.first.phase) == ("swamped", "0", "backward")
    assert (report.first.elements, report.first.count) == (report.total.additions, report.total.swamped) == (2 * 4097, 2 * 2048)


@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.SparseAdam])
@pytest.mark.parametrize("observe", ["range", "histograms", "coverage", "swamping", "events", "shadow"])
def test_sparse_gradients_are_no_hindrance(observe, make):
    """SGD moves by 0.5 for each row that was read; the epsilon of Adam, 1e-8, is 0 in fp16: 0 / 0 where a gradient is 0."""
    sim = fpsim.run(nn.Embedding(4, 2, sparse=True), "fp16", observe=(observer := get_observers(observe)[0]))
    optimizer = make(sim.parameters(), lr=0.5)
    before = sim.weight.detach().double()
    with sim:
        (sim(torch.tensor([1, 1, 2, 3])) * torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]).sum().backward()
        optimizer.step()
    report = sim.report()
    assert report.steps == 1
    assert {row.module for row in report.rows if row.phase == "optimizer"} <= {"Embedding"}
    if make is torch.optim.SparseAdam:
        found = {(event.kind, event.module, event.phase) for event in report.events}
        assert observe != "events" or ("nonfinite", "Embedding", "optimizer") in found
    elif observe == "shadow":
        moved = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [0.0, 0.0]], dtype=torch.float64)
        assert torch.equal(before - observer.of(sim.weight), moved)


def scaled_training(observe, scale, fused, inputs=1.0, **how):
    torch.manual_seed(0)
    sim = fpsim.run(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), "native", observe=observe, **how)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    with sim:
        for _ in range(6):
            with torch.autocast("cpu", dtype=torch.float16):
                loss = sim(inputs * torch.randn(8, 4)).square().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    return sim.report()


@pytest.mark.parametrize("observe", ["events", "range", None])
@pytest.mark.parametrize("fused", [False, True])
def test_a_scale_that_a_loss_scaler_finds_too_large_breaks_nothing(observe, fused):
    report = scaled_training(observe, 2.0**17, fused)
    assert report.total.nonfinite > 0 and (report.skipped, report.steps) == (2, 6 if fused else 4)
    assert report.verdict.word == "survives" and "; a loss scaler skipped 2 steps" in report.verdict.sentence
    assert {event.kind for event in report.events} == ({"skipped", "passed-on"} if observe == "events" else set())
    assert all(event.text.startswith("a scaled gradient was infinite") for event in report.events if event.kind == "skipped")
    assert scaled_training(observe, 2.0**24, fused).verdict.word == "degrades"


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scale", [1.0, 2.0**8])
def test_a_scale_leaves_the_errors_against_float64_as_they_are(scale, fused):
    errors = [row.cumulative.relative for row in scaled_training("shadow", scale, fused).rows if row.phase == "forward"]
    assert len(errors) == 7 and max(errors) < 2.0**-8


def test_gradients_are_left_to_a_loss_scaler_and_nothing_else_is():
    assert scaled_training(None, 2.0**17, False, on_nonfinite="raise").skipped == 2
    with pytest.raises(NonFinite, match="forward pass"):
        scaled_training(None, 2.0**4, False, inputs=6e4, on_nonfinite="raise")
    gc.collect()  # the scaler is gone
    sim = fpsim.run(nn.Linear(1, 1).half(), "native", on_nonfinite="raise", inplace=True)
    x = torch.full((1, 1), 600.0, dtype=torch.float16)
    with pytest.raises(NonFinite, match="backward pass"), sim:
        sim(x).backward(torch.full((1, 1), 600.0, dtype=torch.float16))


def test_what_breaks_without_the_scale_or_beside_it_is_told():
    diverging = scaled_training("events", 2.0**4, False, inputs=6e4)
    assert (diverging.first.kind, diverging.first.phase, diverging.skipped) == ("overflow", "forward", 6)
    sim = fpsim.run(nn.Linear(1, 1), "native", observe="events", inplace=True).half()
    with sim:
        sim(torch.ones(1, 1, dtype=torch.float16)).mul(2.0**-10).backward(torch.full((1, 1), 6e4, dtype=torch.float16))
        sim(torch.full((1, 1), 6e4, dtype=torch.float16)).backward(torch.full((1, 1), 6e4, dtype=torch.float16))
    assert sim.report().first.phase == "backward" and sim.report().verdict.word == "breaks"


def test_a_sum_that_is_infinite_swamps_nothing():
    events = Events()
    with fpsim.emulate("fp16", "fp16", observe=events):
        torch.full((4096,), 60000.0).sum()
    assert [event.kind for event in events.events.values()] == ["overflow"]
