"""Accumulators and rounding modes by role and by module, and what products read their factors in.

Oracles are NumPy's float16 and float32 in loops, rationals, and runs of one accumulator and one mode for everything.
"""

import json
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from click.testing import CliRunner
from torch import nn

import fpsim
from fpsim.cli import main
from fpsim.emulation.machine.policy import make_policy
from tests.test_emulation_mapping import Block, train


def same(left, right):
    return all(torch.equal(a.nan_to_num(nan=77.0), b.nan_to_num(nan=77.0)) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize(
    ("accumulate", "rounding", "seed", "optimizer"),
    [
        ("fp16:pairwise", "nearest-away", None, "sgd"),
        ("fp32:kahan", "stochastic", 3, "lists"),
        ("a100", "nearest-even", None, "fused"),
    ],
)
def test_mappings_that_say_the_same_for_all_are_the_plain_names(accumulate, rounding, seed, optimizer):
    torch.manual_seed(0)
    model = Block()
    plain, sim, _ = train(model, optimizer, fmt="fp16", accumulate=accumulate, rounding=rounding, seed=seed)
    mapped, mixed, _ = train(
        model, optimizer, fmt="fp16", seed=seed,
        accumulate={"gradient": accumulate, "*": dict.fromkeys(("activation", "optimizer", "product"), accumulate)},
        rounding={"weight": rounding, nn.Module: dict.fromkeys(("activation", "gradient", "optimizer", "product"), rounding)},
    )  # fmt: skip
    assert same(plain, mapped)
    assert [row[2] for row in sim.report()] == [row[2] for row in mixed.report()]


# Accumulators


def half_sums(a, b):
    """Products and sums rounded to float16, one after the other."""
    total = np.zeros((len(a), b.shape[1]), np.float16)
    for k in range(a.shape[1]):
        total = total + (a[:, k : k + 1] * b[k : k + 1]).astype(np.float16)  # exact in float32, rounded once
    return total.astype(np.float32)


def single_sums(a, b):
    """Products of float16 values, exact in float32, added there one after the other and rounded to float16."""
    total = np.zeros((len(a), b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    return total.astype(np.float16).astype(np.float32)


def exact_sums(a, b):
    """The rational sum, rounded once: float64 holds it, and rounds it as the nearest float16 number would be."""
    rows, columns = ([[Fraction(value) for value in line] for line in item.tolist()] for item in (a, b.T))
    sums = [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in rows]
    wide = np.array(sums, dtype=np.float64)
    assert all(Fraction(float(w)) == s for w, s in zip(wide.ravel(), np.ravel(sums), strict=True))
    return wide.astype(np.float16).astype(np.float32)


def test_each_product_of_two_layers_goes_through_its_own_accumulator():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 12, bias=False), nn.ReLU(), nn.Linear(12, 30, bias=False))
    accumulate = {"*": "fp16", "gradient": "fp32", "2": {"activation": "exact"}, "0": {"gradient": "fp16"}}
    sim = fpsim.run(model, "fp16", accumulate)
    x, seed = torch.randn(9, 40), torch.randn(9, 30)
    with sim:
        y = sim(x)
        y.backward(seed)
    first, second = (parameter.detach().numpy() for parameter in sim.parameters())
    given, gradient = (item.numpy().astype(np.float16).astype(np.float32) for item in (x, seed))
    hidden = np.maximum(half_sums(given, first.T), 0)
    inner = np.where(hidden > 0, single_sums(gradient, second), np.float32(0))
    assert np.array_equal(y.detach().numpy(), exact_sums(hidden, second.T))
    assert np.array_equal(sim[2].weight.grad.numpy(), single_sums(gradient.T, hidden))
    assert np.array_equal(sim[0].weight.grad.numpy(), half_sums(inner.T, given))
    assert not np.array_equal(sim[0].weight.grad.numpy(), single_sums(inner.T, given))
    assert not np.array_equal(y.detach().numpy(), half_sums(hidden, second.T))
    by_hand = fpsim.matmul(given, np.ascontiguousarray(first.T), fmt="fp16", accumulate="fp16")
    assert np.array_equal(half_sums(given, first.T), by_hand)


#: Functions whose gradients depend on what they are given, not on what they give.
SUMS = {
    "linear": lambda a, b, c: functional.linear(a, b, c[:8]),
    "matrices": lambda a, b, c: torch.bmm(a.view(2, 3, 33), b[:4].view(2, 33, 2)),
    "with an addend": lambda a, b, c: torch.baddbmm(c[:2], a.view(2, 3, 33), b[:4].view(2, 33, 2), beta=0.5, alpha=3),
    "a batch at once": lambda a, b, c: torch.addbmm(c[:2], a.view(2, 3, 33), b[:4].view(2, 33, 2)),
    "vectors": lambda a, b, c: torch.dot(a[0], b[0]) + torch.mv(a, b[1]),
    "convolution": lambda a, b, c: functional.conv1d(a.view(2, 3, 33), b[:3].view(11, 3, 3), c[:11], stride=2),
    "transposed": lambda a, b, c: functional.conv_transpose1d(a.view(2, 3, 33), b[:3].reshape(3, 11, 3), c[:11]),
    "reductions": lambda a, b, c: a.sum(1) + b.mean() + c.sum(),
    "broadcasting": lambda a, b, c: a.unsqueeze(1) + b,
}


@pytest.mark.parametrize(("forward", "backward"), [("fp16", "fp32:pairwise"), ("exact", "fp16"), ("native", "bf16")])
@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_each_pass_is_that_of_its_accumulator(forward, backward, granularity):
    torch.manual_seed(1)
    given = [torch.randn(6, 33), torch.randn(8, 33), torch.randn(33)]

    def run(function, accumulate):
        leaves = [item.clone().requires_grad_() for item in given]
        with fpsim.emulate("fp16", accumulate, granularity=granularity):
            out = function(*leaves)
            out.backward(torch.ones(out.shape) * 0.3)
        return [out.detach()], [leaf.grad for leaf in leaves if leaf.grad is not None]

    differ = 0
    for function in SUMS.values():
        out, gradients = run(function, {"*": forward, "gradient": backward, "optimizer": "bf16"})
        assert same(out, run(function, forward)[0])
        assert same(gradients, run(function, backward)[1])
        differ += not same(gradients, run(function, forward)[1])
    assert differ > 2


def test_products_may_accumulate_apart_from_other_sums():
    a, b = torch.full((1, 300), 10.0), torch.ones(300, 1)
    with fpsim.emulate("fp16", {"*": "fp32", "product": "bf16"}):
        assert float(a @ b) == 2960 != float((a * 1).sum())
        assert float(a.sum()) == 3000
    with fpsim.emulate("fp16", {"product": "fp32", "*": {"activation": "bf16", "gradient": "bf16", "optimizer": "bf16"}}):
        assert float(a @ b) == 3000
        assert float(a.sum()) == 2960


def test_an_optimizer_sums_in_its_own_accumulator():
    weight = nn.Parameter(torch.zeros(300))
    sim = fpsim.run(nn.ParameterList([weight]), "fp32", {"*": "fp32", "optimizer": "exact"})
    with sim:
        sim[0].grad = torch.cat([torch.ones(1), torch.full((299,), 2.0**-13)])
        total = nn.utils.get_total_norm([sim[0].grad])
        alone = (torch.cat([torch.ones(1), torch.full((299,), 2.0**-25)])).sum()
    assert float(alone) == 1.0  # in the forward pass's chain
    assert float(total) == float(np.float32(np.sqrt(1 + 299 * 2.0**-26)))


# Rounding modes


def exact_model():
    """A model whose forward pass makes small integers, which every format holds."""
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 34, 33))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randint(-1, 2, parameter.shape))
    return model, torch.randint(-2, 3, (40, 2, 36)).float()


