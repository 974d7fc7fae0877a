"""How long convolutions of many groups take under emulation, forward and both gradients, as ratios to torch's own float32.

`python -m experiments.benchmarks.convolutions` prints the table. Times are the least processor times of interleaved runs on
one thread, which other work on the machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import fpsim

LIMIT = 12  # times torch
ACCUMULATORS = ("fp16", "fp32")
_IN_A_ROW = 5
CONSOLE = Console(width=110)
_aten = torch.ops.aten


@dataclass(frozen=True)
class Shape:
    """Images of a size, channels, a square kernel with padding to the same size, and its stride; groups of `inner` channels."""

    channels: int
    kernel: int
    images: int
    size: int
    stride: int = 1
    inner: int = 1

    def __str__(self) -> str:
        groups = "" if self.inner == 1 else f", {self.channels // self.inner} groups"
        kernel = f"{self.kernel} x {self.kernel} over {self.channels}{groups}"
        return f"{kernel}, {self.images} x {self.size}^2, stride {self.stride}"


SHAPES = (
    Shape(480, 5, 2, 14), Shape(480, 5, 1, 7), Shape(480, 5, 2, 4), Shape(960, 5, 1, 7), Shape(960, 5, 2, 4),
    Shape(960, 3, 2, 7), Shape(32, 3, 2, 56), Shape(96, 3, 2, 56, 2), Shape(240, 5, 2, 28, 2), Shape(128, 3, 2, 28, 1, 4),
    Shape(256, 3, 2, 14, 1, 8),
)  # fmt: skip


def passes(shape: Shape) -> dict[str, Callable[[], object]]:
    """What is timed: the convolution and its gradients, of operands that are values of fp16."""
    groups = shape.channels // shape.inner
    steps = ([shape.stride] * 2, [shape.kernel // 2] * 2, [1, 1], False, [0, 0], groups)
    torch.manual_seed(0)
    x = torch.randn(shape.images, shape.channels, shape.size, shape.size).half().float()
    weight = (torch.randn(shape.channels, shape.inner, shape.kernel, shape.kernel) / 4).half().float()
    gradient = torch.randn_like(_aten.convolution(x, weight, None, *steps)).half().float()

    def backward(*mask: bool) -> Callable[[], object]:
        return lambda: _aten.convolution_backward(gradient, x, weight, None, *steps, list(mask))

    return {
        "forward": lambda: _aten.convolution(x, weight, None, *steps),
        "for the input": backward(True, False, False),
        "for the weight": backward(False, True, False),
    }


def block(channels: int, expanded: int, kernel: int = 3) -> nn.Sequential:
    """An inverted bottleneck, as MobileNetV2 and EfficientNet are made of."""
    return nn.Sequential(
        nn.Conv2d(channels, expanded, 1, bias=False), nn.BatchNorm2d(expanded), nn.ReLU6(),
        nn.Conv2d(expanded, expanded, kernel, padding=kernel // 2, groups=expanded, bias=False), nn.BatchNorm2d(expanded),
        nn.ReLU6(), nn.Conv2d(expanded, channels, 1, bias=False), nn.BatchNorm2d(channels),
    )  # fmt: skip


def step(accumulate: str | None) -> Callable[[], object]:
    """A training step of four such blocks, emulated in fp16 or by torch alone."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(block(16, 96), block(16, 96), block(16, 96, 5), block(16, 96, 5)).train()
    x = torch.randn(8, 16, 14, 14)
    context: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if accumulate is not None:
        model = context = fpsim.run(model, fmt="fp16", accumulate=accumulate, inplace=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def run() -> None:
        with context:
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    return run


def least(jobs: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """The least processor seconds of each job, which take turns of a few runs: only the first finds another's data near."""
    found = dict.fromkeys(jobs, float("inf"))
    for _ in range(runs):
        for name, run in jobs.items():
            for _ in range(_IN_A_ROW):
                start = time.process_time()
                run()
                found[name] = min(found[name], time.process_time() - start)
    return found


def emulated(run: Callable[[], object], accumulate: str) -> Callable[[], object]:
    def inside() -> object:
        with fpsim.emulate(fmt="fp16", accumulate=accumulate):
            return run()

    return inside


def row(table: Table, name: str, what: str, times: dict[str, float]) -> None:
    ratios = [times[accumulate] / times["torch"] for accumulate in ACCUMULATORS]
    verdict = "[green]within" if max(ratios) <= LIMIT else "[red]misses"
    table.add_row(name, what, f"{times['torch'] * 1e6:.0f}", *(f"{ratio:.1f}" for ratio in ratios), f"{LIMIT}", verdict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15, help="turns of each (15)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(title="Times what torch takes in float32, one thread, least processor times")
    for heading in ("convolution", "pass", "torch, us", *(f"fp16/{name}" for name in ACCUMULATORS), "limit", ""):
        table.add_column(heading, justify="left" if heading in ("convolution", "pass", "") else "right")
    for shape in SHAPES:
        name = str(shape)
        for what, run in passes(shape).items():
            jobs = {"torch": run, **{accumulate: emulated(run, accumulate) for accumulate in ACCUMULATORS}}
            row(table, name, what, least(jobs, arguments.runs))
            name = ""
    steps = {"torch": step(None), **{accumulate: step(accumulate) for accumulate in ACCUMULATORS}}
    row(table, "4 inverted bottlenecks", "training step", least(steps, arguments.runs))
    CONSOLE.print(table)


if __name__ == "__main__":
    main()
