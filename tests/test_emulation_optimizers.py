"""Every optimizer of torch's own database in every implementation, and what trains around one."""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import UnsupportedOp

pytest.importorskip("expecttest", reason="torch's optimizer database needs the package expecttest")

from tests.operators import is_of, is_value  # isort: skip

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_optimizers import optim_db

IMPLEMENTATIONS = {"for-loop": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}
QUICK = {("Adam", "foreach"), ("SGD", "fused"), ("Rprop", "for-loop"), ("LBFGS", "for-loop")}


def cases():
    found = []
    for info in optim_db:
        for name, how in IMPLEMENTATIONS.items():
            if info.only_supports_sparse_grads or (how and name not in info.supported_impls):
                continue
            quick = (info.optim_cls.__name__, name) in QUICK
            marks = () if quick else pytest.mark.exhaustive
            found.append(pytest.param(info, how, id=f"{info.optim_cls.__name__}-{name}", marks=marks))
    return found


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))


def train(model, context, optimizer, with_closure=False, steps=2):
    def loss():
        optimizer.zero_grad()
        value = model(torch.linspace(-1, 1, 12).reshape(3, 4)).square().sum()
        value.backward()
        return value

    with context:
        for _ in range(steps):
            if with_closure:
                optimizer.step(loss)
            else:
                loss()
                optimizer.step()


def stored(model, optimizer):
    """Parameters, gradients and the optimizer's state, without step counts and what the script itself gave."""
    given = {id(group["lr"]) for group in optimizer.param_groups}
    tensors = [item for parameter in model.parameters() for item in (parameter, parameter.grad) if item is not None]
    for state in optimizer.state.values():
        tensors += [value for key, value in state.items() if key != "step" and id(value) not in given]
    return [item for item in tensors if is_of(torch.float32, item)]


@pytest.mark.parametrize(("info", "how"), cases())
def test_optimizers(info, how):
    muon = info.optim_cls.__name__ == "Muon"  # it computes in bfloat16, which "native" alone has
    for inputs in info.optim_inputs_func(device="cpu"):
        arguments = {**copy.deepcopy(inputs.kwargs), **how}

        def optimizer_of(model, arguments=arguments):
            parameters = [item for item in model.parameters() if item.dim() == 2 or not muon]
            return info.optim_cls(parameters, **copy.deepcopy(arguments))

        sim = fpsim.run(model(), "native" if muon else "fp16", "fp16")
        optimizer = optimizer_of(sim)
        train(sim, sim, optimizer, info.step_requires_closure)
        assert muon or all(is_value(tensor, "fp16") for tensor in stored(sim, optimizer)), inputs.desc
        plain, sim = model(), fpsim.run(model(), "fp32", "native")
        train(plain, contextlib.nullcontext(), optimizer_of(plain), info.step_requires_closure)
        train(sim, sim, optimizer_of(sim), info.step_requires_closure)
        assert all(map(torch.equal, plain.parameters(), sim.parameters())), inputs.desc


def test_muon_in_one_format_and_sparse_gradients_raise():
    sim = fpsim.run(model(), "fp16")
    with pytest.raises(UnsupportedOp, match="bfloat16"):
        train(sim, sim, torch.optim.Muon([sim[0].weight, sim[2].weight]))
    table = fpsim.run(nn.Embedding(5, 3, sparse=True), "fp16")
    with table, pytest.raises(UnsupportedOp, match="sparse"):
        table(torch.tensor([1, 2])).sum().backward()


SCHEDULERS = {
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5),
    "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
    "cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5),
    "warm": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [torch.optim.lr_scheduler.LinearLR(optimizer), torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)],
        milestones=[2],
    ),
    "plateau": torch.optim.lr_scheduler.ReduceLROnPlateau,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_give_the_rates_that_they_give_elsewhere(scheduler):
    """A rate is a Python number: the emulation rounds what is computed with it, not the rate."""
    rates = []
    for emulated in (True, False):
        sim = fpsim.run(model(), "fp16") if emulated else model()
        optimizer = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
        schedule = SCHEDULERS[scheduler](optimizer)
        seen = []
        for _ in range(4):
            with sim if emulated else contextlib.nullcontext():
                train(sim, contextlib.nullcontext(), optimizer, steps=1)
                schedule.step(*([1.0] if scheduler == "plateau" else []))
            seen.append(optimizer.param_groups[0]["lr"])
        if emulated:
            assert all(is_value(tensor, "fp16") for tensor in stored(sim, optimizer))
        rates.append(seen)
    assert rates[0] == rates[1]


@pytest.mark.parametrize("clip", [nn.utils.clip_grad_norm_, nn.utils.clip_grad_value_])
def test_gradients_are_clipped(clip):
    sim = fpsim.run(model(), "fp16")
    optimizer = torch.optim.AdamW(sim.parameters(), lr=0.1, eps=1e-4)
    with sim:
        sim(torch.ones(3, 4)).sum().backward()
        clip(sim.parameters(), 0.01)
        optimizer.step()
    assert all(is_value(tensor, "fp16") for tensor in stored(sim, optimizer))
    assert max(float(parameter.grad.abs().max()) for parameter in sim.parameters()) <= float(torch.tensor(0.01).half())


def test_averages_of_weights():
    sim = fpsim.run(model(), "fp16", "fp16")
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    with sim:
        average = torch.optim.swa_utils.AveragedModel(
            sim.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        for _ in range(3):
            train(sim, contextlib.nullcontext(), optimizer, steps=1)
            average.update_parameters(sim.model)
        average(torch.ones(1, 4))
    assert all(is_value(parameter, "fp16") for parameter in average.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(average.parameters(), sim.parameters(), strict=True))


def test_states_go_around():
    """What a script saves after two steps and loads into new objects trains on as if it had not."""
    sims = [fpsim.run(model(), "fp16", "fp16") for _ in range(2)]
    optimizers = [torch.optim.Adam(sim.parameters(), lr=0.1, eps=1e-4) for sim in sims]
    train(sims[0], sims[0], optimizers[0])
    sims[1].load_state_dict(sims[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for sim, optimizer in zip(sims, optimizers, strict=True):
        train(sim, sim, optimizer)
    assert all(map(torch.equal, stored(sims[0], optimizers[0]), stored(sims[1], optimizers[1])))
