"""Observers are told of every operation; what they are told is checked against torch in float64 and NumPy's float16."""

import copy
import threading
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from fpsim.emulation import TABLE, Observer, observer_named
from fpsim.emulation.observers.observer import OBSERVERS


class Told(Observer):
    """Writes down what it is told."""

    keeps_operands = True

    def __init__(self, keep=lambda call: None):
        self.calls, self.kept, self.steps, self.open = [], [], [], 0
        self.keep = keep

    def before(self, call):
        assert call.result is None
        self.open += 1

    def after(self, call):
        self.open -= 1
        self.calls.append((call.module, call.phase, call.step, call.name))
        self.kept.append(self.keep(call))

    def after_step(self, step):
        self.steps.append(step)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Dropout(0.5), nn.Linear(32, 3))


def train(sim, steps=2, optimizer=torch.optim.SGD, seed=3, **how):
    torch.manual_seed(seed)
    opt = optimizer(sim.parameters(), lr=0.1, **how)
    with sim:
        for _ in range(steps):
            opt.zero_grad()
            F.cross_entropy(sim(torch.randn(4, 1, 6, 6)), torch.tensor([0, 1, 2, 0])).backward()
            opt.step()
    return {name: value.clone() for name, value in sim.state_dict().items()}


@pytest.mark.parametrize("fmt", ["bf16", {"*": "fp16", "gradient": "bf16"}, "native"], ids=str)
@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_observed_training_is_the_same_to_the_bit(fmt, granularity):
    rounding = {} if fmt == "native" else {"rounding": "stochastic", "seed": 5}
    states = []
    for observe in (None, Told(lambda call: call.exact())):
        sim = fpsim.run(network(), fmt, accumulate="fp16", granularity=granularity, observe=observe, **rounding)
        states.append(train(sim))
    assert observe.calls and observe.open == 0
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


FORWARD = [
    ("0", "convolution"), ("1", "add_.Tensor"), ("1", "native_batch_norm"), ("2", "relu"), ("4", "bernoulli_.float"),
    ("4", "div_.Scalar"), ("4", "mul.Tensor"), ("5", "addmm"), ("", "_log_softmax"), ("", "nll_loss_forward"),
    ("", "ones_like"),
]  # fmt: skip
BACKWARD = [
    ("", "nll_loss_backward"), ("", "_log_softmax_backward_data"), ("5", "mm"), ("5", "mm"), ("5", "sum.dim_IntList"),
    ("4", "mul.Tensor"), ("2", "threshold_backward"), ("1", "native_batch_norm_backward"), ("0", "convolution_backward"),
]  # fmt: skip


@pytest.mark.parametrize("foreach", [False, True], ids=["loop", "foreach"])
def test_every_operation_is_told_once_with_its_place_pass_and_step(foreach):
    told = Told()
    train(fpsim.run(network(), "fp16", observe=told), foreach=foreach)
    assert told.steps == [0, 1]
    updates = [("", "_foreach_add_.List")] if foreach else [(module, "add_.Tensor") for module in "001155"]
    for step in (0, 1):
        rows = [(phase, module, name) for module, phase, n, name in told.calls if n == step]
        assert [row[1:] for row in rows if row[0] == "forward"] == [("", "randn"), *FORWARD]
        assert [row[1:] for row in rows if row[0] == "backward" and row[2] != "add.Tensor"] == BACKWARD
        assert [row[1:] for row in rows if row[0] == "optimizer"] == updates


def test_results_are_the_exact_ones_rounded_once():
    """NumPy's float16 rounds; torch in float64 computes, on the operands as they were before they were overwritten."""
    checked = Counter()

    def keep(call):
        exact = call.exact()
        if exact is None or call.family in ("matmul", "convolution", "reduction", "normalization", "loss"):
            return  # which round inside, or keep wide results
        if any(type(value) is float for value in (*call.args, *call.kwargs.values())):
            return  # an operation with a Python number is computed in fp32
        for result, wide in zip(call.results, exact, strict=True):
            assert call.format_of(result).name == "fp16"
            if result.numel() > 1:  # a step count means itself
                assert wide.dtype is torch.float64
                expected = torch.from_numpy(wide.numpy().astype(np.float16).astype(np.float32))
                assert torch.equal(result, expected), call.name
                checked[call.name] += 1

    with np.errstate(over="ignore"):
        train(fpsim.run(network(), "fp16", observe=Told(keep)), optimizer=torch.optim.Adam, foreach=False, eps=1e-3)
    assert {"relu", "mul.Tensor", "threshold_backward", "_log_softmax", "sqrt"} <= checked.keys()


