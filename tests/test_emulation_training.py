"""Training under emulation: everything that is stored is a value of the format, and the same every time."""

import copy
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import fpsim
from fpsim.emulation.machine import marks


class Net(nn.Module):
    """Convolution, batch norm, every pooling, dropout, layer norm, several activations."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
        self.average, self.adaptive = nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(2)
        self.dropout, self.norm = nn.Dropout(0.25), nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        y = self.features(x)
        y = functional.gelu(self.average(y)) + torch.tanh(self.adaptive(y)) * torch.sigmoid(self.adaptive(y))
        return self.head(self.norm(self.dropout(y.flatten(1))))


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))


OPTIMIZERS = {
    "sgd": lambda parameters, **how: torch.optim.SGD(parameters, lr=0.05, **how),
    "momentum": lambda parameters, **how: torch.optim.SGD(
        parameters, lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True, **how
    ),
    "adam": lambda parameters, **how: torch.optim.Adam(parameters, lr=0.01, eps=1e-4, **how),
    "adamw": lambda parameters, **how: torch.optim.AdamW(parameters, lr=0.01, eps=1e-4, **how),
}
FORLOOP, FOREACH, FUSED = {"foreach": False}, {"foreach": True}, {"fused": True}


def is_value(tensor, fmt):
    array = tensor.detach().numpy()
    return array.dtype != np.float32 or np.array_equal(fpsim.round(array, fmt), array, equal_nan=True)


def assert_values(sim, fmt, optimizer=None):
    for name, parameter in sim.named_parameters():
        assert is_value(parameter, fmt), name
        assert parameter.grad is None or is_value(parameter.grad, fmt), name
    for name, buffer in sim.named_buffers():
        assert is_value(buffer, fmt), name
    for state in optimizer.state.values() if optimizer else ():
        for key, entry in state.items():
            assert key == "step" or not isinstance(entry, torch.Tensor) or is_value(entry, fmt), key


def train(model, optimizer_name, how, steps=3, shape=(1, 8, 8), seed=0, **policy):
    torch.manual_seed(seed)
    sim = fpsim.run(model, **policy)
    optimizer = OPTIMIZERS[optimizer_name](sim.parameters(), **how)
    with sim:
        for _ in range(steps):
            x, target = torch.randn(6, *shape), torch.randint(0, 10, (6,))
            optimizer.zero_grad()
            loss = functional.cross_entropy(sim(x), target)
            assert is_value(loss, policy["fmt"])
            loss.backward()
            assert_values(sim, policy["fmt"])
            optimizer.step()
            assert_values(sim, policy["fmt"], optimizer)
    return sim, optimizer


def flat(sim):
    return torch.cat([parameter.detach().reshape(-1) for parameter in sim.parameters()])


@pytest.mark.parametrize("how", [FORLOOP, FOREACH, FUSED], ids=["forloop", "foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_network_keeps_to_the_format(name, how):
    sim, optimizer = train(Net(), name, how, fmt="fp16", accumulate="fp16")
    assert torch.isfinite(flat(sim)).all()
    steps = [state["step"] for state in optimizer.state.values() if "step" in state]
    assert all(float(step) == 3 for step in steps)


@pytest.mark.parametrize("fmt", ["bf16", "float8_e5m2", "float8_e4m3fn", "tf32", "e4m5", "fp32", "float6_e3m2fn"])
def test_every_format_trains(fmt):
    train(Net(), "momentum", FORLOOP, fmt=fmt, accumulate=None)


@pytest.mark.parametrize("rounding", ["nearest-away", "toward-zero", "up", "down", "odd"])
def test_every_mode_trains_where_nothing_is_elementary(rounding):
    train(mlp(), "momentum", FORLOOP, shape=(12,), fmt="fp16", accumulate="fp16", rounding=rounding)


def test_loops_and_lists_of_tensors_agree():
    for name in OPTIMIZERS:
        torch.manual_seed(1)
        model = Net()
        loop, _ = train(model, name, FORLOOP, fmt="fp16", accumulate="fp16")
        lists, _ = train(model, name, FOREACH, fmt="fp16", accumulate="fp16")
        assert torch.equal(flat(loop), flat(lists)), name


def test_a_fused_optimizer_rounds_once():
    parameter = nn.Parameter(fpsim.round(torch.randn(50), "fp16"))
    parameter.grad = fpsim.round(torch.randn(50), "fp16")
    start, gradient = parameter.detach().double(), parameter.grad.double()
    with fpsim.emulate("fp16"):
        torch.optim.SGD([parameter], lr=0.1, weight_decay=0.01, fused=True).step()
    expected = fpsim.round(start - 0.1 * (gradient + 0.01 * start), "fp16").float()
    assert torch.equal(parameter.detach(), expected)


def test_step_counts_do_not_stick():
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.Adam([parameter], eps=1e-3)
    with fpsim.emulate("e4m3fn"):  # 16 + 1 rounds to 16 there
        for _ in range(40):
            parameter.grad = torch.ones(3)
            optimizer.step()
    assert float(optimizer.state[parameter]["step"]) == 40


def test_a_learned_scalar_is_no_step_count():
    scale = nn.Parameter(torch.tensor(2048.0))
    with fpsim.emulate("fp16"):
        optimizer = torch.optim.SGD([scale], lr=1.0)
        scale.grad = torch.tensor(-1.0)
        optimizer.step()
    assert float(scale.detach()) == 2048.0


def test_the_original_model_is_untouched():
    model = Net()
    before = copy.deepcopy(model.state_dict())
    train(model, "adam", FORLOOP, fmt="fp16", accumulate="fp16")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_inplace_uses_the_model_itself():
    model = mlp()
    sim = fpsim.run(model, "fp16", inplace=True)
    assert sim.model is model
    assert_values(sim, "fp16")
    assert all(a is b for a, b in zip(sim.parameters(), model.parameters(), strict=True))


def test_the_accumulator_matters_and_nothing_else_does():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))
    runs = [
        train(model, "sgd", FORLOOP, shape=(256,), fmt="fp16", accumulate=accumulate)[0]
        for accumulate in ("fp16", "fp32", None, "fp16:pairwise")
    ]
    assert not torch.equal(flat(runs[0]), flat(runs[1]))
    assert torch.equal(flat(runs[1]), flat(runs[2]))
    assert not torch.equal(flat(runs[0]), flat(runs[3]))


def test_runs_repeat_whatever_the_number_of_threads():
    torch.manual_seed(0)
    model = Net()
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(flat(train(model, "adam", FORLOOP, fmt="fp16", accumulate="fp16")[0]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_stochastic_rounding_repeats_by_its_seed():
    torch.manual_seed(0)
    model = mlp()
    how = {"shape": (12,), "fmt": "fp16", "accumulate": "fp16", "rounding": "stochastic"}
    runs = [flat(_stochastic(model, seed, how)) for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def _stochastic(model, seed, how):
    torch.manual_seed(5)
    sim = fpsim.run(model, fmt=how["fmt"], accumulate=how["accumulate"], rounding="stochastic", seed=seed)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.05)
    with sim:
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(sim(torch.randn(6, 12)), torch.randint(0, 10, (6,))).backward()
            optimizer.step()
    assert_values(sim, "fp16")
    return sim


@pytest.mark.parametrize("rounding", ["nearest-even", "stochastic"])
def test_a_recomputed_forward_pass_repeats_its_draws(rounding):
    from torch.utils.checkpoint import checkpoint

    class Recomputed(nn.Module):
        def __init__(self, body, recompute):
            super().__init__()
            self.body, self.recompute = body, recompute

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False) if self.recompute else self.body(x)

    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4))
    x = fpsim.round(torch.ones(5, 12) / 3, "fp16")
    gradients = []
    for recompute in (False, True):
        seed = 3 if rounding == "stochastic" else None
        sim = fpsim.run(Recomputed(body, recompute), "fp16", "fp16", rounding=rounding, seed=seed)
        with sim:
            functional.cross_entropy(sim(x), torch.arange(5) % 4).backward()
        gradients.append(torch.cat([parameter.grad.reshape(-1) for parameter in sim.parameters()]))
    assert torch.equal(gradients[0], gradients[1])


def test_a_deep_copy_is_independent_and_guarded():
    sim = fpsim.run(mlp(), "fp16", "fp16")
    twin = copy.deepcopy(sim)
    x = torch.randn(3, 12)
    assert torch.equal(sim(x), twin(x))
    assert flat(twin).data_ptr() != flat(sim).data_ptr()
    with pytest.raises(fpsim.emulation.OutsideContext):
        twin(x).sum().backward()


def test_saving_and_loading(tmp_path):
    sim = fpsim.run(Net(), "fp16", "fp16")
    assert list(sim.state_dict()) == list(Net().state_dict())
    torch.save(sim.state_dict(), tmp_path / "state.pt")
    other = fpsim.run(Net(), "fp16", "fp16")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(flat(sim), flat(other))
    torch.save(sim, tmp_path / "sim.pt")
    third = torch.load(tmp_path / "sim.pt", weights_only=False)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(sim.eval()(x), third.eval()(x))


def test_loaded_numbers_are_rounded():
    sim = fpsim.run(mlp(), "fp16")
    sim.load_state_dict(mlp().state_dict())
    assert_values(sim, "fp16")
    with torch.no_grad():
        sim.model[0].weight.fill_(0.1)
    sim(torch.randn(2, 12))
    assert_values(sim, "fp16")


def test_threads_train_apart():
    torch.manual_seed(0)
    model = mlp()
    x, target = torch.randn(6, 12), torch.randint(0, 10, (6,))

    def work(fmt, results):
        sim = fpsim.run(model, fmt, "fp16")
        optimizer = torch.optim.SGD(sim.parameters(), lr=0.05)
        for _ in range(4):
            with sim:
                optimizer.zero_grad()
                functional.cross_entropy(sim(x), target).backward()
                optimizer.step()
        results[fmt] = flat(sim)

    alone, together = {}, {}
    for fmt in ("fp16", "bf16"):
        work(fmt, alone)
    workers = [threading.Thread(target=work, args=(fmt, together)) for fmt in ("fp16", "bf16")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(alone[fmt], together[fmt]) for fmt in alone)


def test_what_is_counted():
    sim = fpsim.run(mlp(), "fp16", "fp16")
    with sim:
        big, small = torch.full((3,), 60000.0), torch.full((4,), 2.0**-20)
        big * 2
        small * small
    total = sim.report().total
    assert (total.overflows, total.underflows, total.nonfinite) == (3, 4, 3)
    sim.reset_report()
    assert sim.report().total.elements == 0
    optimizer = torch.optim.SGD(sim.parameters(), lr=1e-7)
    with sim:
        functional.cross_entropy(sim(torch.randn(6, 12)), torch.arange(6)).backward()
        before = flat(sim)
        optimizer.step()
    counts = sim.report().total
    moved = torch.cat([parameter.grad.reshape(-1) for parameter in sim.parameters()]) != 0
    assert counts.updates == int(moved.sum())
    assert counts.lost == int((moved & (flat(sim) == before)).sum()) > 0
    modules = sim.report().by_module()
    assert {"0", "2"} <= set(modules)
    operations = {(module, operation) for module, operation, _ in sim.report()}
    assert {
        ("0", "addmm"),
        ("2", "addmm"),
        ("2", "mm"),
    } <= operations  # the backward product is attributed to its layer


def test_marks_follow_storages():
    sim = fpsim.run(mlp(), "fp16")
    assert marks.tag_on(sim.model[0].weight) is sim._emulation.machine.arithmetic.tag
    with sim:
        x = torch.from_numpy(array := np.full(3, 0.1, np.float32))
        y = x * 1
        array[:] = 0.2
        assert float((x * 1)[0]) == float(np.float16(0.2))  # rounded whenever it is used, as the array may change
    assert float(y[0]) == float(np.float16(0.1))
    assert array[0] == np.float32(0.2)
