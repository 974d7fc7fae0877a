"""A report does not grow with the steps: what it keeps is for each place, not for each step."""

import gc
import tracemalloc

import pytest
import torch

import fpsim
from fpsim.emulation.observers import origins

PARTS = ("range", "histograms", "swamping", "events", "coverage", "shadow")


def growth(steps, warm):
    """Bytes that Python, NumPy and torch's tensors of this process gained over so many steps after so many."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    sim = fpsim.run(model, fmt="e5m2", observe=PARTS)  # in which much is lost: events are many
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    def train(count):
        for _ in range(count):
            with sim:  # left and entered again, as a script may
                optimizer.zero_grad()
                sim(torch.rand(8, 4)).square().mean().backward()
                optimizer.step()
        gc.collect()
        tensors = sum(item.nbytes for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter))
        return tracemalloc.get_traced_memory()[0] + tensors

    train(warm)
    tracemalloc.start()
    try:
        before = train(2)
        after = train(steps)
    finally:
        tracemalloc.stop()
    assert sim.report().steps == warm + 2 + steps and len(sim.report().events) > 3
    return after - before


def test_fifty_steps_add_less_than_a_quarter_of_a_megabyte(monkeypatch):
    """What is kept of each operation, with its tensor, would add more."""
    monkeypatch.setattr(origins, "_KEPT", 100)  # of the operations behind an event, which the long form fills
    assert growth(50, warm=20) < 250_000


@pytest.mark.exhaustive
def test_ten_thousand_steps_add_less_than_a_megabyte():
    assert growth(10_000, warm=800) < 1_000_000
