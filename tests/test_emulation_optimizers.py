"""Every optimizer of torch's own database in every implementation, and what trains around one."""

import contextlib
import copy
import math
import warnings

import numpy as np
import pytest
import torch
from ml_dtypes import bfloat16
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
    torch.default_generator.manual_seed(0)
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
    muon = info.optim_cls.__name__ == "Muon"
    for inputs in info.optim_inputs_func(device="cpu"):
        arguments = {**copy.deepcopy(inputs.kwargs), **how}

        def optimizer_of(model, arguments=arguments):
            parameters = [item for item in model.parameters() if item.dim() == 2 or not muon]
            return info.optim_cls(parameters, **copy.deepcopy(arguments))

        sim = fpsim.run(model(), "fp16", "fp16")
        optimizer = optimizer_of(sim)
        train(sim, sim, optimizer, info.step_requires_closure)
        assert all(is_value(tensor, "fp16") for tensor in stored(sim, optimizer)), inputs.desc
        plain, sim = model(), fpsim.run(model(), "fp32", "native")
        train(plain, contextlib.nullcontext(), optimizer_of(plain), info.step_requires_closure)
        train(sim, sim, optimizer_of(sim), info.step_requires_closure)
        assert all(map(torch.equal, plain.parameters(), sim.parameters())), inputs.desc


def round_to(fmt, values):
    """Values of a format as float32: NumPy's and ml_dtypes' conversions round to nearest even."""
    dtype = {"fp16": np.float16, "bf16": bfloat16, "fp32": np.float32}[fmt]
    return np.asarray(values).astype(dtype).astype(np.float32)


def product(a, b, accumulate):
    """Sums in ascending k. Products of bfloat16 values are exact in float32, and so is one rounding of a sum to fp16."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total = round_to(accumulate, total + round_to(accumulate, np.outer(a[:, k], b[k])))
    return total


def muon_step(weight, gradient, momentum, fmt, accumulate, lr, decay, mu):
    """One step of torch.optim.Muon in a machine of `fmt`, its iteration in bfloat16; the new weight and momentum."""
    single, exact = np.float32, lambda x: np.asarray(x, np.float64)

    def lerp(start, end, factor):  # in float32, as torch has it: from either end
        factor, span = single(factor), end - start
        value = start + factor * span if abs(factor) < 0.5 else end - span * (single(1) - factor)
        return round_to(fmt, value)

    momentum = lerp(momentum, gradient, 1 - mu)
    x = round_to("bf16", lerp(gradient, momentum, mu))
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    norm = round_to("bf16", np.sqrt((exact(x) ** 2).sum()))
    x = round_to("bf16", x / max(norm, single(1e-7)))
    a, b, c = map(single, (3.4445, -4.7750, 2.0315))
    held = "fp32" if fmt == "fp32" and accumulate == "fp32" else accumulate

    def addmm(addend, left, right, beta, alpha=None):
        total = exact(product(left, right, accumulate))
        total = total if alpha is None else exact(round_to(held, exact(alpha) * total))
        return round_to("bf16", round_to(held, total + round_to(held, exact(beta) * addend)))

    for _ in range(5):
        gram = round_to("bf16", product(x, x.T, accumulate))
        x = addmm(x, addmm(gram, gram, gram, b, c), x, a)
    update = round_to(fmt, x.T if tall else x)
    rate = lr * math.sqrt(max(1, weight.shape[0] / weight.shape[1]))
    weight = round_to(fmt, weight * single(1 - lr * decay))
    return round_to(fmt, weight + update * single(-rate)), momentum


@pytest.mark.parametrize("accumulate", ["fp32", "fp16"])
@pytest.mark.parametrize("fmt", ["fp16", "fp32", "bf16", {"*": "bf16", "weight": "fp16", "optimizer": "fp16"}])
def test_muon_iterates_in_bfloat16(fmt, accumulate):
    """Step by step against NumPy and ml_dtypes; the mapping's updates are all of fp16, its gradients are bf16 values."""
    torch.default_generator.manual_seed(0)
    weights = [torch.randn(3, 5), torch.randn(6, 2)]
    single = fmt if isinstance(fmt, str) else "fp16"
    sim = fpsim.run(nn.ParameterList(weight.clone() for weight in weights), fmt, accumulate)
    parameters = list(sim.parameters())
    with sim:
        optimizer = torch.optim.Muon(parameters, lr=0.3)
        expected = [(round_to(single, weight), np.zeros_like(weight)) for weight in (item.numpy() for item in weights)]
        for step in range(3):
            for parameter in parameters:
                gradient = round_to("bf16", np.cos(np.arange(parameter.numel()) + step))
                parameter.grad = torch.from_numpy(round_to(single, gradient).reshape(parameter.shape))
            gradients = [parameter.grad.numpy().copy() for parameter in parameters]
            optimizer.step()
            expected = [
                muon_step(weight, gradient, momentum, single, accumulate, 0.3, 0.1, 0.95)
                for (weight, momentum), gradient in zip(expected, gradients, strict=True)
            ]
            for parameter, (weight, momentum) in zip(parameters, expected, strict=True):
                assert np.array_equal(parameter.detach().numpy(), weight)
                assert np.array_equal(optimizer.state[parameter]["momentum_buffer"].numpy(), momentum)


