"""Parts of a model in a format, the rest as torch has it: the border is crossed exactly, each way."""

import pytest
import torch
from torch import nn

import fpsim
from fpsim.emulation import OutsideContext
from fpsim.emulation.dispatch import switches

FORMATS = {"*": "native", "encoder.*": "fp16"}


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 5)
        self.encoder = nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7))})
        self.head = nn.Sequential(nn.GELU(), nn.Linear(7, 3), nn.LogSoftmax(-1))

    def forward(self, x):
        return self.head(self.encoder["body"](self.stem(x)))


@pytest.fixture
def plain():
    """Torch under the switches that an emulation sets."""
    switches.enter()
    yield
    switches.leave()


def inputs():
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


def in_pieces(x, g, **options):
    """The network by hand: stem and head by torch, the body as a simulation of its own."""
    net = Network()
    body = fpsim.run(net.encoder["body"], "fp16", **options)
    first = net.stem(x)
    entering = first.detach().requires_grad_()
    middle = body(entering)
    leaving = middle.detach().requires_grad_()
    output = net.head(leaving)
    output.backward(g)
    with body:
        middle.backward(leaving.grad)
    first.backward(entering.grad)
    return output.detach(), {**{f"stem.{name}": item.grad for name, item in net.stem.named_parameters()},
                             **{f"encoder.body.{name}": item.grad for name, item in body.named_parameters()},
                             **{f"head.{name}": item.grad for name, item in net.head.named_parameters()}}  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"accumulate": "fp16"}, {"granularity": "primitive"}], ids=str)
def test_native_modules_are_torch_and_the_others_the_machine(plain, options):
    x, g = inputs(), torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    sim = fpsim.run(Network(), FORMATS, **options)
    with sim:
        output = sim(x)
        output.backward(g)
    expected, gradients = in_pieces(x, g, **options)
    assert torch.equal(output, expected)
    for name, parameter in sim.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name
        if name.startswith("encoder"):
            assert torch.equal(parameter, parameter.half().float())
            assert torch.equal(parameter.grad, parameter.grad.half().float())
    assert not torch.equal(sim.head[1].weight, sim.head[1].weight.half().float())


@pytest.mark.parametrize("default", ["native", "fp16"])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_updates_are_those_of_the_module_that_holds_the_parameter(plain, optimizer, foreach, default):
    formats = FORMATS if default == "native" else {"*": "fp16", "stem": "native", "head": "native"}
    options = {"foreach": foreach, "lr": 0.03, **({"momentum": 0.9} if optimizer is torch.optim.SGD else {"eps": 1e-3})}
    sim = fpsim.run(Network(), formats)
    stepper, mirrors = optimizer(sim.parameters(), **options), {}
    for name, parameter in sim.named_parameters():
        mirrors[name] = parameter.detach().clone().requires_grad_()
    steppers = [optimizer([item for name, item in mirrors.items() if name.startswith("encoder") == inside], **options)
                for inside in (False, True)]  # fmt: skip
    for _ in range(3):
        with sim:
            stepper.zero_grad()
            sim(inputs()).square().sum().backward()
            stepper.step()
        for name, parameter in sim.named_parameters():
            mirrors[name].grad = parameter.grad.clone()
        steppers[0].step()
        with fpsim.emulate("fp16"):
            steppers[1].step()
        for name, parameter in sim.named_parameters():
            assert torch.equal(parameter, mirrors[name]), name


def test_state_has_the_format_of_its_module_in_every_context():
    sim = fpsim.run(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), {"*": "fp16", "1": {"optimizer": "fp32"}})
    stepper = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9, foreach=False)
    for _ in range(2):
        with sim:
            stepper.zero_grad()
            sim(torch.ones(2, 3) / 3).square().sum().backward()
            stepper.step()
    narrow, wide = (stepper.state[layer.weight]["momentum_buffer"] for layer in (sim[0], sim[1]))
    assert torch.equal(narrow, narrow.half().float()) and not torch.equal(wide, wide.half().float())