def step(model, x, targets, **policy):
    """What a step of training makes: (output, gradients, updated parameters)."""
    sim = fpsim.run(model, **policy)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9)
    scale = torch.full((33,), 2.0**-9)
    with sim:
        y = sim(x)
        y = y + torch.bmm(y.clamp(-2, 2).view(1, 40, 33), y[:33].clamp(-1, 1).view(1, 33, 33))[0]
        ((y * scale).square() * 0.5).sum(0).backward(targets)
        optimizer.step()
    return y.detach(), [p.grad for p in sim.parameters()], [p.detach() for p in sim.parameters()]


def test_what_an_operation_draws_does_not_depend_on_how_others_round():
    torch.manual_seed(0)
    model, x = exact_model()
    targets = torch.randn(33)
    nearest = step(model, x, targets, fmt="fp16")
    drawn = step(model, x, targets, fmt="fp16", rounding="stochastic", seed=5)
    assert same(drawn[:1], nearest[:1])
    assert not same(drawn[1], nearest[1])
    backward = step(model, x, targets, fmt="fp16", rounding={"*": "nearest-even", "gradient": "stochastic"}, seed=5)
    assert same(backward[1], drawn[1])
    others = {"*": "stochastic", "weight": "toward-zero", "activation": "nearest-even", "gradient": "stochastic"}
    everything_else = step(model, x, targets, fmt="fp16", rounding=others, seed=5)
    assert same(everything_else[1], drawn[1]) and same(everything_else[2], drawn[2])
    forward = step(model, x, targets, fmt="fp16", rounding={"*": "nearest-even", "activation": "stochastic"}, seed=5)
    assert same(forward[1], nearest[1])
    again = step(model, x, targets, fmt="fp16", rounding={"*": "nearest-even", "gradient": "stochastic"}, seed=6)
    assert not same(again[1], drawn[1])


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_an_optimizer_that_rounds_stochastically_loses_nothing_on_average(name):
    """Updates of an eighth of a quantum, of parameters in the middle of a binade."""
    options = {"SGD": {}, "AdamW": {"weight_decay": 0.0}}[name]
    for rounding, seed in (("nearest-even", None), ({"*": "nearest-even", "optimizer": "stochastic"}, 2)):
        sim = fpsim.run(nn.ParameterList([nn.Parameter(torch.full((4000,), 1.5))]), "bf16", rounding=rounding, seed=seed)
        optimizer = getattr(torch.optim, name)(sim.parameters(), lr=2.0**-10, **options)
        with sim:
            sim[0].grad = torch.ones(4000)
            optimizer.step()
        found = sim[0].detach()
        assert set(found.unique().tolist()) <= {1.5, 1.5 - 2.0**-7}
        moved = int((found != 1.5).sum())
        assert moved == 0 if seed is None else 380 < moved < 620  # 500 expected, within 5.7 standard deviations


