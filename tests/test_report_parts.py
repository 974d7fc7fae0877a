"""What a report says of an emulation equals what NumPy counts, one number after the other."""

import gc
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from fpsim.emulation import Observer
from fpsim.emulation.observers import events, lines, origins

ALL = ["range", "histograms", "swamping", "events", "shadow", "coverage"]


class Traced(Observer):
    """Keeps every result, and what it was before it was rounded."""

    keeps_operands = True

    def __init__(self):
        self.results = []

    def after(self, call):
        exact = call.exact()
        for index, tensor in enumerate(call.results):
            if tensor.numel() > 1 or call.phase != "optimizer":  # a step count means itself
                wide = None if exact is None else exact[index].numpy().copy()
                self.results.append((call, (call.module, call.name, call.phase), tensor.numpy().copy(), wide))


class Squares(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(1e-4, 300.0, 12))

    def forward(self, x):
        y = x * self.gain
        return (y * y * y).relu() * x * x


def squared():
    sim = fpsim.run(Squares(), "fp16", observe=["range", "histograms", traced := Traced()])
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.5)
    x = torch.cat([torch.logspace(-4, 2, 6), -torch.logspace(-5, 1, 6)])
    with sim:
        for _ in range(2):
            optimizer.zero_grad()
            sim(x).backward(torch.logspace(-3, 1, 12))
            optimizer.step()
    return sim.report(), traced.results


def test_counts_and_ranges_are_those_of_numpy():
    report, traced = squared()
    assert report.observed == ("counts", "range", "histograms") and report.steps == 2
    rows = {(row.module, row.operation, row.phase): row for row in report.rows}
    counted, extremes = {}, {}
    for call, key, result, exact in traced:
        finite, magnitudes = np.isfinite(result), np.abs(result[np.isfinite(result) & (result != 0)])
        counts = counted.setdefault(key, Counter())
        counts["subnormals"] += int((magnitudes < 2.0**-14).sum())
        counts["nonfinite"] += int((~finite).sum())
        is_copy = call.family in ("exact", "constant")
        if not is_copy and not any(isinstance(value, float) for value in (*call.args, *call.kwargs.values())):
            with np.errstate(over="ignore"):
                rounded = exact.astype(np.float16)
            assert np.array_equal(rounded.astype(np.float32), result, equal_nan=True)
            counts["overflows"] += int((np.isfinite(exact) & np.isinf(rounded)).sum())
            counts["underflows"] += int(((exact != 0) & (rounded == 0)).sum())
        extremes.setdefault(key, []).extend(magnitudes.tolist())
    assert {key[1] for key in counted} >= {"mul.Tensor", "relu", "threshold_backward"}
    for key, counts in counted.items():
        row = rows[key]
        if extremes[key]:
            assert (row.range.largest, row.range.smallest) == (max(extremes[key]), min(extremes[key])), key
        assert row.counts.subnormals == counts["subnormals"], key
        if key[1] == "mul.Tensor":
            for name in ("nonfinite", "overflows", "underflows"):
                assert getattr(row.counts, name) == counts[name], (key, name)
    total = report.total
    assert total.overflows > 0 and total.underflows > 0 and total.subnormals > 0 and 0 < total.made < total.nonfinite


def test_histograms_are_those_of_numpy():
    report, traced = squared()
    expected = {}
    for _, (module, _, phase), result, _ in traced:
        role = {"forward": "activation", "backward": "gradient"}.get(phase)
        if role is not None:
            expected.setdefault((module, role), []).append(result.reshape(-1))
    found = {(item.module, item.role): item.histogram for item in report.distributions}
    (weights,) = [item.histogram for item in report.distributions if item.role == "weight"]
    assert weights.total == 24  # of both steps
    for key, parts in expected.items():
        values = np.concatenate(parts).astype(np.float64)
        histogram = found[key]
        assert (histogram.zeros, histogram.infinite, histogram.nan) == (
            int((values == 0).sum()), int(np.isinf(values).sum()), int(np.isnan(values).sum())
        ), key  # fmt: skip
        exponents = Counter(np.frexp(values[np.isfinite(values) & (values != 0)])[1].tolist())
        seen = {histogram.first + i + 1: count for i, count in enumerate(histogram.counts) if count}
        assert seen == dict(exponents), key


