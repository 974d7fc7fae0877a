"""What stood still in one step and moved in most of the later ones has not stopped."""

import pytest
import torch
from torch import nn

import fpsim


def weight(pattern):
    """Half an ulp of 1 is lost, four are not."""
    sim = fpsim.run(nn.ParameterList([nn.Parameter(torch.ones(4))]), "bf16", observe="events")
    optimizer = torch.optim.SGD(sim.parameters(), lr=1.0)
    with sim:
        for moves in pattern:
            sim[0].grad = torch.full((4,), 2.0**-5 if moves == "m" else 2.0**-10)
            optimizer.step()
    return sim, "stopped"


def decay(fused):
    def run(pattern):
        """2^-10 of a weight of 1 is lost beside a gradient of 1, and shows beside a small one."""
        sim = fpsim.run(nn.ParameterList([nn.Parameter(torch.ones(4))]), "bf16", observe="events")
        optimizer = torch.optim.SGD(sim.parameters(), lr=2.0**-3, momentum=2.0**-10, weight_decay=2.0**-10, fused=fused)
        with sim:
            for moves in pattern:
                sim[0].grad = torch.full((4,), 2.0**-5 if moves == "m" else 1.0)
                with torch.no_grad():
                    sim[0].copy_(torch.ones(4))
                optimizer.step()
        return sim, "decay-lost"

    return run


def decay_beside_the_step(pattern):
    sim = fpsim.run(nn.ParameterList([nn.Parameter(torch.ones(4))]), "bf16", observe="events")
    optimizer = torch.optim.AdamW(sim.parameters(), lr=2.0**-4, eps=1.0)
    with sim:
        for moves in pattern:
            optimizer.param_groups[0]["weight_decay"] = 2.0**-2 if moves == "m" else 2.0**-10
            sim[0].grad = torch.ones(4)
            optimizer.step()
    return sim, "decay-lost"


def statistic(pattern):
    sim = fpsim.run(nn.BatchNorm1d(2), "bf16", observe="events", inplace=True)
    with sim:
        for moves in pattern:
            nn.init.ones_(sim.running_mean)
            sim.model.momentum = 0.25 if moves == "m" else 2.0**-12
            sim(torch.tensor([[0.0, 1.0], [3.0, 4.0]]))
            sim.eval()(torch.ones(1, 2))
            sim.train()
    return sim, "stale-statistic"


SUBJECTS = {
    "a weight": weight,
    "a decay in the gradient": decay(False),
    "a decay in a fused step": decay(True),
    "a decay beside the step": decay_beside_the_step,
    "a statistic": statistic,
}


@pytest.mark.parametrize(("pattern", "stopped"), [("s", 1), ("mms", 1), ("sm", 1), ("smm", 0), ("mmsmsm", 1), ("smmsm", 0)])
@pytest.mark.parametrize("subject", SUBJECTS)
def test_what_moves_again_has_not_stopped(subject, pattern, stopped):
    sim, kind = SUBJECTS[subject](pattern)
    (event,) = (event for event in sim.report().events if event.kind in (kind, "paused"))
    assert event.kind == (kind if stopped else "paused")
    assert event.step == (0 if kind == "stale-statistic" else pattern.index("s"))
    assert event.text.startswith(f"{fpsim.report.records.EVENTS[event.kind]}: ")
    assert sim.report().verdict.word == ("degrades" if stopped else "survives")
