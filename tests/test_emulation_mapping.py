"""Different formats by role and by module, against arithmetic written out by hand, and against one format for everything."""

import copy
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn
from torch.utils.checkpoint import checkpoint

import fpsim
from fpsim.emulation.dispatch import paths
from fpsim.emulation.machine.mapping import parse_mapping
from fpsim.emulation.machine.settings import FORMATS, ROLES
from fpsim.numbers.formats import get_format
from tests.test_hardware import model

F8 = {"*": "e4m3fn", "gradient": "e5m2", "weight": "fp32", "optimizer": "fp32"}


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10))


def is_value(tensor, fmt):
    array = tensor.detach().numpy()
    return np.array_equal(fpsim.round(array, fmt), array, equal_nan=True)


# The arithmetic by hand: ml_dtypes and NumPy round to nearest even


def cast(x, dtype):
    return np.asarray(x, np.float32).astype(dtype).astype(np.float32)


def product(a, b, bias=None):
    """Exact products of 8-bit values, added one after the other in float32."""
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    return total if bias is None else total + bias


def column_sums(x):
    total = np.zeros(x.shape[1], np.float32)
    for row in x:
        total = total + row
    return total


def test_a_step_of_a_perceptron_by_hand():
    """e4m3fn forward, e5m2 backward, fp32 weights and optimizer; the last layer in bf16 forward, fp16 backward."""
    forward, backward = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
    model = mlp()
    sim = fpsim.run(model, {**F8, "2": {"activation": "bf16", "gradient": "fp16"}})
    x = torch.randn(5, 12)
    seed = torch.randn(5, 10)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.125, momentum=0.5)
    with sim:
        for _ in range(2):
            optimizer.zero_grad()
            y = sim(x)
            y.backward(seed)
            optimizer.step()

    first, _, last = model
    w1, b1, w2, b2 = (item.detach().numpy().copy() for item in (first.weight, first.bias, last.weight, last.bias))
    momenta = None
    for _ in range(2):
        rounded = cast(x.numpy(), forward)
        u1 = cast(w1, forward)
        hidden = np.maximum(cast(product(rounded, u1.T, cast(b1, forward)), forward), 0)
        u2 = cast(w2, ml_dtypes.bfloat16)
        out = cast(product(hidden, u2.T, cast(b2, ml_dtypes.bfloat16)), ml_dtypes.bfloat16)
        g = cast(seed.numpy(), np.float16)  # read by the last layer, in its gradient format
        g_w2, g_b2 = cast(product(g.T, hidden), np.float16), cast(column_sums(g), np.float16)
        g_hidden = cast(product(g, u2), np.float16)
        inner = np.where(hidden > 0, cast(g_hidden, backward), np.float32(0))  # read by the relu, in its gradient format
        g_w1, g_b1 = cast(product(inner.T, rounded), backward), cast(column_sums(inner), backward)
        gradients = [g_w1, g_b1, g_w2, g_b2]
        momenta = gradients if momenta is None else [m * np.float32(0.5) + h for m, h in zip(momenta, gradients, strict=True)]
        w1, b1, w2, b2 = (w - np.float32(0.125) * m for w, m in zip((w1, b1, w2, b2), momenta, strict=True))
    assert np.array_equal(y.detach().numpy(), out)
    for parameter, weight, gradient in zip(sim.parameters(), (w1, b1, w2, b2), gradients, strict=True):
        assert np.array_equal(parameter.grad.numpy(), gradient)
        assert np.array_equal(parameter.detach().numpy(), weight)