def test_swamped_additions_are_those_of_numpy():
    torch.manual_seed(0)
    model, x = nn.Linear(40, 3, bias=False), torch.randn(2, 40)
    model.weight.data[:, :4] *= 2**9
    sim = fpsim.run(model, "fp16", accumulate="fp16", observe="swamping")
    result = sim(x).detach()
    weight, given = sim.weight.detach().numpy().astype(np.float16), x.numpy().astype(np.float16)
    additions = swamped = 0
    for i in range(2):
        for j in range(3):
            total = np.float16(0)
            for k in range(40):
                leaf = np.float16(given[i, k] * weight[j, k])
                after = np.float16(total + leaf)
                additions += 1
                swamped += leaf != 0 and after == total
                total = after
            assert float(total) == float(result[i, j])
    counts = sim.report().total
    assert (counts.additions, counts.swamped) == (additions, swamped) and swamped > 0


def test_rows_are_in_the_order_of_the_network_and_of_the_passes():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.ReLU()), nn.Linear(4, 2))
    sim = fpsim.run(model, "bf16", observe=ALL)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    with sim:
        F.mse_loss(sim(torch.randn(3, 4)), torch.ones(3, 2)).backward()
        optimizer.step()
    report = sim.report()
    assert [module.path for module in report.modules] == ["Sequential", "0", "1", "1.0", "1.1", "2"]
    assert [module.kind for module in report.modules][2:4] == ["Sequential", "LayerNorm"]
    places = [(row.module, row.phase) for row in report.rows]
    modules = [module for module, _ in dict.fromkeys(places)]
    assert list(dict.fromkeys(modules)) == ["0", "1.0", "1.1", "2", ""]
    assert [phase for module, phase in dict.fromkeys(places) if module == "2"] == ["forward", "backward", "optimizer"]
    (linear,) = [row for row in report.rows if (row.module, row.phase) == ("2", "forward")]
    assert linear.place.text.startswith("F.mse_loss(sim(") and linear.format == "bf16" and linear.local.elements == 6
    assert set(report.observed) == {"counts", "range", "histograms", "events", "swamping", "shadow"}
    assert {item.operation: item.treatment for item in report.coverage}["relu"] == "exact"
    assert report.from_json(report.to_json()) == report


def test_nothing_is_observed_unless_it_is_asked_for():
    sim = fpsim.run(nn.Linear(2, 2), "fp16")
    sim(torch.ones(1, 2))
    (row,) = sim.report().rows
    assert sim.report().observed == ("counts",) and not row.range and row.local is None and not sim.report().events
    assert row.counts.elements == 4  # two that were read from outside, two that were made
    assert (row.phase, row.format) == ("forward", "fp16")


def test_many_steps_do_not_grow_memory(monkeypatch):
    """What is kept is bounded by places and by two numbers, here made small."""
    monkeypatch.setattr(origins, "_KEPT", 64)
    monkeypatch.setattr(lines, "_KEPT", 64)
    sim = fpsim.run(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), "fp16", observe=ALL)
    optimizer = torch.optim.SGD(sim.parameters(), lr=1e-2, momentum=0.9)
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    sizes = []
    for steps in (8, 8, 24):
        for _ in range(steps):
            with sim:
                optimizer.zero_grad()
                sim(x).square().sum().backward()
                optimizer.step()
        gc.collect()
        sizes.append(len(gc.get_objects()))
    assert sizes[2] - sizes[1] < 24, sizes  # less than one object a step


def test_reset_forgets_what_observers_saw():
    sim = fpsim.run(nn.Linear(2, 2), "fp16", observe=ALL)
    sim(torch.full((1, 2), 1e5))
    assert sim.report().events and sim.report().total.overflows
    sim.reset_report()
    report = sim.report()
    assert not report.events and not report.rows and not report.distributions and report.total.elements == 0


