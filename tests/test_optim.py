"""Optimizers that store updates in 16 bits so that small ones are not lost."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.optim import Kahan, MasterCopy, Stochastic, round_to_bfloat16

RECORDED = Path(__file__).parents[2] / "shared" / "golden" / "updates"


def recorded(name):
    path = RECORDED / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"no recorded updates at {path}")
    return np.load(path)


def bfloat16(words):
    return torch.from_numpy(words.view(np.int16).copy()).view(torch.bfloat16)


def bits(tensor):
    return tensor.detach().contiguous().view(torch.int16).numpy().view(np.uint16)


@pytest.mark.parametrize("machine", ["plain", "native", "bf16", "mapping"])
def test_kahan_gives_the_recorded_weights_and_compensations(machine):
    data = recorded("kahan_bf16")
    named = machine in ("bf16", "mapping")
    start = bfloat16(data["w0"])
    weight = nn.Parameter(start.float() if named else start)
    optimizer = Kahan(torch.optim.SGD([weight], lr=1.0))
    how = {"native": "native", "bf16": "bf16", "mapping": {"*": "bf16"}}
    for update, expected, compensation in zip(data["u"], data["w"], data["c"], strict=True):
        weight.grad = -bfloat16(update).to(weight.dtype)
        with fpsim.emulate(how[machine], "fp32") if machine != "plain" else torch.enable_grad():
            optimizer.step()
        kept = optimizer.state[weight]["compensation"]
        np.testing.assert_array_equal(bits(weight.bfloat16()), expected.view(np.uint16))
        np.testing.assert_array_equal(bits(kept.bfloat16()), compensation.view(np.uint16))


@pytest.mark.parametrize("rule", ["add-carry", "less-than"])
def test_rounding_by_sixteen_bits_gives_the_recorded_words(rule):
    data = recorded("stochastic_bf16")
    x = torch.from_numpy(data["x_bits"].view(np.float32).copy())
    random16 = torch.from_numpy(data["rand16"].astype(np.int32))
    found, expected = bits(round_to_bfloat16(x, random16, rule)), data[f"out_{rule.replace('-', '_')}"]
    number = ~np.isnan(data["x_bits"].view(np.float32))
    np.testing.assert_array_equal(found[number], expected[number])
    assert np.isnan(round_to_bfloat16(x, random16, rule).float().numpy()[~number]).all()


def test_what_nearest_stalls_at_the_others_reach():
    """1 + 1000 * 0.001 in bfloat16: nearest 1, stochastic 2 with standard deviation .084, compensated and copied 2."""
    def end(wrap):
        weight = nn.Parameter(torch.ones(400, dtype=torch.bfloat16))
        optimizer = wrap(torch.optim.SGD([weight], lr=1.0))
        weight.grad = torch.full_like(weight, -0.001)
        for _ in range(1000):
            optimizer.step()
        return weight.detach().double()

    step = float(torch.tensor(0.001, dtype=torch.bfloat16))
    assert (end(lambda inner: inner) == 1).all()
    assert (end(Kahan) - (1 + 1000 * step)).abs().max() <= 2**-7
    assert (end(MasterCopy) - (1 + 1000 * step)).abs().max() <= 2**-7
    for rule in ("exact", "add-carry"):
        ends = end(lambda inner, rule=rule: Stochastic(inner, seed=3, rule=rule))
        assert abs(ends.mean() - (1 + 1000 * step)) < 5 * 0.084 / 20
        assert 0.06 < ends.std() < 0.11


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "foreach": False}),
    "fused sgd": (torch.optim.SGD, {"momentum": 0.9, "fused": True}),
    "adam": (torch.optim.Adam, {"amsgrad": True}),
    "adamw": (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": True}),
    "adamw, one by one": (torch.optim.AdamW, {"weight_decay": 0.1, "foreach": False}),
    "adamw, fused": (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
    "nadam": (torch.optim.NAdam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
    "radam": (torch.optim.RAdam, {"weight_decay": 0.1, "foreach": True}),
    "adamax": (torch.optim.Adamax, {}),
    "adagrad": (torch.optim.Adagrad, {}),
    "adadelta": (torch.optim.Adadelta, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5, "centered": True}),
    "rprop": (torch.optim.Rprop, {}),
    "asgd": (torch.optim.ASGD, {}),
    "adafactor": (torch.optim.Adafactor, {}),
    "muon": (torch.optim.Muon, {}),
}


class Plainly(fpsim.optim.wrapping.WrappedOptimizer):
    """Stores the exact sum to nearest."""

    def stored(self, index, parameter, start, change):
        return start.double() + change


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_change_of_any_optimizer_is_what_its_step_does(name):
    """In float32, two rounded writes at most: within an ulp each of the torch optimizer's own, its state the same."""
    maker, options = OPTIMIZERS[name]
    options = {"lr": 0.01, **options}
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, generator=generator)
    own, others = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    wrapped, plain = Plainly(maker([own], **options)), maker([others], **options)
    for _ in range(3):
        with torch.no_grad():
            own.copy_(others)
            held = others.clone()
        own.grad = torch.randn(6, 5, generator=generator)
        others.grad = own.grad.clone()
        wrapped.step()
        plain.step()
        spacing = torch.finfo(torch.float32).eps * torch.maximum(own.detach().abs(), held.abs())
        assert ((own - others).abs() <= 2 * spacing).all()
        assert not torch.equal(own, start)
        for key, value in plain.state[others].items():
            assert torch.equal(torch.as_tensor(wrapped.inner.state[own][key]), torch.as_tensor(value)), key


