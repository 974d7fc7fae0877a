"""What observers cost: a training step with each, as a ratio to the same step with none.

`python -m experiments.benchmarks.observers` prints the table: least processor times of interleaved steps on one thread,
which other work on the machine disturbs least. fp16 with fp32 sums.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import nn

import fpsim
from experiments.models.transformers import SmallGPT

CONSOLE = Console(width=80)

#: At most this many times a step without observers.
LIMITS = {"range": 1.2, "histograms": 1.5, "coverage": 1.2, "swamping": 1.2, "events": 1.5, "shadow": 3.0}


def cnn(observe: str | None) -> Callable[[], object]:
    """A step of two convolutions with batch norm on 32 images of 8 x 8, by SGD."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 16), (16, 32)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 64, 10))
    sim = fpsim.run(model, fmt="fp16", observe=observe, inplace=True)
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    x, target = torch.randn(32, 3, 8, 8), torch.randint(0, 10, (32,))
    return step(sim, optimizer, lambda: F.cross_entropy(sim(x), target))


def gpt(observe: str | None) -> Callable[[], object]:
    """A step of a GPT of two layers, 64 wide, on 8 x 64 tokens, by AdamW."""
    torch.manual_seed(0)
    sim = fpsim.run(SmallGPT(width=64), fmt="fp16", observe=observe, inplace=True)
    optimizer = torch.optim.AdamW(sim.parameters(), lr=1e-3, eps=1e-4)
    tokens = torch.randint(0, 128, (8, 65))
    x, target = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)
    return step(sim, optimizer, lambda: F.cross_entropy(sim(x).flatten(0, 1), target))


def step(sim: fpsim.Simulation, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """A training step that tells the simulation of itself: `sim` is an attribute of it."""

    def run() -> object:
        with sim:
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            return value

    run.sim = sim  # type: ignore[attr-defined]
    return run


def least_seconds(steps: dict[str | None, Callable[[], object]], turns: int) -> dict[str | None, float]:
    """The least processor time of each step, which take turns after three that warm up."""
    found = dict.fromkeys(steps, float("inf"))
    for turn in range(-3, turns):
        for name, run in steps.items():
            start = time.process_time()
            run()
            if turn >= 0:
                found[name] = min(found[name], time.process_time() - start)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--observe", action="append", choices=list(LIMITS), help="this observer only")
    parser.add_argument("--turns", type=int, default=40, help="steps of each (40)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title=f"A step with an observer, of one without: least processor times of {arguments.turns}")
    for heading in ("observe", "cnn", "gpt", "limit"):
        table.add_column(heading, justify="left" if heading == "observe" else "right")
    names: list[str | None] = [None, *(arguments.observe or LIMITS)]
    measured = [least_seconds({name: build(name) for name in names}, arguments.turns) for build in (cnn, gpt)]
    table.add_row("none, ms", *(f"{seconds[None] * 1e3:.1f}" for seconds in measured), "")
    for name in names[1:]:
        ratios = (f"{seconds[name] / seconds[None]:.2f}" for seconds in measured)
        table.add_row(name, *ratios, f"{LIMITS[str(name)]:g}")
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
