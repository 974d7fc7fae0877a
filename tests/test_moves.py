"""Decay that an optimizer adds to the gradient, and that leaves it as it is, is lost as decay beside the step is."""

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


def events_after(make, gradient, decay, rounding="nearest-even", weight=1.0, **how):
    model = nn.Sequential(nn.Linear(4, 4, bias=False))
    nn.init.constant_(model[0].weight, weight)
    sim = fpsim.run(model, "bf16", observe="events", rounding=rounding, **({} if rounding != "stochastic" else {"seed": 0}))
    optimizer = make(sim.parameters(), weight_decay=decay, **how)
    with sim:
        sim[0].weight.grad = torch.full((4, 4), gradient)
        optimizer.step()
    return sim.report().events


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_decay_that_leaves_its_gradient_as_it_is_is_lost(name, foreach):
    """2^-9 is half an ulp of 1, to even; 2^-8 is seen, and 2^-9 of a smaller gradient."""
    (event,) = events_after(OPTIMIZERS[name], 1.0, 2.0**-9, foreach=foreach)
    assert (event.kind, event.module, event.phase, event.count) == ("decay-lost", "0", "optimizer", 16)
    assert event.operation.startswith("_foreach_add" if foreach else "add") and event.place.text == "optimizer.step()"
    assert "the decay of 0.weight was added to its gradient" in event.text and dict(event.operands)["0.weight[0, 0]"] == 1.0
    for gradient, decay in ((1.0, 2.0**-7), (2.0**-3, 2.0**-9), (1.0, 0.0)):
        assert not events_after(OPTIMIZERS[name], gradient, decay, foreach=foreach)
    assert not events_after(OPTIMIZERS[name], 1.0, 2.0**-9, "stochastic", foreach=foreach)


def test_a_weight_that_is_small_beside_its_step_has_no_decay_to_lose():
    """As a bias has that starts from 0."""
    assert events_after(OPTIMIZERS["SGD"], 1.0, 2.0**-9, weight=0.5) and not events_after(
        OPTIMIZERS["SGD"], 1.0, 2.0**-9, weight=0.25
    )
