"""Gradient descent on L (w - w*)^2 / 2 with a rounded weight, from every start to its end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import fpsim
from experiments.answer import number
from experiments.claims.stall.law import finite_values

RATES = (0.5, 0.1, 0.03125, 0.01)


def measure_radius(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """For each a L and machine: weights within the radius that move, weights outside that do not, and ends too near."""
    fmt = configuration["fmt"]
    bits = fpsim.get_format(fmt).precision - 1
    values = finite_values(fmt)
    weights = values[(values >= 0.5) & (values <= 4)]
    own = weights[(weights >= 1) & (weights < 2)]
    step = 2.0**-bits if fmt == "fp16" else 2.0 ** -(bits + 2)  # a finer grid of fp16 would need 12 million descents
    fine = np.arange(1, 2, step)
    return {
        machine: [descents(fmt, weights, targets, rate, machine) for rate in RATES]
        for machine, targets in (("store", fine), ("every", own))
    }  # fmt: skip


def descents(fmt: str, weights: np.ndarray, targets: np.ndarray, rate: float, machine: str) -> dict[str, Any]:
    """All descents of one step size, `rate` = a L rounded to the format. float64 holds every product below exactly."""
    rate = float(fpsim.round(rate, fmt))
    eps = 2.0 ** -(fpsim.get_format(fmt).precision + 1)
    w, target = weights[None, :], targets[:, None]
    distance = np.abs(w - target)
    to = after(fmt, w, target, rate, machine)
    still = to == w
    inside = distance * (rate + eps) < eps * target
    end = np.searchsorted(weights, to)
    for _ in range(14):  # 2^14 steps, more than there are weights between a start and w*
        end = np.take_along_axis(end, end, 1)
    last = weights[end]
    missed = np.abs(last - target)
    bound = (missed * (rate + eps) < eps * (1 - rate) * target) & (missed < distance)
    first = np.argwhere(bound)[:1]
    relative = distance * (rate + eps) / (eps * target)  # the distance in radii
    return {
        "rate": rate, "radius": eps / (rate + eps), "descents": to.size, "inside": int(np.count_nonzero(inside)),
        "inside_moving": int(np.count_nonzero(inside & ~still)),
        "still": int(np.count_nonzero(still)), "outside_still": int(np.count_nonzero(still & ~inside)),
        "first_moving": number(float(f"{relative[~still].min(initial=np.inf):.6g}")),
        "last_still": float(f"{relative[still].max(initial=0):.6g}"),
        "ended": bool(np.array_equal(after(fmt, last, target, rate, machine), last)),
        "too_near": int(np.count_nonzero(bound)),
        "example": [[float(weights[j]), float(targets[i]), float(last[i, j])] for i, j in first],
    }  # fmt: skip


def after(fmt: str, w: np.ndarray, target: np.ndarray, rate: float, machine: str) -> np.ndarray:
    """The weight after one step: rounded only when it is stored, or at each operation."""
    if machine == "store":
        return np.asarray(fpsim.round(w - rate * (w - target), fmt))
    w, target = (np.ascontiguousarray(x) for x in np.broadcast_arrays(w, target))
    moved = fpsim.mul(fpsim.sub(w, target, fmt=fmt), np.full_like(w, rate), fmt=fmt)
    return np.asarray(fpsim.sub(w, moved, fmt=fmt))
