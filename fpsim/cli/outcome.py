"""What the demo's training runs come to, known without torch, which only the processes that train need."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fpsim.report.runs import mean_of_last

TRAINING_IMAGES, TEST_IMAGES = 1347, 450
BATCH = 32
STEPS = -(-TRAINING_IMAGES // BATCH)  # of the optimizer, in an epoch
PARTS = 4  # of the network, whose kernels are compiled apart


@dataclass
class Outcome:
    """What one training run came to; `correct` is None while it has not finished."""

    losses: list[float] = field(default_factory=list)
    correct: int | None = None
    seconds: float = 0.0
    report: Any = None

    @property
    def final_loss(self) -> float:
        """As `mean_of_last`."""
        return mean_of_last(self.losses)