class Block(nn.Module):
    """A convolution, a normalization with statistics, attention, something shared, something in place."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm = nn.Conv1d(4, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.attention, self.layer_norm = nn.MultiheadAttention(8, 2, batch_first=True), nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = functional.gelu(self.norm(self.inner(x))).transpose(1, 2)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.layer_norm(x).mean(1))


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "loop": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, eps=1e-4, foreach=False),
    "lists": lambda parameters: torch.optim.Adam(parameters, lr=0.01, eps=1e-4, foreach=True),
    "fused": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, eps=1e-4, fused=True),
}


def train(model, optimizer_name, steps=2, **policy):
    """Everything that some training steps make."""
    torch.manual_seed(3)
    sim = fpsim.run(model, **policy)
    optimizer = OPTIMIZERS[optimizer_name](sim.parameters())
    seen = []
    with sim:
        for _ in range(steps):
            optimizer.zero_grad()
            y = sim(torch.randn(6, 4, 7))
            loss = functional.cross_entropy(y, torch.randint(0, 5, (6,)))
            loss.backward()
            norm = nn.utils.clip_grad_norm_(sim.parameters(), 1.0)
            seen += [y.detach(), loss.detach(), norm, *(parameter.grad.clone() for parameter in sim.parameters())]
            optimizer.step()
            seen += [item.detach().clone() for item in (*sim.parameters(), *sim.buffers())]
    for state in optimizer.state.values():
        seen += [entry for entry in state.values() if isinstance(entry, torch.Tensor)]
    return seen, sim, optimizer


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("fmt", "more"),
    [
        ("fp16", {"accumulate": "fp16:pairwise"}),
        ("e5m2", {"accumulate": "exact"}),
        ("fp16", {"rounding": "stochastic", "seed": 3}),
        ("fp32", {"accumulate": "native"}),
    ],
    ids=["fp16", "e5m2", "stochastic", "fp32"],
)
def test_one_format_for_everything_is_that_format(fmt, more, optimizer):
    torch.manual_seed(0)
    model = Block()
    plain, sim, _ = train(model, optimizer, fmt=fmt, **more)
    mapped, mixed, _ = train(model, optimizer, fmt={"weight": fmt, "*": dict.fromkeys(ROLES[1:], fmt)}, **more)
    assert len(plain) == len(mapped)
    for a, b in zip(plain, mapped, strict=True):
        assert torch.equal(a.nan_to_num(nan=77.0), b.nan_to_num(nan=77.0))
    assert [row[2] for row in sim.report()] == [row[2] for row in mixed.report()]


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_tensor_is_of_the_format_of_its_role(optimizer, granularity):
    torch.manual_seed(0)
    fmt = {
        "*": "e4m3fn", "gradient": "e5m2", "weight": "bf16", "optimizer": "fp16",
        nn.LayerNorm: "fp32", nn.BatchNorm1d: {"weight": "fp32"}, "head": {"activation": "fp16", "weight": "e5m10"},
    }  # fmt: skip
    seen = {}
    model = Block()
    model.attention.register_full_backward_hook(lambda _, gradients, __: seen.update(attention=gradients[0]))
    model.attention.register_forward_hook(lambda _, __, outputs: seen.update(out=outputs[0]))
    model.layer_norm.register_forward_hook(lambda _, __, output: seen.update(norm=output))
    _, sim, made = train(model, optimizer, fmt=fmt, granularity=granularity)
    weights = {"head": "fp16", "layer_norm": "fp32", "norm": "fp32"}
    gradients = {"layer_norm": "fp32"}
    states = {"layer_norm": "fp32"}
    for name, parameter in sim.named_parameters():
        module = name.partition(".")[0]
        assert is_value(parameter, weights.get(module, "bf16"))
        assert is_value(parameter.grad, gradients.get(module, "e5m2"))
        for key, entry in made.state[parameter].items():
            assert key == "step" or is_value(entry, states.get(module, "fp16"))
    assert is_value(seen["out"], "e4m3fn")
    assert is_value(seen["attention"], "e5m2")
    assert is_value(seen["norm"], "fp32")
    assert not is_value(seen["norm"], "bf16")
    if granularity == "kernel":  # kept wide, although the activations that they come from are not
        assert not is_value(sim.norm.running_var, "bf16")


def test_wide_weights_are_rounded_where_they_are_used():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1 + 2**-20)
    sim = fpsim.run(layer, {"*": "fp16", "weight": "fp32"})
    assert float(sim.weight.detach()) == 1 + 2**-20
    with sim:
        assert float(sim(torch.ones(1, 1)).detach()) == 1
        with torch.no_grad():
            sim.weight.mul_(0.5)
            sim.weight.add_(2.0**-22)
        assert float(sim.weight.detach()) == 0.5 + 2**-21 + 2**-22
        twice = sim.weight * 2
    assert float(twice.detach()) == 1


def test_a_value_is_rounded_where_formats_meet():
    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide, self.narrow = nn.Identity(), nn.Identity()
            self.wide.forward = lambda x: x * 1.0
            self.narrow.forward = lambda x: x * 1.0

        def forward(self, x):
            wide = self.wide(x)
            return wide, self.narrow(wide), self.wide(self.narrow(x))

    x = torch.tensor([1 + 2**-12, 1 + 2**-5])
    wide, narrow, through = fpsim.run(Meeting(), {"*": "fp32", "narrow": "e4m3fn"})(x)
    assert wide.tolist() == x.tolist()
    assert narrow.tolist() == through.tolist() == [1.0, 1.0]


def test_a_result_of_two_formats_rounds_once():
    """A float32 sum would round 1 + 2^-3 + 2^-30 to the middle of two values of e5m2 and then to the even one below."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([1.0]))

        def forward(self, x):
            return x * self.scale

    sim = fpsim.run(Sum(), {"*": "fp32", "gradient": "e5m2"})
    with sim:
        sim(torch.tensor([1 + 2.0**-3 + 2.0**-23])).backward()
        assert float(sim.scale.grad) == 1.25
    wide = fpsim.run(Sum(), {"*": "fp32", "optimizer": "e5m2"})
    with wide:
        wide(torch.tensor([2.0**-30])).backward()
        gradient = wide.scale.grad
        assert float(gradient + 1.125) == 1.0  # a Python number: the sum in fp32, then rounded
        assert float(gradient + torch.ones(1) * 1.125) == 1.25


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_a_recomputed_forward_pass_is_a_forward_pass(reentrant, whole):
    class Model(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.inner, self.checkpointed = nn.Linear(6, 6), checkpointed

        def forward(self, x):
            part = self.inner if whole else lambda value: functional.gelu(value @ self.inner.weight)
            return checkpoint(part, x, use_reentrant=reentrant) if self.checkpointed else part(x)

    torch.manual_seed(0)
    model, x = Model(False), torch.randn(3, 6)
    found = []
    for checkpointed in (False, True):
        model.checkpointed = checkpointed
        sim = fpsim.run(model, F8)
        leaf = x.clone().requires_grad_()
        with sim:
            sim(leaf).sum().backward()
        found.append((leaf.grad, sim.inner.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_gradients_add_up_in_the_format_of_their_parameter():
    sim = fpsim.run(nn.Linear(1, 1, bias=False), {"*": "fp32", "gradient": "e5m2"})
    with sim:
        for _ in range(2):
            sim(torch.tensor([[1.25]])).backward()
    assert float(sim.weight.grad) == 2.5
    with sim:
        sim(torch.tensor([[0.25]])).backward()
    assert float(sim.weight.grad) == 3.0  # 2.75 lies between 2.5 and 3, whose significand is even


def test_a_step_within_the_backward_pass():
    sim = fpsim.run(mlp(), F8)
    optimizers = {parameter: torch.optim.SGD([parameter], lr=0.1) for parameter in sim.parameters()}
    for parameter in sim.parameters():
        parameter.register_post_accumulate_grad_hook(lambda done: optimizers[done].step())
    before = [parameter.detach().clone() for parameter in sim.parameters()]
    with sim:
        sim(torch.randn(3, 12)).sum().backward()
    for parameter, old in zip(sim.parameters(), before, strict=True):
        assert torch.equal(parameter.detach(), old - 0.1 * parameter.grad)


def test_without_a_model():
    with fpsim.emulate({"activation": "fp16", "gradient": "e5m2", "weight": "fp32", "optimizer": "fp32"}) as emulation:
        x = torch.tensor([1 + 2**-10], requires_grad=True)
        y = x * x
        y.backward()
        assert float(y.detach()) == 1 + 2**-9
        assert float(x.grad) == 2
    assert "'gradient': float8_e5m2" in str(emulation.policy)
    with pytest.raises(ValueError, match="'head' names modules, and there is no model here"), fpsim.emulate({"head": "fp16"}):
        pass


def test_it_is_printed_copied_pickled_and_loaded():
    sim = fpsim.run(mlp(), {**F8, nn.ReLU: "bf16", "2": {"activation": "fp16"}})
    text = (
        "fmt={'*': float8_e4m3fn, 'gradient': float8_e5m2, 'weight': fp32, 'optimizer': fp32, ReLU: bf16, "
        "'2': {activation: fp16}}"
    )
    assert text in repr(sim)
    assert text in str(sim.report())
    x = torch.randn(3, 12)
    y = sim(x)
    assert torch.equal(copy.deepcopy(sim)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(sim))(x), y)
    other = fpsim.run(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 10)), sim.policy.mapping and F8)
    other.load_state_dict(sim.state_dict())
    assert torch.equal(other[0].weight, sim[0].weight)


