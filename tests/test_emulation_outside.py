"""A graph that was made under emulation, with or without a module, is not differentiated outside it; others are."""

import gc

import pytest
import torch
import torch.nn.functional as functional
from torch.utils.checkpoint import checkpoint

import fpsim
from fpsim.emulation import OutsideContext
from fpsim.emulation.dispatch.context import Emulation


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2


@torch.jit.script
def scripted(x, w):
    return (x * w + w).sum()


def assigned(x, w):
    result = torch.zeros(4)
    result[:2] = x[:2] * 3
    return result


GRAPHS = {
    "mul": lambda x, w: x * w,
    "sum": lambda x, w: x.sum(),  # saves no tensor for its gradient
    "mean": lambda x, w: x.mean(),
    "view": lambda x, w: (x * w).view(2, 2),
    "chunk": lambda x, w: (x * w).chunk(2)[0],
    "unbind": lambda x, w: torch.stack([x, w]).unbind()[1],
    "function": lambda x, w: Double.apply(x),
    "function, view": lambda x, w: Double.apply(x).view(2, 2),
    "in place": lambda x, w: torch.zeros(4).mul_(x),
    "assigned": assigned,
    "scripted": scripted,
    "checkpoint": lambda x, w: checkpoint(lambda a: a * w, x, use_reentrant=False),
    "reentrant checkpoint": lambda x, w: checkpoint(lambda a: a * w, x, use_reentrant=True),
    "norm": lambda x, w: functional.layer_norm(x, (4,), w),
    "attention": lambda x, w: functional.scaled_dot_product_attention(*(item.view(1, 2, 2) for item in (x, w, x))),
    "vmap": lambda x, w: torch.func.vmap(lambda a: a * w)(x.view(2, 2).repeat(1, 2)),
    "gradient": lambda x, w: torch.autograd.grad((x * x * w).sum(), x, create_graph=True)[0],
    "linalg": lambda x, w: torch.linalg.inv(x.view(2, 2)),
}
MACHINES = {"fp16": "fp16", "native": "native", "mapping": {"*": "fp16", "gradient": "e5m2"}}


def leaves():
    torch.manual_seed(0)
    return torch.randn(4, requires_grad=True), torch.randn(4, requires_grad=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("graph", GRAPHS)
def test_backward_outside_raises_and_inside_works(graph, machine):
    fmt, (x, w) = MACHINES[machine], leaves()
    with fpsim.emulate(fmt):
        result = GRAPHS[graph](x, w)
    gc.collect()
    for then in (lambda y: y, lambda y: y * 2, lambda y: y.reshape(-1)[:1]):  # also what is made of it outside
        for differentiate in (torch.Tensor.backward, lambda root, ones: torch.autograd.grad(root, x, ones)):
            root = then(result)
            with pytest.raises(OutsideContext, match=r"inside `with sim:` or the block of `fpsim\.emulate`"):
                differentiate(root, torch.ones_like(root))
    assert x.grad is None
    with fpsim.emulate(fmt):
        result = GRAPHS[graph](x, w)
        result.backward(torch.ones_like(result), retain_graph=True)
        result.backward(torch.ones_like(result))
    assert x.grad is not None


def test_a_graph_may_be_differentiated_in_a_later_block():
    x, w = leaves()
    with fpsim.emulate("fp16"):
        result = (x * w).sum()
    with fpsim.emulate("fp16"):
        result.backward()
    assert torch.equal(x.grad, w.half().float())
    with fpsim.emulate("fp16"):
        result = (x * w).sum()
    with fpsim.emulate("bf16"), pytest.raises(OutsideContext):
        result.backward()


@pytest.mark.parametrize("machine", MACHINES)
def test_graphs_from_outside_are_left_alone(machine):
    x, w = leaves()
    before, changed = x * w, x + w
    kept = torch.ones(4)
    with fpsim.emulate(MACHINES[machine]):
        inner = x * w
        made = torch.randn(4, requires_grad=True)
        with torch.no_grad():
            kept += w
            made.mul_(2)
            changed.clamp_(max=0.5)  # in place: its graph is the one that it had
            view = changed.view(2, 2)
        inner.sum().backward()
    for root in (before, changed, x * w, inner.detach() * x, kept * x, made * x, view * x.view(2, 2)):
        root.sum().backward(retain_graph=True)
    middle = x * w
    with fpsim.emulate(MACHINES[machine]):
        inner = middle * w
    (middle * inner.detach()).sum().backward()  # through a node that an emulated one follows
    gradient, = torch.autograd.grad((x**3).sum(), x, create_graph=True)
    gradient.sum().backward()


def test_what_needs_no_gradient_from_inside_is_not_asked_for_one():
    x, w = leaves()
    with fpsim.emulate("fp16"):
        inner = x * 2
    result = (inner * w).sum()
    assert torch.equal(torch.autograd.grad(result, w, retain_graph=True)[0], inner)
    assert torch.equal(torch.autograd.grad(result, inner, retain_graph=True)[0], w)
    with pytest.raises(OutsideContext):
        result.backward()


def test_features_of_a_model_are_guarded():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2)).requires_grad_(False)
    features = []
    sim = fpsim.run(model, "fp16", inplace=True)
    model[1].register_forward_hook(lambda module, inputs, output: features.append(output))
    sim(torch.ones(2, 4, requires_grad=True))
    with pytest.raises(OutsideContext):
        features[0].sum().backward()
    with sim:
        loss = functional.mse_loss(sim(torch.ones(2, 4, requires_grad=True)), torch.zeros(2, 2))
    with pytest.raises(OutsideContext):
        loss.backward()


def test_hooks_are_of_nodes_not_of_tensors(tmp_path, recwarn):
    x, w = leaves()
    with fpsim.emulate("fp16"):
        result = x * w
    torch.save(result, tmp_path / "result.pt")  # torch warns of hooks that it does not save
    assert not recwarn.list and not result._backward_hooks


def test_references_do_not_pile_up():
    emulation = Emulation(fpsim.emulation.machine.policy.make_policy("fp16"))
    with emulation, torch.no_grad():
        kept = [torch.ones(1) * i for i in range(3000)]
        for _ in range(20_000):
            torch.ones(1)
        assert len(kept) <= len(emulation.machine.results._references) <= 2 * 3000 + 4096
    assert not emulation.machine.results._references
