"""What runs again and again leaves nothing behind: counted in objects, not in bytes that an allocator may keep."""

import copy
import gc
import itertools

import pytest
import torch
from torch import nn

import fpsim
from tests.frequency import often

MODEL = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
X = torch.ones(2, 3)
SEVERAL = {"*": "fp16", "weight": "fp32"}


def living():
    gc.collect()
    return sum(1 + (len(item) if isinstance(item, (list, dict, set)) else 0) for item in gc.get_objects())


def entered(fmt):
    sim = fpsim.run(MODEL, fmt)

    def run():
        with sim:
            pass

    return run


def forward(fmt):
    sim = fpsim.run(MODEL, fmt)
    kept = []

    def run():
        kept[:] = [sim(X)]  # the last outputs are still there when the next are made

    return run


def recurrent(fmt):
    sim = fpsim.run(nn.Linear(3, 3), fmt)
    kept = [X]

    def run():
        kept[:] = [sim(kept[0]).detach()]

    return run


def inferred(fmt):
    sim = fpsim.run(MODEL, fmt)
    return torch.no_grad()(lambda: sim(X))


def backward(fmt):
    sim = fpsim.run(MODEL, fmt)

    def run():
        with sim:
            sim.zero_grad()
            sim(X).sum().backward()

    return run


def step(fmt):
    sim = fpsim.run(MODEL, fmt)
    optimizer = torch.optim.AdamW(sim.parameters())

    def run():
        with sim:
            optimizer.zero_grad()
            sim(X).sum().backward()
            optimizer.step()

    return run


def dropped(fmt):
    def run():
        sim = fpsim.run(MODEL, fmt)
        optimizer = torch.optim.SGD(sim.parameters(), lr=0.1)
        with sim:
            sim(X).sum().backward()
            optimizer.step()

    return run


def block(fmt):
    own = nn.Parameter(torch.ones(3))

    def run():
        with fpsim.emulate(fmt=fmt):
            (own * 2).sum().backward()

    return run


def copied(fmt):
    sim = fpsim.run(MODEL, fmt)

    def run():
        copy.deepcopy(sim)
        sim.load_state_dict(sim.state_dict())

    return run


FORMATS = {"one format": "fp16", "several": SEVERAL, "native": "native"}
MAKERS = (entered, forward, recurrent, inferred, backward, step, dropped, block, copied)


@pytest.mark.parametrize(
    ("make", "name"),
    often(itertools.product(MAKERS, FORMATS), lambda case: case[1] == "several" or case[0] is step),
)
def test_nothing_is_left_behind(make, name):
    counts = []
    gc.collect()
    gc.freeze()  # of what was there before nothing is counted
    run = make(FORMATS[name])
    for times in (60, 150):
        for _ in range(times):
            run()
        counts.append(living())
    assert counts[1] - counts[0] < 150, counts  # less than one object a time


def test_the_modules_of_graphs_that_are_there_are_not_forgotten():
    """Differentiated in the end, the oldest graph's operations are still those of its modules."""
    sim = fpsim.run(MODEL, SEVERAL)
    outputs = [sim(X) for _ in range(200)]
    del outputs[1:-1]
    sim(X)
    sim.reset_report()
    with sim:
        outputs[0].sum().backward()
    assert set(sim.report().by_module()) >= {"0", "1.1"}


def test_a_state_that_leads_back_keeps_the_modules_of_what_it_leads_to():
    sim = fpsim.run(nn.Sequential(nn.Linear(3, 3)), SEVERAL)
    state = X
    for _ in range(100):
        state = sim(state)
    sim.reset_report()
    with sim:
        state.sum().backward()
    assert set(sim.report().by_module()) <= {"", "0"} and sim.report().by_module()["0"]
