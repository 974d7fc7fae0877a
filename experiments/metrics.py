"""What is counted of logits, in integers and float64."""

from __future__ import annotations

import math

import numpy as np

from experiments.answer import number


def correct(logits: np.ndarray, targets: np.ndarray) -> int:
    """How many rows have their first largest element at the target; a row with a NaN has none."""
    return int(np.count_nonzero((np.argmax(logits, 1) == targets) & ~np.isnan(logits).any(1)))


def cross_entropy(logits: np.ndarray, targets: np.ndarray) -> float | str:
    """The mean in float64."""
    with np.errstate(all="ignore"):
        shifted = logits - logits.max(1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(targets)), targets]
    return rounded(math.fsum(losses) / len(losses)) if np.isfinite(losses).all() else number(np.mean(losses))


def rounded(value: float) -> float | str:
    """Six significant digits: where a library's last bit could show, it does not."""
    return number(float(f"{value:.6g}"))
