"""Stochastic certificates bound the run that they name: draw for draw the first pass of `run` with that seed."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fpsim
from fpsim.emulation.certification.methods import METHODS


class Gated(nn.Module):
    """An input that is read twice, a tensor and numbers that are no parameters, views of the input before it is read."""

    def __init__(self):
        super().__init__()
        self.value, self.gate, self.last = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)
        self.scale = torch.linspace(-1, 1, 8)

    def forward(self, x):
        x = x.flatten(1).unsqueeze(0).squeeze(0)
        hidden = torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)) * self.scale.to(x.dtype)
        return self.last(hidden + 0.1) * 1.7 + x[:, :4] + torch.tensor(0.3).to(x.dtype)


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Averaged(nn.Module):
    """What a transformer has beside attention, on (n, length, 6)."""

    def __init__(self):
        super().__init__()
        block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.blocks = nn.Sequential(Residual(block), Residual(nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))))
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.blocks(x).transpose(1, 2).mean(2))


class Tokens(nn.Module):
    """Integers beside numbers, and a function of torch outside any submodule."""

    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 6), nn.Linear(6, 4)

    def forward(self, tokens, x):
        return F.linear(self.table(tokens).mean(1) + x, self.head.weight, self.head.bias).softmax(-1)


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.first(x).relu_().detach())


def convolutional():
    first = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    return nn.Sequential(first, nn.Conv2d(3, 4, 3, groups=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Flatten(), nn.Linear(4, 4))


NETWORKS = {
    "linear": (lambda: nn.Linear(6, 4), [(5, 6)]),
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Sequential(nn.ReLU(), nn.Linear(16, 4))), [(5, 6)]),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 4)), [(3, 2, 3)]),
    "strided": (lambda: nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 4)), [(3, 1, 6)]),
    "convolution": (convolutional, [(2, 1, 6, 6)]),
    "gated": (Gated, [(4, 2, 3)]),
    "transformer": (Averaged, [(2, 3, 6)]),
    "two inputs": (Tokens, [(3, 2), (3, 6)]),
    "detached": (Detached, [(4, 6)]),
}  # fmt: skip
MACHINES = [("fp16", "fp16"), ("bf16", "fp32"), ("bf16", "fp16:pairwise"), ("float8_e5m2", "fp32:lanes(2)")]


def example(name, seed):
    torch.manual_seed(seed)
    make, shapes = NETWORKS[name]
    model = make().eval()
    inputs = tuple(map(torch.randn, shapes))
    if name == "two inputs":
        inputs = (torch.randint(7, shapes[0]), inputs[1])
    return model, inputs


def in_float64(model, inputs):
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if isinstance(module, Gated):
            module.scale = module.scale.double()
    with torch.no_grad():
        return wide(*(item.double() if item.is_floating_point() else item for item in inputs))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_stochastic_certificate_bounds_the_run_with_its_seed(name, method):
    """a-priori bounds every run, that one too; it holds for every logit, but at a confidence of 0.999 nearly always.

    2^-45 is for what is computed here in float64.
    """
    for seed, (fmt, accumulate) in enumerate(MACHINES):
        model, inputs = example(name, seed)
        exact = in_float64(model, inputs)
        for gradients in (True, False) if seed == 0 else (True,):  # torch takes other operations where it needs no gradients
            with torch.set_grad_enabled(gradients):
                certificate = fpsim.certify(model, inputs, fmt, accumulate, "stochastic", method, seed=seed)
                logits = fpsim.run(model, fmt, accumulate, "stochastic", seed)(*inputs).detach().double()
            if method != "a-priori":
                assert torch.equal(certificate.logits, logits), (fmt, accumulate, gradients)
            assert bool(((logits - exact).abs() <= certificate.bound + 2.0**-45).all()), (fmt, accumulate, gradients)


def test_the_draws_are_those_inside_the_context_too():
    model, inputs = example("gated", 0)
    certificate = fpsim.certify(model, inputs, "bf16", "bf16", "stochastic", seed=11)
    simulation = fpsim.run(model, "bf16", "bf16", "stochastic", 11)
    with simulation:
        logits = simulation(*inputs)
    assert torch.equal(certificate.logits, logits.detach().double())


def test_of_several_inputs_the_bounds_are_those_of_the_batch():
    """The draws of an input depend on its place in the batch: an input certified alone is another run."""
    model, (x,) = example("mlp", 0)
    for method in ("mean-value", "probabilistic"):
        together = fpsim.certify(model, x, "bf16", "bf16", "stochastic", method, seed=1)
        alone = fpsim.certify(model, x[1:2], "bf16", "bf16", "stochastic", method, seed=1)
        assert not torch.equal(together.logits[1:2], alone.logits)
        assert torch.allclose(together.bound[1:2], alone.bound, rtol=1)  # other draws, but no other factors


@pytest.mark.parametrize("method", METHODS)
def test_what_detach_hides_from_autograd_is_bounded_all_the_same(method):
    torch.manual_seed(3)
    for _ in range(5):
        model, x = Detached().eval(), torch.randn(4, 6)
        exact = in_float64(model, (x,))
        certificate = fpsim.certify(model, x, "bf16", "fp32", method=method)
        assert bool(((fpsim.run(model, "bf16", "fp32")(x).double() - exact).abs() <= certificate.bound).all())


def test_a_tensor_that_is_no_parameter_is_bounded_as_the_run_reads_it():
    """A lone number that fills saturates: certified values are the run's."""

    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.last = torch.tensor(-1e9), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(x) + torch.where(torch.tensor([True, False, True, True]), x, self.low).clamp(-1, 1)

    model, x = Masked().eval(), torch.randn(2, 4)
    for rounding, seed in (("nearest-even", None), ("stochastic", 4)):
        certificate = fpsim.certify(model, x, "fp16", "fp16", rounding, "running", seed=seed)
        assert torch.equal(certificate.logits, fpsim.run(model, "fp16", "fp16", rounding, seed)(x).detach().double())
