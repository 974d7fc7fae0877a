"""Ten ways in which training breaks in a narrow format, each planted: what is run, and what its first event must say."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

import fpsim


@dataclass
class Fault:
    """`run(fmt)` gives the simulation after it broke; formats are those in which it can."""

    run: object
    kind: str
    module: str
    operation: str
    phase: str
    says: tuple
    step: int = 0
    formats: tuple = ("fp16", "bf16", "e4m3")
    chain: tuple = field(default=())


def simulate(model, fmt, **how):
    return fpsim.run(model, fmt, observe="events", **how)


def identities(count, size=4):
    layers = [nn.Linear(size, size, bias=False) for _ in range(count)]
    for layer in layers:
        nn.init.eye_(layer.weight)
    return nn.Sequential(*layers)


def layer_overflows(fmt):
    sim = simulate(identities(5), fmt)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.0)
    largest = fpsim.get_format(fmt).max_finite
    with sim:
        for step in range(8):
            if step == 5:
                with torch.no_grad():
                    sim[3].weight.mul_(2)
            sim(torch.full((2, 4), 0.75 * largest))
            optimizer.step()
    return sim


class Attention(nn.Module):
    def __init__(self, mask=None):
        super().__init__()
        self.mask = mask

    def forward(self, q, k):
        scores = q @ k.T
        scores = scores / 8.0
        if self.mask is not None:
            scores = scores.masked_fill(self.mask, -torch.inf)
        return torch.softmax(scores, dim=-1)


def scores_overflow(fmt):
    sim = simulate(nn.Sequential(), fmt)
    sim.model.attention = Attention()
    magnitude = 2.0 ** math.floor(math.log2(fpsim.get_format(fmt).max_finite) / 2)
    q = torch.full((3, 64), magnitude)
    with sim:
        sim.model.attention(q, q)
    return sim


def epsilon_is_zero(fmt):
    model = nn.Linear(2, 1, bias=False)
    sim = simulate(model, fmt)
    optimizer = torch.optim.Adam(sim.parameters(), lr=2.0**-4, betas=(0.5, 0.5), eps=1e-42)
    with sim:
        sim(torch.tensor([[1.0, 0.0]])).sum().backward()
        optimizer.step()
    return sim


def row_is_masked(fmt):
    mask = torch.tensor([[False, True], [True, True]])
    sim = simulate(Attention(mask), fmt)
    with sim:
        sim(torch.ones(2, 4), torch.ones(2, 4))
    return sim


def bias_gradient_is_swamped(fmt):
    sim = simulate(nn.Linear(1, 1), fmt, accumulate=fmt)
    with sim:
        sim(torch.zeros(4096, 1)).backward(torch.ones(4096, 1))
    return sim


def weight_stops(fmt):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    sim = simulate(model, fmt)
    optimizer = torch.optim.SGD(sim.parameters(), lr=2.0**-10)
    with sim:
        for _ in range(2):
            sim(torch.full((1, 2), 0.25)).sum().backward()
            optimizer.step()
    return sim


class Decayed(torch.optim.Optimizer):
    """Plain steps with a decay beside them, as AdamW has it."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - 1e-4)
                parameter.add_(parameter.grad, alpha=-0.25)


def decay_is_lost(fmt):
    model = nn.Linear(2, 2, bias=False)
    nn.init.ones_(model.weight)
    sim = simulate(model, fmt)
    optimizer = Decayed(sim.parameters())
    with sim:
        sim(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return sim


def statistics_stand_still(fmt):
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(2, momentum=1e-4))
    model[1].running_mean.fill_(1.0)
    sim = simulate(model, fmt)
    with sim:
        sim(torch.tensor([[0.0, 1.0], [3.0, 2.0]]))
    return sim


def loss_underflows(fmt):
    torch.manual_seed(0)  # a loss that is 0 before it is scaled underflows nowhere
    sim = simulate(nn.Linear(2, 1), fmt)
    scale = fpsim.get_format(fmt).min_subnormal / 8
    with sim:
        loss = F.mse_loss(sim(torch.ones(4, 2)), torch.ones(4, 1).mul(0.25))
        loss = loss * scale
        loss.backward()
    return sim


def embedding_gradient_stops(fmt):
    sim = simulate(nn.Embedding(3, 2), fmt, accumulate=fmt)
    with sim:
        sim(torch.ones(4096, dtype=torch.long)).backward(torch.ones(4096, 2))
    return sim


FAULTS = {
    "a layer overflows": Fault(
        layer_overflows, "overflow", "3", "mm", "forward", ("mat2[0, 0] = 2", "exactly"), step=5, chain=("2",)
    ),
    "scores overflow before their scale": Fault(
        scores_overflow, "overflow", "attention", "mm", "forward", ("a sum of 64 products", "scores = q @ k.T")
    ),
    "an epsilon is zero": Fault(
        epsilon_is_zero, "nonfinite", "Linear", "addcdiv_", "optimizer",
        ("tensor1 = 0", "tensor2 = 0", "became nan", "optimizer.step()"),
    ),
    "a row is masked": Fault(
        row_is_masked, "nonfinite", "Attention", "_softmax", "forward", ("became nan", "return torch.softmax")
    ),
    "a bias gradient is swamped": Fault(
        bias_gradient_is_swamped, "swamped", "Linear", "sum.dim_IntList", "backward", ("additions inside", "exactly 4096")
    ),
    "a weight stops": Fault(
        weight_stops, "stopped", "0", "add_.Tensor", "optimizer", ("0.weight", "4 of 4", "optimizer.step()")
    ),
    "a decay is lost": Fault(decay_is_lost, "decay-lost", "Linear", "mul_.Tensor", "optimizer", ("weight", "4 of 4", "decay")),
    "statistics stand still": Fault(
        statistics_stand_still, "stale-statistic", "1", "native_batch_norm", "forward",
        ("momentum = 0.0001", "running_mean = 1", "became 1 "),
    ),
    "a loss underflows": Fault(
        loss_underflows, "loss-underflow", "", "mul.Tensor", "forward", ("loss = loss * scale", "became 0 ")
    ),
    "an embedding's gradient stops": Fault(
        embedding_gradient_stops, "swamped", "Embedding", "embedding_dense_backward", "backward", ("exactly 4096",)
    ),
}  # fmt: skip
