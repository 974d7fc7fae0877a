"""The demo's network and its training loop, as anyone would write them: only `with sim:` tells of the emulation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fpsim
from fpsim.cli.outcome import BATCH, TEST_IMAGES, Outcome
from fpsim.emulation.machine.policy import make_policy
from fpsim.emulation.observers import OBSERVERS, Observer


class DigitsNet(nn.Module):
    """Two convolutions with batch norm, a dropout and a linear layer over 8 x 8 gray images."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip
        self.dropout = nn.Dropout(0.25)
        self.head = nn.Linear(32 * 2 * 2, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of shape (n, 10) for images of shape (n, 1, 8, 8)."""
        return self.head(self.dropout(self.features(images).flatten(1)))


@dataclass
class Digits:
    """scikit-learn's 1797 handwritten digits, split into training and test images."""

    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @classmethod
    def load(cls) -> Digits:
        """The bundled images, scaled to [0, 1], in an order that is always the same."""
        from sklearn.datasets import load_digits

        data = load_digits()
        order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
        images = torch.tensor(data.images, dtype=torch.float32)[order].unsqueeze(1) / 16
        labels = torch.tensor(data.target)[order]
        return cls(images[TEST_IMAGES:], labels[TEST_IMAGES:], images[:TEST_IMAGES], labels[:TEST_IMAGES])


def check(arms: Iterable[tuple[str, str]]) -> None:
    """Refuse with a ValueError what the emulation would refuse at its turn."""
    for fmt, accumulate in arms:
        try:
            make_policy(fmt, accumulate)
        except NotImplementedError as error:
            raise ValueError(*error.args) from None


def train(
    outcome: Outcome, digits: Digits, fmt: str, accumulate: str, epochs: int, seed: int, done: Callable[[float], None]
) -> None:
    """Train a `DigitsNet` in emulated arithmetic, filling `outcome` as it goes; `done(loss)` after every step.

    Counts are of the whole run; everything else in the report is of the first and the last epoch and the test. Everything
    random (weights, order of the images, dropout) depends on `seed` alone, not on the arithmetic.
    """
    start = time.perf_counter()
    torch.manual_seed(seed)
    sim = fpsim.run(DigitsNet(), fmt=fmt, accumulate=accumulate)
    observers, optimizer = _observers(fmt, accumulate), _optimizer(sim)
    try:
        with sim:
            for epoch in range(epochs):
                if epoch in (0, epochs - 1):
                    sim.observe(observers)
                for batch in torch.randperm(len(digits.labels)).split(BATCH):
                    loss = F.cross_entropy(sim(digits.images[batch]), digits.labels[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
                    outcome.losses.append(loss.item())
                    done(outcome.losses[-1])
                if epoch == 0 < epochs - 1:  # what goes wrong does so at first, or is there in the end
                    for observer in observers:
                        sim.unobserve(observer)
            sim.eval()
            with torch.no_grad():
                outcome.correct = int((sim(digits.test_images).argmax(1) == digits.test_labels).sum())
    finally:
        outcome.seconds = time.perf_counter() - start
        sim.observe(observers)
        outcome.report = sim.report()


def compile_part(part: int, fmt: str, accumulate: str) -> None:
    """A step of a part of the network, below `PARTS`, observed as `train` is: what it compiles is kept for all that train."""
    net = DigitsNet()
    convolution, *between, second = list(net.features)[:5]
    modules: list[tuple[nn.Module, tuple[int, ...]]] = [
        (convolution, (BATCH, 1, 8, 8)), (nn.Sequential(*between), (BATCH, 16, 8, 8)), (second, (BATCH, 16, 4, 4)),
        (nn.Sequential(net.dropout, net.head), (BATCH, 128)),
    ]  # fmt: skip
    module, shape = modules[part]
    sim = fpsim.run(module, fmt=fmt, accumulate=accumulate)
    sim.observe(_observers(fmt, accumulate))
    with sim:
        results = sim(torch.rand(shape).requires_grad_(part > 0))
        if module is modules[-1][0]:
            F.cross_entropy(results, torch.zeros(BATCH, dtype=torch.long)).backward()
        else:
            results.backward(torch.rand(results.shape))
        if part == 1:
            _optimizer(sim).step()


def _observers(fmt: str, accumulate: str) -> list[Observer]:
    is_torch = (fmt, accumulate) == ("fp32", "native")  # of which nothing is seen
    return [] if is_torch else [OBSERVERS[name]() for name in ("range", "histograms", "events", "coverage")]


def _optimizer(sim: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(sim.parameters(), lr=0.05, momentum=0.9)