def test_muon_in_bf16_is_muon_of_a_bfloat16_model():
    sims = fpsim.run(model(), "bf16", "bf16"), fpsim.run(model().bfloat16(), "native", "bf16")
    for sim in sims:
        optimizer = torch.optim.Muon([sim[0].weight, sim[2].weight], lr=0.1)
        with sim:
            for _ in range(3):
                optimizer.zero_grad()
                dtype = sim[0].weight.dtype
                sim(torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype)).square().sum().backward()
                optimizer.step()
    assert all(torch.equal(a, b.float()) for a, b in zip(*(sim.parameters() for sim in sims), strict=True))


@pytest.mark.filterwarnings("error")
def test_muon_draws_from_the_machines_stream():
    """The same seed gives the same bits, another gives others; draws of the 16-bit part are not those of the rest again."""

    def trained(seed):
        sim = fpsim.run(model(), "fp16", rounding="stochastic", seed=seed)
        train(sim, sim, torch.optim.Muon([sim[0].weight, sim[2].weight], lr=0.1))
        return torch.cat([parameter.detach().flatten() for parameter in sim.parameters()])

    assert torch.equal(trained(0), trained(0)) and not torch.equal(trained(0), trained(1))


class HalfState(torch.optim.Optimizer):
    """Keeps float16 momentum, in lists, and mixes dtypes in every way."""

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for parameter in self.param_groups[0]["params"]:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter, dtype=torch.float16)
            torch._foreach_mul_([state["momentum"]], 0.5)
            state["momentum"].copy_(state["momentum"].float() + parameter.grad)
            assert state["momentum"].double().dtype is torch.float64
            torch._foreach_add_([parameter, state["momentum"]], [state["momentum"], state["momentum"]], alpha=-0.25)


@pytest.mark.parametrize("fmt", ["bf16", {"*": "bf16"}])
def test_half_tensors_mean_themselves_within_a_step(fmt):
    with fpsim.emulate(fmt):
        parameter = nn.Parameter(torch.tensor([1.0, 3.0]))
        parameter.grad = torch.tensor([0.3, -5.0])
        optimizer = HalfState([parameter], {})
        optimizer.step()
        found = parameter.detach().tolist(), optimizer.state[parameter]["momentum"].tolist()
    momentum = torch.tensor([0.3, -5.0]).bfloat16().half()
    expected = (torch.tensor([1.0, 3.0]) - 0.25 * momentum.bfloat16().float()).bfloat16().float()
    assert found == (expected.tolist(), (momentum * 0.75).tolist())


def test_muon_needs_an_accumulator_of_bfloat16():
    parameter = nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    with fpsim.emulate("e4m3fn", "h100:fp16"), pytest.raises(UnsupportedOp, match="no instruction for bf16"):
        torch.optim.Muon([parameter]).step()


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