def test_each_mode_rounds_to_the_format_of_its_role():
    """Everything toward zero but one role upwards: each of the roundings shows."""

    def found(up):
        layer = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            layer.weight.fill_(1 + 2.0**-12)
        fmt = {"*": "fp16", "weight": "fp32", "product": "e8m5"}
        sim = fpsim.run(layer, fmt, rounding={"*": "toward-zero", **({up: "up"} if up else {})})
        with sim:
            y = sim(torch.tensor([[1.0 + 2.0**-11]])) * (1 + 2.0**-9)  # a weight read in fp16 or e8m5, an input in fp16
            y.backward(torch.tensor([[1 + 2.0**-13]]))
            sim.weight.grad.mul_(1 + 2.0**-12)
        return float(y.detach()), float(sim.weight.grad)

    low = found(None)
    assert low == (1 + 2.0**-9, 1.0)
    assert found("weight") == low  # fp32 holds it
    assert found("product")[0] == (1 + 2.0**-5) * (1 + 2.0**-9) // 2.0**-10 * 2.0**-10
    assert found("activation")[0] > low[0]
    assert found("gradient")[0] == low[0] and found("gradient")[1] > 1.0
    assert found("optimizer") == (low[0], 1 + 2.0**-10)


def test_parameters_are_rounded_in_the_mode_of_weights():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1 + 2.0**-20)
    for module, expected in (("weight", 1 + 2.0**-10), ("activation", 1.0)):
        assert float(fpsim.run(layer, "fp16", rounding={"*": "nearest-even", module: "up"}).weight.detach()) == expected
    nested = nn.Sequential(layer, nn.Sequential(layer.__class__(1, 1, bias=False)))
    nested.load_state_dict({"0.weight": layer.weight, "1.0.weight": layer.weight})
    sim = fpsim.run(nested, "fp16", rounding={"*": "down", "1": "up"})
    assert [float(item.detach()) for item in sim.parameters()] == [1.0, 1 + 2.0**-10]