def test_half_tensors_and_what_has_no_rule_in_native_modules():
    class Odd(nn.Module):
        def forward(self, x):
            small = x.bfloat16() * 3
            return torch.complex(x, x).var() + small.float().sum() + torch.fft.rfft(x).real.sum()

    x = torch.randn(4, 5)
    sim = fpsim.run(nn.Sequential(nn.Linear(5, 5), Odd()), {"*": "fp16", "1": "native"})
    middle = fpsim.run(sim.model[0], "fp16")(x).detach()
    assert torch.equal(sim(x), Odd()(middle))
    with pytest.raises(fpsim.UnsupportedOp):
        fpsim.run(nn.Sequential(nn.Linear(5, 5), Odd()), {"*": "native", "1": "fp16"})(x)


def test_native_is_of_whole_modules():
    mixed = {"*": "native", "weight": "fp16"}, {"*": "fp16", "0": {"activation": "native"}}, {"*": "fp16", "weight": "native"}
    for formats in mixed:
        with pytest.raises(ValueError, match="all roles"):
            fpsim.run(nn.Sequential(nn.Linear(2, 2)), formats)
    assert "encoder" in repr(fpsim.run(Network(), FORMATS)) and "native" in repr(fpsim.run(Network(), FORMATS))


# A simulation as a module of a plain network


@pytest.mark.parametrize("options", [{}, {"accumulate": "fp16"}, {"granularity": "primitive"}], ids=str)
def test_a_simulation_inside_a_plain_network_is_emulated_in_both_passes(plain, options):
    x, g = inputs(), torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    net = Network()
    net.encoder["body"] = fpsim.run(net.encoder["body"], "fp16", **options)
    output = net(x)
    output.backward(g)
    expected, gradients = in_pieces(x, g, **options)
    assert torch.equal(output, expected)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name


class Around(nn.Module):
    def __init__(self, sim):
        super().__init__()
        self.sim = sim

    def forward(self, x):
        first = self.sim({"x": x, "scale": 2})
        return self.sim({"x": first["y"], "scale": 1})["y"] + first["label"]


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layer = nn.Linear(4, 4)

    def forward(self, given):
        return {"y": self.layer(given["x"]) * given["scale"], "label": 0.5, "count": torch.tensor(3)}


def test_calls_of_one_simulation_add_up_and_structures_pass():
    x, inner = torch.ones(2, 4) / 3, Inner()
    net = Around(fpsim.run(inner, "fp16"))
    output = net(x)  # nothing that enters asks for a gradient
    for _ in range(2):
        output.sum().backward(retain_graph=True)
    twin = fpsim.run(inner, "fp16")
    with twin:
        first = twin({"x": x, "scale": 2})["y"]
        middle = first.detach().requires_grad_()
        wanted = twin({"x": middle, "scale": 1})["y"]
        for _ in range(2):
            middle.grad = None
            wanted.backward(torch.ones_like(wanted), retain_graph=True)
            first.backward(middle.grad, retain_graph=True)
    assert torch.equal(output, wanted.detach() + 0.5)
    for own, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(own.grad, other.grad)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"once_differentiable|does not require grad"):
        gradient.sum().backward()


def test_alone_it_still_has_its_context():
    sim = fpsim.run(Inner(), "fp16")
    with pytest.raises(OutsideContext):
        sim({"x": torch.ones(1, 4), "scale": 1})["y"].sum().backward()
    net = Around(sim)
    with pytest.raises(OutsideContext, match=r"float32; call it inside"):
        torch.optim.SGD(net.parameters(), lr=0.1).step()
    with pytest.raises(OutsideContext, match="an optimizer of their own"):
        torch.optim.SGD([*net.parameters(), nn.Parameter(torch.ones(2))], lr=0.1).step()
    with torch.no_grad():
        assert torch.equal(net(torch.ones(1, 4)), net(torch.ones(1, 4)))