def test_every_part_works_in_fixed_point():
    sim = fpsim.run(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "fixed(12,6)", observe=ALL)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.5)
    with sim:
        sim(torch.full((3, 4), 20.0)).sum().backward()
        optimizer.step()
    report = sim.report()
    assert {row.format for row in report.rows} == {item.format for item in report.distributions} == {"fixed(12,6)"}
    (row,) = [row for row in report.rows if (row.module, row.phase) == ("0", "forward")]
    assert row.counts.elements and row.range.largest <= 32 and row.local.elements == 24
    assert "fixed(12,6)" in report.first.text


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("fmt", ["native", {"*": "fp16", "gradient": "bf16"}], ids=["native", "mixed"])
def test_every_part_works_under_every_policy(fmt, granularity):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 2))
    model, dtype = (model.half(), torch.float16) if fmt == "native" else (model, torch.float32)
    sim = fpsim.run(model, fmt, granularity=granularity, observe=ALL)
    optimizer = torch.optim.AdamW(sim.parameters(), lr=0.1, eps=1e-3)
    with sim:
        for _ in range(2):
            optimizer.zero_grad()
            F.mse_loss(sim(torch.randn(3, 4, dtype=dtype)), torch.ones(3, 2, dtype=dtype)).backward()
            optimizer.step()
    report = sim.report()
    formats = {row.format for row in report.rows if row.phase == "backward"}
    assert formats == ({"fp16"} if fmt == "native" else {"bf16"})
    assert all(row.cumulative.relative < 1 for row in report.rows if row.cumulative and row.phase == "forward")
    assert {limits.name for limits in report.limits} == {row.format for row in report.rows}
    assert events.Events in [type(item) for item in sim._emulation.observers]


def by_hand(parameters):
    for parameter in parameters:
        parameter -= 0.5 * parameter.grad


OPTIMIZERS = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, foreach=False),
    "SGD, foreach": lambda parameters: torch.optim.SGD(parameters, lr=0.5, momentum=0.9, foreach=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, eps=1e-3, foreach=False),
    "AdamW, foreach": lambda parameters: torch.optim.AdamW(parameters, eps=1e-3, foreach=True),
    "AdamW, fused": lambda parameters: torch.optim.AdamW(parameters, eps=1e-3, fused=True),
    "Adafactor": lambda parameters: torch.optim.Adafactor(parameters, lr=0.1, eps=(1e-4, 1e-3)),
    "Kahan": lambda parameters: fpsim.optim.Kahan(torch.optim.SGD(parameters, lr=0.5)),
    "Stochastic": lambda parameters: fpsim.optim.Stochastic(torch.optim.SGD(parameters, lr=0.5), seed=0),
    "by hand": lambda parameters: None,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_an_optimizer_computes_is_of_its_parameters_module(name):
    """Modules with as many numbers as one another have rows with as many, one for each: state and what comes of it included."""
    torch.manual_seed(0)
    sim = fpsim.run(nn.Sequential(*(nn.Linear(n, 7 - n, bias=False) for n in (4, 3))), "fp16", observe=ALL)
    optimizer = OPTIMIZERS[name](list(sim.parameters()))
    with sim:
        for _ in range(2):
            sim(torch.randn(5, 4)).square().mean().backward()
            with torch.no_grad():
                by_hand(sim.parameters()) if optimizer is None else optimizer.step()
    report = sim.report()
    found = {"0": [], "1": [], "": []}
    for row in report.rows:
        if row.phase == "optimizer":
            numbers = row.counts.elements, row.counts.updates, row.cumulative and row.cumulative.elements, bool(row.range)
            found[row.module].append((row.operation, *numbers))
    assert found["0"] and sorted(found["0"]) == sorted(found["1"])
    assert {row[0] for row in found[""]} <= {"zeros"}  # of a step count
    for module, layer in (("0", sim[0]), ("1", sim[1])):
        rows = [row for row in report.rows if (row.module, row.phase) == (module, "optimizer")]
        assert max(row.range.largest for row in rows) >= layer.weight.detach().abs().max()
        assert sum(row.counts.updates for row in rows) == 2 * layer.weight.numel()
    assert report.steps == (0 if optimizer is None else 2)


def test_a_step_that_raises_is_not_the_outer_one_of_the_next():
    sim = fpsim.run(nn.Linear(2, 2), "fp16", observe="events")
    broken, working = (torch.optim.SGD(sim.parameters(), lr=0.5) for _ in range(2))
    sim.weight.grad = torch.full((2, 2), 6e4)
    with sim:
        broken.param_groups[0]["lr"] = "none"
        with pytest.raises(TypeError):
            broken.step()
        working.step()
        working.step()
    assert sim.report().steps == 2