# What products read their factors in


def test_products_of_tf32_through_a_tensor_core_convert_as_the_hardware_does():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    fmt, x = {"*": "fp32", "product": "tf32"}, torch.tensor([[1024.5]])
    assert float(fpsim.run(layer, fmt, "a100")(x).detach()) == 1025  # ties away
    assert float(fpsim.run(layer, fmt, "fp32")(x).detach()) == 1024  # no hardware: to even, as everything else
    nearest = {"*": "nearest-even", "product": "nearest-even"}
    assert float(fpsim.run(layer, fmt, "a100", nearest)(x).detach()) == 1024
    assert float(fpsim.run(layer, {"*": "fp32"}, "fp32")(x).detach()) == 1024.5


def by_unit(a, b, addend=None):
    """The product of fp32 matrices through an A100's tf32 instruction, which other tests compare with the hardware.

    Half a quantum added to the magnitude's bits, the rest cut off: to nearest, ties away.
    """
    bits = [np.ascontiguousarray(item.detach().numpy()).view(np.uint32) for item in (a, b)]
    left, right = (((item + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32) for item in bits)
    return torch.from_numpy(fpsim.hardware.product(left, right, unit="a100", fmt="tf32", addend=addend))


def test_every_product_of_an_fp32_model_reads_tf32_and_gives_fp32():
    torch.manual_seed(0)
    layer, convolution, batch = nn.Linear(33, 5), nn.Conv2d(2, 3, 2, bias=False), torch.randn(2, 33, 4)
    x, image, other = torch.randn(4, 33), torch.randn(1, 2, 4, 4), torch.randn(2, 3, 33)
    leaves = [item.requires_grad_() for item in (x, image, other)]
    gradients = [torch.randn(4, 5), torch.randn(1, 3, 3, 3), torch.randn(2, 3, 4)]
    with fpsim.emulate({"*": "fp32", "product": "tf32"}, "a100"):
        ends = [layer(x), convolution(image), other @ batch]
        torch.autograd.backward(ends, gradients)
        scaled = x.detach() * 1.1
    assert torch.equal(scaled, x.detach() * 1.1)  # what is no product is fp32's
    weight = layer.weight
    assert torch.equal(ends[0], by_unit(x, weight.T, layer.bias.detach()))
    assert torch.equal(layer.bias.grad, sum_in_order(gradients[0]))
    assert torch.equal(weight.grad, by_unit(gradients[0].T, x))
    assert torch.equal(x.grad, by_unit(gradients[0], weight))
    patches = functional.unfold(image.detach(), 2)[0]  # (c kh kw, oh ow)
    assert torch.equal(ends[1].detach().flatten(2)[0], by_unit(convolution.weight.flatten(1), patches))
    assert torch.equal(convolution.weight.grad.flatten(1), by_unit(gradients[1].flatten(2)[0], patches.T))
    for k in range(2):
        assert torch.equal(ends[2][k], by_unit(other[k], batch[k]))
        assert torch.equal(other.grad[k], by_unit(gradients[2][k], batch[k].T))
    assert all(leaf.grad is not None for leaf in leaves)


def sum_in_order(x):
    total = torch.zeros(x.shape[1])
    for row in x:
        total = total + row
    return total


PRODUCTS = {
    "mm": lambda x: x(3, 4) @ x(4, 2),
    "mv": lambda x: x(3, 4) @ x(4),
    "dot": lambda x: torch.dot(x(4), x(4)),
    "vdot": lambda x: torch.vdot(x(4), x(4)),
    "inner": lambda x: torch.inner(x(3, 4), x(2, 4)),
    "bmm": lambda x: torch.bmm(x(2, 3, 4), x(2, 4, 2)),
    "addmm": lambda x: torch.addmm(x(3, 2), x(3, 4), x(4, 2)),
    "addmv": lambda x: torch.addmv(x(3), x(3, 4), x(4)),
    "baddbmm": lambda x: torch.baddbmm(x(2, 3, 2), x(2, 3, 4), x(2, 4, 2)),
    "addbmm": lambda x: torch.addbmm(x(3, 2), x(2, 3, 4), x(2, 4, 2)),
    "einsum": lambda x: torch.einsum("bi,oij,bj->bo", x(2, 3), x(4, 3, 5), x(2, 5)),
    "tensordot": lambda x: torch.tensordot(x(2, 3, 4), x(3, 4, 2)),
    "multi_dot": lambda x: torch.linalg.multi_dot([x(3, 4), x(4, 2), x(2, 3)]),
    "chain_matmul": lambda x: torch.chain_matmul(x(3, 4), x(4, 2)),
    "matrix_power": lambda x: torch.linalg.matrix_power(x(3, 3), 2),
    "cov": lambda x: torch.cov(x(3, 4)),
    "bilinear": lambda x: functional.bilinear(x(2, 3), x(2, 5), x(4, 3, 5)),
    "cdist": lambda x: torch.cdist(x(30, 3), x(30, 3)),
    "linear": lambda x: functional.linear(x(3), x(4, 3)),
    "conv1d": lambda x: functional.conv1d(x(1, 2, 5), x(3, 2, 2)),
    "conv_transpose2d": lambda x: functional.conv_transpose2d(x(1, 2, 3, 3), x(2, 3, 2, 2)),
    "attention": lambda x: functional.scaled_dot_product_attention(x(1, 1, 3, 4), x(1, 1, 3, 4), x(1, 1, 3, 4)),
    "sparse": lambda x: x(3, 4).to_sparse() @ x(4, 2),
    "sampled": lambda x: torch.sparse.sampled_addmm(x(3, 2).to_sparse_csr(), x(3, 4), x(4, 2)).values(),
    "grid": lambda x: functional.affine_grid(x(1, 2, 3), [1, 1, 2, 2]),
    "complex": lambda x: torch.view_as_real(torch.complex(x(2, 2), x(2, 2)) @ torch.complex(x(2, 2), x(2, 2))),
}
OTHERS = {
    "addr": lambda x: torch.addr(x(3, 4), x(3), x(4)),
    "outer": lambda x: torch.outer(x(3), x(4)),
    "kron": lambda x: torch.kron(x(2, 2), x(2, 2)),
    "einsum": lambda x: torch.einsum("i,j->ij", x(3), x(4)),
    "vecdot": lambda x: torch.linalg.vecdot(x(3, 4), x(3, 4)),
    "cross": lambda x: torch.linalg.cross(x(2, 3), x(2, 3)),
    "cdist": lambda x: torch.cdist(x(3, 3), x(4, 3)),
    "cosine_similarity": lambda x: functional.cosine_similarity(x(2, 3), x(2, 3)),
    "interpolate": lambda x: functional.interpolate(x(1, 1, 3, 3), scale_factor=2.0, mode="bilinear"),
}


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("call", [*PRODUCTS.items(), *OTHERS.items()], ids=lambda item: item[0])
def test_products_are_what_torch_gives_to_a_matrix_routine(call, granularity):
    """An operation is one where its result depends on what products read."""
    name, function = call
    found = []
    for product in ("fp32", "bf16"):
        generator = torch.Generator().manual_seed(3)
        with fpsim.emulate({"*": "fp32", "product": product}, "fp32", granularity=granularity):
            found.append(function(lambda *shape, g=generator: torch.randn(*shape, generator=g)))
    assert torch.equal(*found) == (OTHERS.get(name) is function)


def test_attention_reads_its_factors_as_other_products_do():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 8) for _ in range(3))
    with fpsim.emulate({"*": "fp32", "product": "tf32"}, "a100"):
        found = functional.scaled_dot_product_attention(q, k, v)
    scores = by_unit(q[0, 0], k[0, 0].T).double() * float(np.float32(8**-0.5))
    probabilities = torch.softmax(scores, -1).float()
    assert torch.equal(found[0, 0], by_unit(probabilities, v[0, 0]))


