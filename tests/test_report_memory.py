"""A report does not grow with the steps: what it keeps is for each place, not for each step."""

import gc
import sys

import pytest
import torch

import fpsim
from fpsim.emulation.observers import origins

PARTS = ("range", "histograms", "swamping", "events", "coverage", "shadow")


def network():
    return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 2))


def growth(steps, warm, model=network):
    """Blocks of memory that Python's objects, and bytes that torch's tensors, gained over so many steps after so many."""
    torch.manual_seed(0)
    sim = fpsim.run(model(), fmt="e5m2", observe=PARTS)  # in which much is lost: events are many
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)

    def train(count):
        for _ in range(count):
            with sim:  # left and entered again, as a script may
                optimizer.zero_grad()
                sim(torch.rand(8, 4)).square().mean().backward()
                optimizer.step()
        gc.collect()
        tensors = sum(item.nbytes for item in gc.get_objects() if type(item) in (torch.Tensor, torch.nn.Parameter))
        return sys.getallocatedblocks(), tensors

    train(warm)
    blocks, tensors = train(2)
    more_blocks, more_tensors = train(steps)
    assert sim.report().steps == warm + 2 + steps and len(sim.report().events) > 3
    return more_blocks - blocks, more_tensors - tensors


@pytest.fixture
def few_operations_behind_an_event(monkeypatch):
    """So that those are all there after a few steps: by default it takes hundreds."""
    monkeypatch.setattr(origins, "_KEPT", 100)


def test_fifty_steps_add_few_objects(few_operations_behind_an_event):
    """If none were let go, what is kept of the operations behind an event would be 10,000."""
    blocks, tensors = growth(50, warm=20)
    assert blocks < 1500 and tensors < 1000


@pytest.mark.exhaustive
def test_beyond_the_first_steps_less_than_a_quarter_of_an_object_is_kept_of_each(few_operations_behind_an_event):
    """After 300 steps every place has what it keeps: from there a report shrinks, and what a step left behind would show."""
    blocks, tensors = growth(600, warm=300)
    assert blocks < 150 and tensors < 1000


@pytest.mark.exhaustive
def test_many_steps_keep_less_than_a_tenth_of_an_object_each(few_operations_behind_an_event):
    """Of the smallest network."""
    blocks, tensors = growth(1500, 300, lambda: torch.nn.Linear(4, 1))
    assert blocks < 150 and tensors < 1000
