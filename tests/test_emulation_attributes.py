"""What is set or deleted on a simulation is the model's, and emulated as what was there."""

import copy
import pickle
import types

import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import OutsideContext

X = torch.linspace(-1, 1, 12).reshape(3, 4)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)
        self.register_buffer("offset", torch.full((4,), 0.1))
        self.scale, self.flag = 2.0, False

    def forward(self, x):
        y = self.layer(x) * self.scale + self.offset
        return -y if self.flag else y

    @property
    def third(self):
        return self.layer.weight[0] / 3

    @third.setter
    def third(self, row):
        self.seen = row / 3
        self.layer.weight = nn.Parameter(self.seen.expand(4, 4).clone())


@pytest.fixture(params=[False, True], ids=["copy", "inplace"])
def sim(request):
    return fpsim.run(Net(), "fp16", inplace=request.param)


def is_of_fp16(tensor):
    return torch.equal(tensor, tensor.half().float())


def test_what_the_model_reads_is_what_was_set(sim):
    before = sim(X)
    sim.flag, sim.note, sim.scale = True, "new", 4.0
    assert (sim.model.flag, sim.model.note, sim.model.scale) == (True, "new", 4.0) == (sim.flag, sim.note, sim.scale)
    other = fpsim.run(Net(), "fp16")
    other.model.flag, other.model.scale = True, 4.0
    assert torch.equal(sim(X), other(X)) and not torch.equal(sim(X), before)
    for again in (copy.deepcopy(sim), pickle.loads(pickle.dumps(sim))):
        assert again.note == "new" and torch.equal(again(X), sim(X))
    del sim.note
    assert not hasattr(sim.model, "note") and not hasattr(sim, "note")
    with pytest.raises(AttributeError, match="note"):
        del sim.note


def test_training_is_the_models_own():
    sim = fpsim.run(nn.Sequential(nn.Dropout(0.5)), "fp16")
    sim.training = False
    assert sim.model.training is False and sim.model[0].training is True
    sim.eval()
    assert not sim.training and not sim.model[0].training
    sim.model.train()
    assert sim.training


@pytest.mark.parametrize("inside", [False, True])
def test_modules_parameters_and_buffers_that_are_set_are_rounded_and_guarded_at_once(sim, inside):
    layer, offset = nn.Linear(4, 4), torch.full((4,), 0.3)
    layer.bias = nn.Parameter(torch.full((4,), 0.7))
    if inside:
        with sim:
            sim.layer, sim.offset, sim.extra = layer, offset, nn.Parameter(torch.full((2,), 0.9))
            assert is_of_fp16(sim.extra) and is_of_fp16(layer.weight) and is_of_fp16(offset)
    else:
        sim.layer, sim.offset, sim.extra = layer, offset, nn.Parameter(torch.full((2,), 0.9))
        with pytest.raises(OutsideContext):
            sim.layer(X)
    assert sim.model.layer is layer and sim.model.offset is offset
    for tensor in (sim.extra, layer.weight, layer.bias, offset):
        assert is_of_fp16(tensor)
    assert set(sim.state_dict()) == {"layer.weight", "layer.bias", "offset", "extra"}
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    with sim:
        sim(X).sum().backward()
        optimizer.step()
    assert is_of_fp16(layer.weight) and is_of_fp16(sim.extra)
    with pytest.raises(OutsideContext):
        optimizer.step()
    del sim.extra
    assert "extra" not in dict(sim.model.named_parameters()) and "extra" not in sim.state_dict()


def test_setters_of_the_model_run_emulated(sim):
    sim.third = torch.ones(4)
    assert is_of_fp16(sim.seen) and is_of_fp16(sim.layer.weight) and not is_of_fp16(torch.ones(4) / 3)
    with pytest.raises(OutsideContext):
        sim.layer(X)


def test_methods_are_exchanged_in_both_ways(sim):
    expected = sim(X)
    inner = sim.forward
    sim._original_forward, sim.forward = inner, types.MethodType(lambda self, x: inner(x) / 3, sim)
    assert torch.equal(sim(X), (expected.half() / 3).float())
    duplicate = copy.deepcopy(sim)
    assert torch.equal(duplicate(X), sim(X)) and duplicate.model._original_forward.__self__ is duplicate
    del sim.forward
    assert torch.equal(sim(X), expected)
    sim.model.forward = lambda x: x / 3
    assert is_of_fp16(sim(X))


@pytest.mark.parametrize("name", ["model", "policy", "report", "observe", "_emulation", "_held"])
def test_what_is_the_simulations_own_is_not_set(sim, name):
    for value in (nn.Linear(4, 4), 1):
        with pytest.raises(AttributeError, match=f"'{name}' is the simulation's own .*sim.model.{name}"):
            setattr(sim, name, value)
    with pytest.raises(AttributeError, match="the simulation's own"):
        delattr(sim, name)
    sim(X)


def third(module, inputs, output):
    return output / 3


def test_copies_keep_what_is_hooked_to_a_simulation(sim):
    expected = sim(X)
    sim.register_forward_hook(third)
    for again in (copy.deepcopy(sim), pickle.loads(pickle.dumps(sim))):
        assert torch.equal(again(X), (expected.half() / 3).float()) and again.policy == sim.policy
    sim.compile(backend="eager")
    assert copy.deepcopy(sim)._compiled_call_impl is None  # what is compiled is of the simulation itself


def test_dictionaries_of_the_model_are_one_with_the_simulations():
    sim = fpsim.run(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), "fp16")
    del sim.model[1]
    sim(X)
    assert list(sim.state_dict()) == [name for name, _ in sim.named_parameters()]
    sim._modules = dict(list(sim._modules.items())[:1])
    assert len(list(sim.model.parameters())) == len(list(sim.parameters())) == 2
    assert sim(X).shape == (3, 4)