@pytest.mark.parametrize(
    ("fmt", "message"),
    [
        ({}, "empty"),
        ({"*": {}}, "empty"),
        ({"*": "fp99"}, r"fmt\['\*'\]: unknown format 'fp99'"),
        ({"*": {"weights": "fp16"}}, "no role 'weights'.*did you mean 'weight'"),
        ({"*": "fp16", "gradients": "fp32"}, "'gradients' is no role.*did you mean 'gradient'"),
        ({"*": "fp16", "layer.*": "fp32"}, "names no module of the model"),
        ({"gradient": {"weight": "fp16"}}, "is a role and takes one format"),
        ({"2": "fp32", "*": "fp16"}, "the entry '2': fp32 has no effect"),
        ({"weight": "fp32", "gradient": "fp16"}, "no format for the role 'activation' of what is outside"),
        ({"*": "fp16", "0": "e8m0fnu"}, "has no zero"),
        ({"*": "fp16", "weight": "fp64"}, "float32 tensors cannot hold"),
    ],
)
def test_errors(fmt, message):
    with pytest.raises(ValueError, match=message):
        fpsim.run(mlp(), fmt)


def test_errors_of_names_and_of_what_is_shared():
    with pytest.raises(TypeError, match="a key is a role"):
        parse_mapping(FORMATS, {3: "fp16"})
    named = nn.Sequential()
    named.add_module("activation", nn.ReLU())
    with pytest.raises(ValueError, match=r"a role and the name of a module.*'\[a\]ctivation'"):
        fpsim.run(named, {"*": "fp16", "activation": "fp32"})
    fpsim.run(named, {"*": "fp16", "[a]ctivation": "fp32"})
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"0\.weight and 1\.weight are one tensor and would have two weight formats"):
        fpsim.run(tied, {"*": "fp16", "1": "fp32"})
    fpsim.run(tied, {"*": "fp16", "1": {"activation": "fp32"}})
    twice = nn.ReLU()
    with pytest.raises(ValueError, match="'0' and '1' are one module"):
        fpsim.run(nn.Sequential(twice, twice), {"*": "fp16", "1": "fp32"})


