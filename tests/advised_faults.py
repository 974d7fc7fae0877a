"""The planted faults as `advise` takes them: for each a model, batches, a step, what makes an optimizer, and an arithmetic."""

import math

import torch
from torch import nn
from torch.nn import functional as F

import fpsim
from tests.planted_faults import Attention, Decayed, identities


def layer_overflows(fmt):
    def step(model, x, grows):
        if grows:
            with torch.no_grad():
                model[3].weight.mul_(2)
        return model(x)

    x = torch.full((2, 4), 0.75 * fpsim.get_format(fmt).max_finite)
    return {"model": identities(5), "data": [(x, number == 5) for number in range(8)], "step": step}


def scores_overflow(fmt):
    model = nn.Sequential()
    model.attention = Attention()
    q = torch.full((3, 64), 2.0 ** math.floor(math.log2(fpsim.get_format(fmt).max_finite) / 2))
    return {"model": model, "data": [(q, q)], "step": lambda model, q, k: model.attention(q, k)}


def epsilon_is_zero(fmt):
    return {
        "model": nn.Linear(2, 1, bias=False),
        "data": [torch.tensor([[1.0, 0.0]])] * 2,
        "step": lambda model, x: model(x).sum(),
        "optimizer": lambda parameters: torch.optim.Adam(parameters, lr=2.0**-4, betas=(0.5, 0.5), eps=1e-42),
    }


def row_is_masked(fmt):
    mask = torch.tensor([[False, True], [True, True]])
    return {"model": Attention(mask), "data": [(torch.ones(2, 4),) * 2], "step": lambda model, q, k: model(q, k)}


def bias_gradient_is_swamped(fmt):
    return {
        "model": nn.Linear(1, 1),
        "data": [torch.zeros(4096, 1)],
        "step": lambda model, x: (model(x) * 2.0**-6).sum(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=2.0**-6),
        "accumulate": fmt,
    }


def weight_stops(fmt):
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    nn.init.ones_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    return {
        "model": model,
        "data": [torch.full((1, 2), 0.25)] * {"fp16": 16, "bf16": 32, "e4m3": 2}[fmt],
        "steps": 64,
        "step": lambda model, x: model(x).sum(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=2.0**-10),
    }


def decay_is_lost(fmt):
    model = nn.Linear(2, 2, bias=False)
    nn.init.ones_(model.weight)
    signs = [torch.ones(1, 2), -torch.ones(1, 2)] * 8
    return {"model": model, "data": signs, "step": lambda model, x: model(x).sum(), "optimizer": Decayed}


def statistics_stand_still(fmt):
    model = nn.Sequential(nn.Identity(), nn.BatchNorm1d(2, momentum=1e-4))
    model[1].running_mean.fill_(1.0)
    x = torch.tensor([[0.0, 1.0], [3.0, 2.0]])
    return {"model": model, "data": [x] * 48, "steps": 48, "step": lambda model, x: model(x)}


def loss_underflows(fmt):
    scale = fpsim.get_format(fmt).min_subnormal / 8

    def step(model, x, target):
        loss = F.mse_loss(model(x), target)
        return loss * scale

    return {
        "model": nn.Linear(2, 1),
        "data": [(torch.ones(4, 2), torch.ones(4, 1).mul(0.25))],
        "step": step,
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=min(1 / scale / 16, 2.0**126)),
    }


def embedding_gradient_stops(fmt):
    return {
        "model": nn.Embedding(3, 2),
        "data": [torch.ones(4096, dtype=torch.long)],
        "step": lambda model, x: (model(x) * 2.0**-6).sum(),
        "optimizer": lambda parameters: torch.optim.SGD(parameters, lr=2.0**-6),
        "accumulate": fmt,
    }


#: By the names of `planted_faults.FAULTS`.
ADVISED = {
    "a layer overflows": layer_overflows,
    "scores overflow before their scale": scores_overflow,
    "an epsilon is zero": epsilon_is_zero,
    "a row is masked": row_is_masked,
    "a bias gradient is swamped": bias_gradient_is_swamped,
    "a weight stops": weight_stops,
    "a decay is lost": decay_is_lost,
    "statistics stand still": statistics_stand_still,
    "a loss underflows": loss_underflows,
    "an embedding's gradient stops": embedding_gradient_stops,
}
