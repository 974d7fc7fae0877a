"""Decay that an optimizer adds to the gradient, and that leaves it as it is, is lost as decay beside the step is."""

import numpy as np
import pytest
import torch
from torch import nn

import fpsim

OPTIMIZERS = {
    "SGD": lambda parameters, **how: torch.optim.SGD(parameters, lr=0.25, **how),
    "Adam": lambda parameters, **how: torch.optim.Adam(parameters, lr=2.0**-4, eps=1e-4, **how),
    "RMSprop": lambda parameters, **how: torch.optim.RMSprop(parameters, lr=2.0**-6, **how),
    "Adagrad": lambda parameters, **how: torch.optim.Adagrad(parameters, lr=2.0**-4, **how),
    "NAdam": lambda parameters, **how: torch.optim.NAdam(parameters, lr=2.0**-4, **how),
}


def events_after(make, gradient, decay, rounding="nearest-even", weight=1.0, granularity="kernel", **how):
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model[0].weight, weight)
    seed = 0 if rounding == "stochastic" else None
    sim = fpsim.run(model, "bf16", observe="events", rounding=rounding, seed=seed, granularity=granularity)
    optimizer = make(sim.parameters(), weight_decay=decay, **how)
    with sim:
        sim[0].weight.grad = torch.full((4, 4), gradient)
        optimizer.step()
    return sim.report().events


#: In steps, a fused optimizer adds as torch's loop does.
WAYS = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True, "granularity": "primitive"}}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_that_leaves_its_gradient_as_it_is_is_lost(name, way):
    """2^-9 is half an ulp of 1, to even; 2^-8 is seen, and 2^-9 of a smaller gradient."""
    if way == "fused" and name not in ("SGD", "Adam", "Adagrad"):
        return
    (event,) = events_after(OPTIMIZERS[name], 1.0, 2.0**-9, **WAYS[way])
    assert (event.kind, event.module, event.phase, event.count) == ("decay-lost", "0", "optimizer", 16)
    assert event.operation.startswith("_foreach_add" if way == "foreach" else "add") and event.place.text == "optimizer.step()"
    assert "the decay of 0.weight was added to its gradient" in event.text and dict(event.operands)["0.weight[0, 0]"] == 1.0
    for gradient, decay in ((1.0, 2.0**-7), (2.0**-3, 2.0**-9), (1.0, 0.0)):
        assert not events_after(OPTIMIZERS[name], gradient, decay, **WAYS[way])
    assert not events_after(OPTIMIZERS[name], 1.0, 2.0**-9, "stochastic", **WAYS[way])


def test_a_weight_that_is_small_beside_its_step_has_no_decay_to_lose():
    """As a bias has that starts from 0."""
    assert events_after(OPTIMIZERS["SGD"], 1.0, 2.0**-9, weight=0.5) and not events_after(
        OPTIMIZERS["SGD"], 1.0, 2.0**-9, weight=0.25
    )


FUSED = {
    "SGD": lambda parameters, decay: torch.optim.SGD(parameters, lr=2.0**-7, weight_decay=decay, fused=True),
    "SGD with momentum": lambda parameters, decay: torch.optim.SGD(
        parameters, lr=2.0**-7, momentum=0.5, weight_decay=decay, fused=True
    ),
    "Adam": lambda parameters, decay: torch.optim.Adam(parameters, lr=2.0**-7, eps=1e-3, weight_decay=decay, fused=True),
    "Adagrad": lambda parameters, decay: torch.optim.Adagrad(parameters, lr=2.0**-7, weight_decay=decay, fused=True),
}


def in_bfloat16(numbers):
    """Rounded once, which ml_dtypes does not: it goes by float32."""
    significands, exponents = np.frexp(numbers)
    return np.ldexp(np.rint(significands * 2**8), exponents - 8)


def stored_in_bfloat16(make, weight, gradient, decay):
    """All that torch's own fused step in float64 leaves, each number rounded once."""
    parameter = torch.nn.Parameter(weight.double())
    parameter.grad = gradient.double()
    optimizer = make([parameter], decay)
    optimizer.step()
    state = (item for name, item in optimizer.state[parameter].items() if name != "step")
    return [in_bfloat16(item.detach().numpy()) for item in (parameter, *state) if item is not None]


@pytest.mark.parametrize("name", FUSED)
def test_a_fused_step_loses_a_decay_that_nothing_of_what_it_stores_shows(name):
    generator = np.random.default_rng(0)
    numbers = in_bfloat16(generator.uniform(0.5, 2.0, (2, 64, 64))).astype(np.float32)
    weight, gradient = map(torch.from_numpy, numbers)
    told = set()
    for exponent in (-30, -20, -16, -12, -8, -4):
        sim = fpsim.run(nn.ParameterList([nn.Parameter(weight)]), "bf16", observe="events")
        optimizer = FUSED[name](sim.parameters(), 2.0**exponent)
        with sim:
            sim[0].grad = gradient.clone()
            optimizer.step()
        pairs = zip(*(stored_in_bfloat16(FUSED[name], weight, gradient, decay) for decay in (2.0**exponent, 0.0)), strict=True)
        traceless = np.logical_and.reduce([one == other for one, other in pairs])
        events = [event for event in sim.report().events if event.kind == "decay-lost"]
        assert [event.count for event in events] == [traceless.sum()] * int(traceless.mean() >= 0.95), exponent
        assert not events or (events[0].operation.startswith("_fused_") and "the decay of 0 was added" in events[0].text)
        told.add(bool(events))
    assert told == {True, False}