def test_a_unit_multiplies_what_one_of_its_instructions_takes():
    x = torch.ones(2, 4)
    sim = fpsim.run(nn.Linear(4, 4), {"*": "fp32", "activation": "e4m3fn"}, accumulate="h100")
    with sim:
        assert sim(x).shape == (2, 4)
    for gradient, taken in (("bf16", True), ("fp16", True), ("tf32", True), ("e3m2fn", True), ("e8m5", False)):
        mixed = fpsim.run(nn.Linear(4, 4), {"*": "e4m3fn", "gradient": gradient}, accumulate="h100")
        with mixed:
            loss = mixed(x).square().sum()
            if taken:  # both are values of the wider format
                loss.backward()
                continue
            with pytest.raises(ValueError, match="unit h100 has no instruction for"):
                loss.backward()
    with pytest.raises(ValueError, match="h100"):
        fpsim.run(nn.Linear(4, 4), {"*": "fp32"}, accumulate="h100")


@pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")
@pytest.mark.parametrize("unit", ["ada", "h100", "h100:fp16", "h100_mma", "b200", "mi300"])
def test_units_multiply_gradients_of_one_fp8_format_by_activations_of_the_other(unit):
    """Every product of the backward pass against the unit's definition in rationals; small values are subnormal in one."""
    suffix = "uz" if unit == "mi300" else ""
    e4m3, e5m2 = get_format(f"e4m3fn{suffix}"), get_format("e5m2fnuz" if suffix else "e5m2")
    name, _, output = unit.partition(":")
    torch.manual_seed(0)
    layer, convolution, other = nn.Linear(33, 3, bias=False), nn.Conv2d(2, 3, 2, bias=False), torch.randn(2, 3, 33, 4)
    scale = 2.0 ** torch.randint(-8, 0, (5, 33))
    x, image = (torch.randn(5, 33) * scale).requires_grad_(), (torch.randn(2, 2, 4, 4) * 2.0**-6).requires_grad_()
    batch = torch.randn(2, 5, 33).mul(2.0**-7).requires_grad_()
    gradients = [torch.randn(5, 3) * 2.0**-9, torch.randn(2, 3, 3, 3) * 2.0**-7, torch.randn(2, 5, 4)]
    with fpsim.emulate({"*": e4m3, "gradient": e5m2}, unit):
        ends = [layer(x), convolution(image), batch @ other[:, 0]]
        torch.autograd.backward(ends, gradients)
    to_e4m3, to_e5m2 = (lambda t, f=f: fpsim.round(t.detach(), f) for f in (e4m3, e5m2))

    def wanted(a, b, fmt):
        result = torch.zeros(a.shape[0], b.shape[1])
        for i, j in np.ndindex(*result.shape):
            left, right = ([Fraction(v) for v in item.tolist()] for item in (a[i], b[:, j]))
            result[i, j] = float(model(name, fmt, output or "fp32", left, right, Fraction(0)))
        return to_e5m2(result)

    g, a, w = to_e5m2(gradients[0]), to_e4m3(x), to_e4m3(layer.weight)
    assert torch.equal(x.grad, wanted(g, w, (e5m2, e4m3)))
    assert torch.equal(layer.weight.grad, wanted(g.T, a, (e5m2, e4m3)))
    for k in range(2):
        assert torch.equal(batch.grad[k], wanted(to_e5m2(gradients[2])[k], to_e4m3(other)[k, 0].T, (e5m2, e4m3)))
    g, a, w = to_e5m2(gradients[1]), to_e4m3(image), to_e4m3(convolution.weight)
    patches = nn.functional.unfold(a, 2).transpose(0, 1).flatten(1)  # (c kh kw, n oh ow)
    of_weight = wanted(g.transpose(0, 1).flatten(1), patches.T, (e5m2, e4m3))
    assert torch.equal(convolution.weight.grad.flatten(1), of_weight)
    padded = nn.functional.pad(g, (1, 1, 1, 1))
    turned = nn.functional.unfold(padded, 2).reshape(2, 3, 4, 16).flip(2).reshape(2, 12, 16)  # (o kh kw) of each position
    for n in range(2):
        of_image = wanted(w.transpose(0, 1).flatten(1), turned[n], (e4m3, e5m2))
        assert torch.equal(image.grad[n].flatten(1), of_image)


def test_a_graph_may_be_used_after_a_step_but_not_forever(monkeypatch):
    sim = fpsim.run(nn.Linear(2, 2), F8)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
    with sim:
        x = torch.full((2,), 1.125, requires_grad=True)
        kept = nn.Sequential(nn.Identity(), nn.GELU())(x).sum()
        sim(x.detach()).sum().backward()
        optimizer.step()
        kept.backward(retain_graph=True)
        assert is_value(x.grad, "e5m2")
        monkeypatch.setattr(paths, "_KEPT_NODES", 10)
        sim(x.detach())
        for _ in range(9):
            sim(x.detach())
        with pytest.raises(RuntimeError, match="its formats are forgotten"):
            kept.backward()