@pytest.mark.parametrize("fmt", ["bf16", "fp16", "e4m3"])
@pytest.mark.parametrize("wrap", [Kahan, lambda inner: Stochastic(inner, seed=1)], ids=["kahan", "stochastic"])
def test_a_simulated_model_trains_with_values_of_its_format(fmt, wrap):
    torch.manual_seed(0)
    sim = fpsim.run(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), fmt)
    optimizer = wrap(torch.optim.SGD(sim.parameters(), lr=2.0**-5))
    before = [item.detach().clone() for item in sim.parameters()]
    with sim:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(sim(torch.randn(16, 8)), torch.arange(16) % 3).backward()
            optimizer.step()
    after = [item.detach() for item in sim.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    for item in after:
        assert torch.equal(fpsim.round(item, fmt), item)


def test_a_master_copy_is_the_loop_written_by_hand():
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator).bfloat16()
    weight, copy_ = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizer = MasterCopy(torch.optim.AdamW([weight], lr=1e-4, weight_decay=0.1))
    plain = torch.optim.AdamW([copy_], lr=1e-4, weight_decay=0.1)
    schedules = [torch.optim.lr_scheduler.StepLR(item, 5, gamma=0.5) for item in (optimizer, plain)]
    for _ in range(20):
        weight.grad = torch.randn(4, 3, generator=generator).bfloat16()
        copy_.grad = weight.grad.float()
        for item in (optimizer, plain, *schedules):
            item.step()
        assert torch.equal(weight, copy_.bfloat16())
    assert optimizer.param_groups[0]["lr"] < 1e-4


@pytest.mark.parametrize(
    "wrap", [Kahan, MasterCopy, lambda inner: Stochastic(inner, seed=1)], ids=["kahan", "master", "stochastic"]
)
def test_what_is_saved_and_loaded_goes_on_bit_for_bit(wrap):
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(8, 4, 3, generator=generator).bfloat16()

    def made(values):
        weight = nn.Parameter(values.clone())
        return weight, wrap(torch.optim.AdamW([weight], lr=1e-3))

    def steps(weight, optimizer, some):
        for gradient in some:
            weight.grad = gradient.clone()
            optimizer.step()

    weight, optimizer = made(torch.randn(4, 3, generator=generator).bfloat16())
    steps(weight, optimizer, gradients[:4])
    again, resumed = made(weight.detach())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(weight, optimizer, gradients[4:])
    steps(again, resumed, gradients[4:])
    assert torch.equal(weight, again)
    with pytest.raises(ValueError, match="parameters"):
        wrap(torch.optim.AdamW([nn.Parameter(torch.ones(1).half()) for _ in "ab"])).load_state_dict(optimizer.state_dict())


def test_a_group_that_is_added_later_is_stepped():
    first, second = (nn.Parameter(torch.ones(3, dtype=torch.bfloat16)) for _ in range(2))
    optimizer = Kahan(torch.optim.SGD([first], lr=0.5))
    optimizer.add_param_group({"params": [second], "lr": 0.25})
    first.grad = second.grad = torch.ones_like(first)
    optimizer.step()
    assert first[0] == 0.5 and second[0] == 0.75
    optimizer.zero_grad()
    assert first.grad is None and second.grad is None


def test_mistakes_are_sentences():
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="a torch optimizer"):
        Kahan([weight])
    with pytest.raises(TypeError, match="LBFGS"):
        Kahan(torch.optim.LBFGS([weight]))
    with pytest.raises(ValueError, match="'weight': 'fp32'"):
        MasterCopy(torch.optim.SGD([weight], lr=1.0))
    with pytest.raises(ValueError, match="rule is one of"):
        Stochastic(torch.optim.SGD([weight], lr=1.0), seed=0, rule="carry")
    with pytest.raises(ValueError, match="seed"):
        Stochastic(torch.optim.SGD([weight], lr=1.0), seed=-1)
    weight.grad = torch.ones(3)
    with pytest.raises(ValueError, match="of bfloat16"):
        Stochastic(torch.optim.SGD([weight], lr=1.0), seed=0, rule="less-than").step()
    with fpsim.emulate({"*": "bf16"}), pytest.raises(NotImplementedError, match="mapping"):
        Stochastic(torch.optim.SGD([weight], lr=1.0), seed=0).step()