def test_an_operand_from_outside_is_told_as_it_was_read():
    third = torch.full((2,), 1 / 3)
    told = Told(lambda call: [operand.tolist() for operand in call.operands])
    with fpsim.emulate("bf16", observe=told):
        third.add_(third)
    assert told.kept == [[[0.333984375] * 2] * 2] and third.tolist() == [0.66796875] * 2


def test_parts_of_an_operation_are_told_before_it():
    x, told = torch.ones(2, 3), Told(lambda call: (call.name, call.outer and call.outer.name, call.is_composed))
    with fpsim.emulate("fp16", granularity="primitive", observe=told):
        F.softmax(x, dim=1)
    *parts, whole = told.kept
    assert whole == ("_softmax", None, True) and {part[1:] for part in parts} == {("_softmax", False)} and len(parts) > 2


def test_without_observers_dispatch_is_the_plain_one():
    plain, told = fpsim.emulation.dispatch.mode.EmulationMode, Told()
    sim = fpsim.run(nn.Linear(2, 2), "fp16")
    x = torch.ones(1, 2)
    with sim:
        mode = sim._emulation.machine.mode
        assert type(mode) is plain
        sim.observe(told)
        sim(x)
        sim.unobserve(told)
        assert type(mode) is plain
        sim(x)
    assert len(told.calls) == 1
    with pytest.raises(ValueError, match="Told does not observe here"):
        sim.unobserve(told)


def test_names():
    with pytest.raises(TypeError, match="derived from fpsim"):
        observer_named("number")(int)
    observer_named("told")(Told)
    try:
        with pytest.raises(ValueError, match="an observer 'told' exists already"):
            observer_named("told")(Told)
        sim = fpsim.run(nn.Linear(1, 1), observe=["told", Told()])
        assert [type(item) for item in sim._emulation.observers] == [Told, Told]
        assert copy.deepcopy(sim)._emulation.observers == ()
    finally:
        del OBSERVERS["told"]
    with pytest.raises(ValueError, match="nothing can be observed under fmt=fp32, accumulate=native"):
        fpsim.run(nn.Linear(1, 1), "fp32", accumulate="native", observe=Told())
    for wrong, error in (("tolled", ValueError), (Told, TypeError), (3, TypeError), ([[3]], TypeError)):
        with pytest.raises(error, match="observe"), fpsim.emulate(observe=wrong):
            raise AssertionError
        with pytest.raises(error, match="observe"):
            fpsim.run(nn.Linear(1, 1), observe=wrong)


def test_what_an_observer_computes_is_torchs_own():
    seen = []

    class Computing(Observer):
        def after(self, call):
            seen.append((torch.tensor(1.0) + 2.0**-20).item())

    with fpsim.emulate("bf16", observe=Computing()):
        torch.ones(2).relu()
    assert seen == [1 + 2.0**-20] * 2


def test_threads_tell_the_same_observer():
    told = Told()
    sim = fpsim.run(nn.Linear(2, 2), "fp16", observe=told)
    threads = [threading.Thread(target=sim, args=(torch.ones(1, 2),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [call[3] for call in told.calls] == ["addmm", "addmm"]


def test_an_operation_that_raises_is_not_told_after():
    told = Told()
    with fpsim.emulate("fp16", observe=told):
        with pytest.raises(RuntimeError, match="shapes"):
            torch.mm(torch.ones(2, 3), torch.ones(2, 3))
        torch.mm(torch.ones(2, 3), torch.ones(3, 2))
    assert [call[3] for call in told.calls if call[3] != "ones"] == ["mm"]


def test_views_are_not_told():
    audience = fpsim.emulation.dispatch.observing.Audience((Told(),))
    assert all(TABLE[op].family != "view" for op in TABLE if audience[op])


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_swamping_misses_no_addition_of_an_operation_that_it_is_not_told_of(granularity):
    """An observer that is told of every operation, and of all that happens in its sums, sees the same additions."""

    class Everything(Observer):
        looks_into_sums = True

        def __init__(self):
            self.seen = Counter()

        def after(self, call):
            if not call.is_composed and call.sums.additions:
                self.seen[call.module, call.name, call.phase] += np.array([call.sums.additions, call.sums.swamped])

    found = []
    for observe in (everything := Everything(), "swamping"):
        torch.manual_seed(0)
        model = nn.Sequential(network(), nn.Softmax(1), nn.LayerNorm(3), nn.GELU())
        sim = fpsim.run(model, "fp16", accumulate="bf16", granularity=granularity, observe=observe)
        train(sim, optimizer=torch.optim.AdamW, eps=1e-3)
        rows = ((row.module, row.operation, row.phase, row.counts.additions, row.counts.swamped) for row in sim.report().rows)
        found.append({row[:3]: row[3:] for row in rows if row[3]})
    assert found[0] == {}
    assert found[1] == {key: tuple(map(int, counts)) for key, counts in everything.seen.items()}
