"""What a data set is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from experiments.draws import digest


@dataclass(frozen=True)
class Dataset:
    """Inputs (n, ...), float32 or int64 tokens, and targets, int64: (n,) classes, or (n, ...) one for each token."""

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray
    classes: int

    @cached_property
    def digest(self) -> str:
        return digest(self.inputs, self.targets, self.test_inputs, self.test_targets)