def test_a_product_format_is_left_where_modules_get_one_format_for_everything():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    x = torch.tensor([[1 + 2.0**-9]])
    assert float(fpsim.run(model, {"*": "fp32", "product": "e4m3fn"})(x).detach()) == 1
    assert float(fpsim.run(model, {"*": "fp32", "product": "e4m3fn", nn.Linear: "fp32"})(x).detach()) == 1 + 2.0**-9
    with pytest.raises(ValueError, match="the entry 'product': float8_e4m3fn has no effect"):
        fpsim.run(model, {"product": "e4m3fn", "*": "fp32"})
    with pytest.raises(ValueError, match=r"unit a100 has no instruction for fp32"):
        fpsim.run(model, {"*": "fp32"}, "a100")


# A policy is a value, and mistakes are refused


def test_a_policy_is_a_value_that_says_what_it_is():
    given = ("fp16", {"*": "fp16", "gradient": "fp32"}, {"*": "nearest-even", "optimizer": "stochastic"}, 3)
    policy = make_policy(*given)
    assert policy == make_policy(*given) and hash(policy) == hash(make_policy(*given))
    assert policy != make_policy("fp16", "fp16", *given[2:])
    assert pickle.loads(pickle.dumps(policy)) == policy
    text = "fmt=fp16, accumulate={'*': fp16, 'gradient': fp32}, rounding={'*': nearest-even, 'optimizer': stochastic}, seed=3"
    sim = fpsim.run(nn.Linear(2, 2), *given)
    assert str(policy).startswith(text) and text in repr(sim) and text in str(sim.report())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate": {}}, "accumulate: the mapping is empty"),
        ({"accumulate": {"*": "fp16", "gradients": "fp32"}}, "accumulate: 'gradients' is no role.*did you mean 'gradient'"),
        ({"accumulate": {"*": "fp16", "layer.*": "fp32"}}, "accumulate: 'layer.\\*' is no role .* names no module"),
        ({"accumulate": {"weight": "fp32", "*": "fp16"}}, "accumulate: there is no role 'weight', there are activation"),
        ({"accumulate": {"*": "fp61"}}, r"accumulate\['\*'\]: .*unknown format 'fp61'"),
        ({"accumulate": {"*": "fp32", "gradient": "int8"}}, r"accumulate\['gradient'\]: .*int8 holds no sums"),
        ({"accumulate": {"gradient": "fp32"}}, "accumulate: no accumulator for the role 'activation'"),
        ({"accumulate": {"0": "fp32", "*": "fp16"}}, "accumulate: the entry '0': fp32 has no effect"),
        ({"accumulate": {"*": {"gradient": None}}}, "None is no accumulator"),
        ({"accumulate": {"*": "a100"}, "fmt": "fp32"}, "unit a100 has no instruction for fp32"),
        ({"accumulate": {"*": "fp16"}, "fmt": "native"}, "accumulate: a mapping goes with named formats"),
        ({"rounding": {"*": "nearest"}}, r"rounding\['\*'\]: unknown rounding 'nearest'"),
        ({"rounding": {"*": "up", "gradient": {"activation": "odd"}}}, "is a role and takes one mode"),
        ({"rounding": {"*": "nearest-even", "optimizer": "stochastic"}}, 'rounding="stochastic" needs seed='),
        ({"rounding": {"*": "nearest-even", "optimizer": "up"}, "seed": 3}, "seed= is for"),
        ({"rounding": {"*": {"activations": "up"}}}, r"rounding\['\*'\]: there is no role 'activations'.*'activation'"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        fpsim.run(nn.Sequential(nn.Linear(2, 2)), **arguments)


def test_what_is_shared_has_one_mode():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    for roundings, accumulators, message in (
        ({"*": "nearest-even", "1": "up"}, None, "rounding: 0.weight and 1.weight are one tensor .* two weight modes"),
        ("nearest-even", {"*": "fp32", "1": "fp16"}, "accumulate: .* would have two optimizer accumulators, fp32 and fp16"),
    ):
        with pytest.raises(ValueError, match=message):
            fpsim.run(tied, "fp16", accumulators, roundings)
    fpsim.run(tied, "fp16", {"*": "fp32", "1": {"activation": "fp16"}})


# The command line, and certificates


def run_script(tmp_path, *words):
    path = tmp_path / "script.py"
    path.write_text("import torch\nx = torch.full((1, 300), 10.0)\nprint((x @ torch.ones(300, 1)).item())")
    result = CliRunner().invoke(main, ("run", str(path), *words))
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_takes_mappings_as_json(tmp_path):
    accumulate, rounding = {"*": "bf16", "gradient": "fp32"}, {"*": "nearest-even", "gradient": "stochastic"}
    words = ("--accumulate", json.dumps(accumulate), "--rounding", json.dumps(rounding), "--seed", "1")
    code, out, error = run_script(tmp_path, "--fmt", '{"*": "fp16", "weight": "fp32"}', *words)
    assert (code, out) == (0, "2960.0\n")
    assert "accumulate={'*': bf16, 'gradient': fp32}, rounding={'*': nearest-even, 'gradient': stochastic}" in error
    for given, message in (
        ('{"*": "fp16", "*": "bf16"}', "'*' stands twice"),
        ('{"*": "fp16"', "is no JSON object"),
        ('{"*": "fp16", "head": "bf16"}', "'head' names modules, and there is no model here"),
        ('{"*": 3}', "a format is a name"),
    ):
        code, _, error = run_script(tmp_path, "--fmt", given)
        assert code == 2 and message in error and error.count("\n") == 1


def test_a_certificate_is_of_the_forward_pass():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval(), torch.randn(2, 8)
    for own, rounding, seed in (("nearest-even", {"*": "nearest-even", "optimizer": "stochastic"}, 2), ("stochastic", None, 4)):
        rounding = rounding or {"*": own, "gradient": "odd"}
        found = fpsim.certify(model, x, "fp16", {"*": "fp16", "gradient": "fp32"}, rounding, seed=seed)
        plain = fpsim.certify(model, x, "fp16", "fp16", own, seed=seed if own == "stochastic" else None)
        assert torch.equal(found.logits, plain.logits) and torch.equal(found.bound, plain.bound)
        assert "accumulate={'*': fp16, 'gradient': fp32}" in str(found)
    for arguments in ({"fmt": {"*": "fp16", "2": "bf16"}}, {"accumulate": {"*": "fp16", "2": "fp32"}}):
        with pytest.raises(ValueError, match="certify: the forward pass has several"):
            fpsim.certify(model, x, **arguments)
