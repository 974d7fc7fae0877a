"""Many small updates of one weight, stored in each of the ways that there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

import fpsim
from experiments.claims.stall.law import finite_values, stays, thresholds

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
STEPS, UPDATE = 1000, 0.001
Wrap = Callable[[torch.optim.Optimizer], torch.optim.Optimizer]


def stepped(weights: np.ndarray, gradients: np.ndarray, lr: float, fmt: str, wrap: Wrap, steps: int) -> np.ndarray:
    """Weights of torch's own dtype after constant gradients."""
    weight = torch.nn.Parameter(torch.from_numpy(weights).to(DTYPES[fmt]))
    optimizer = wrap(torch.optim.SGD([weight], lr=lr))
    weight.grad = torch.from_numpy(gradients).to(DTYPES[fmt])
    for _ in range(steps):
        optimizer.step()
    return weight.detach().double().numpy()


def measure_sum(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """1 + 1000 * 0.001, and of the stochastic sum the exact mean and deviation beside those of some elements."""
    fmt, elements = configuration["fmt"], configuration["elements"]
    wraps: dict[str, Wrap] = {
        "nearest": lambda sgd: sgd, "kahan": fpsim.optim.Kahan, "master": fpsim.optim.MasterCopy,
    }  # fmt: skip
    ones = np.ones(1)
    ends = {name: float(stepped(ones, -ones, UPDATE, fmt, wrap, STEPS)[0]) for name, wrap in wraps.items()}
    many = np.ones(elements)
    drawn = stepped(many, -many, UPDATE, fmt, lambda sgd: fpsim.optim.Stochastic(sgd, seed=0), STEPS)
    mean, deviation, fourth = chain(fmt)
    return {
        **ends, "mean": float(drawn.mean()), "deviation": float(f"{drawn.std():.6g}"), "elements": elements,
        "exact_mean": float(f"{mean:.10g}"), "exact_deviation": float(f"{deviation:.6g}"),
        "exact_kurtosis": float(f"{fourth:.6g}"),
    }  # fmt: skip


def chain(fmt: str) -> tuple[float, float, float]:
    """Mean, deviation and kurtosis of 1 + 1000 * 0.001 with stochastic rounding: the Markov chain on the format's numbers."""
    values = finite_values(fmt)
    values = values[(values >= 1) & (values <= 8)]
    sums = values + UPDATE
    lower = np.searchsorted(values, sums, "right") - 1
    upper = np.minimum(lower + 1, len(values) - 1)
    up = np.where(upper > lower, (sums - values[lower]) / np.where(upper > lower, values[upper] - values[lower], 1), 0)
    share = np.zeros(len(values))
    share[0] = 1.0
    for _ in range(STEPS):
        share = np.bincount(np.r_[lower, upper], np.r_[share * (1 - up), share * up], len(values))
    mean = math.fsum(share * values)
    moments = [math.fsum(share * (values - mean) ** power) for power in (2, 4)]
    return mean, math.sqrt(moments[0]), moments[1] / moments[0] ** 2


def measure_kahan(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """For each w in [1, 2): the largest update that never moves it, by the stall of y, and by stepping the optimizer."""
    fmt = configuration["fmt"]
    precision = fpsim.get_format(fmt).precision
    values = finite_values(fmt)
    updates = values[(values >= 2.0 ** (-2 * precision - 2)) & (values <= 2.0 ** (1 - precision))]
    reached = stalled(updates, fmt)
    weights = values[(values >= 1) & (values < 2)]
    below, above, is_even = (side[(values >= 1) & (values < 2)][:, None] for side in thresholds(values, fmt))
    place, signs = [], []
    differ = 0
    for sign in (1.0, -1.0):
        still = stays(below, above, is_even, -sign * reached[None, :])
        differ += int(np.count_nonzero(still[:, 1:] & ~still[:, :-1]))  # it is a first part of the updates, or no threshold
        place.append(np.count_nonzero(still, 1) - 1)
        signs.append(np.full(len(weights), sign))
    last, sign = np.concatenate(place), np.concatenate(signs)
    largest = updates[last]
    tried, start = np.r_[largest, updates[last + 1]] * -np.r_[sign, sign], np.tile(weights, 4)
    end = stepped(start, tried, 1.0, fmt, fpsim.optim.Kahan, 2 ** (precision + 2))
    differ += int(np.count_nonzero((end != start) != (np.arange(len(end)) >= len(largest))))
    up, down = np.split(largest, 2)
    unit = 2.0 ** (-2 * precision)
    relative = largest / np.r_[weights, weights]
    named = np.asarray(fpsim.round(1e-5, fmt))
    return {
        "weights": len(weights), "updates": len(updates), "differ": differ,
        "even": _distinct(up[is_even[:, 0]] / unit), "odd": _distinct(up[~is_even[:, 0]] / unit),
        "down": _distinct(down[1:] / unit), "one_down": float(down[0] / unit),
        "least": float(f"{relative.min() / unit:.6g}"), "largest": float(f"{relative.max() / unit:.6g}"),
        "named": bool(named <= up[0]),
    }  # fmt: skip


def _distinct(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.unique(values)]


def stalled(updates: np.ndarray, fmt: str) -> np.ndarray:
    """Where y = u - c ends if w does not move: c = -y then, so that y is u added up in the format, which stalls."""
    y = updates.copy()
    while True:
        following = np.minimum(np.asarray(fpsim.add(y, updates, fmt=fmt)), 1.0)
        if np.array_equal(following, y):
            return y
        y = following
