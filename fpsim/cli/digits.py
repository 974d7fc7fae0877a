"""The demo's network and its training loop, as anyone would write them: only `with sim:` tells of the emulation."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fpsim
from fpsim.emulation.observers import OBSERVERS

TRAINING_IMAGES, TEST_IMAGES = 1347, 450
BATCH = 32
STEPS = -(-TRAINING_IMAGES // BATCH)  # of the optimizer, in an epoch


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


@dataclass
class Outcome:
    """What one training run came to; `correct` is None while it has not finished."""

    losses: list[float] = field(default_factory=list)
    correct: int | None = None
    seconds: float = 0.0
    report: Any = None

    @property
    def final_loss(self) -> float:
        """The mean of the last 20 steps' losses; NaN before the first step."""
        last = self.losses[-20:]
        return sum(last) / len(last) if last else float("nan")


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
    is_torch = (fmt, accumulate) == ("fp32", "native")  # of which nothing is seen
    observers = [] if is_torch else [OBSERVERS[name]() for name in ("range", "histograms", "events", "coverage")]
    optimizer = torch.optim.SGD(sim.parameters(), lr=0.05, momentum=0.9)
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
