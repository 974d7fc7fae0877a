"""Which updates leave a weight where it is: the format's numbers and the midpoints between them, and what subtraction gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

import fpsim

Array = Any


def finite_values(fmt: str) -> np.ndarray:
    """All finite values of a format, ascending, one zero, float64."""
    bits = fpsim.get_format(fmt).bits
    values = np.asarray(fpsim.decode(np.arange(2**bits, dtype=np.uint16 if bits > 8 else np.uint8), fmt), np.float64)
    return np.unique(values[np.isfinite(values)])


def thresholds(values: np.ndarray, fmt: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each value: half the spacing below it, half the spacing above it, and whether its last bit is 0.

    Beyond the last value the spacing is that before it, as rounding has it.
    """
    gap = np.diff(values)
    below, above = np.r_[gap[0], gap] / 2, np.r_[gap, gap[-1]] / 2
    return below, above, even(values, fmt)


def even(values: np.ndarray, fmt: str) -> np.ndarray:
    """Whether the last bit of a value's word is 0."""
    return np.asarray(fpsim.encode(values, fmt)) & 1 == 0


def stays(below: Array, above: Array, is_even: Array, dw: Array) -> Array:
    """The law: whether w - dw is rounded to w."""
    return ((-above < dw) & (dw < below)) | (is_even & ((dw == below) | (dw == -above)))


def measure_law(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The law against computed subtractions, and the thresholds' sizes relative to the weights."""
    fmt = configuration["fmt"]
    values = finite_values(fmt)
    below, above, is_even = thresholds(values, fmt)
    if len(values) < 2**8:
        dw = np.broadcast_to(values, (len(values), len(values)))
    else:
        dw = np.concatenate([near(values, below), near(values, -above)], 1)
    w = np.broadcast_to(values[:, None], dw.shape)
    law = stays(below[:, None], above[:, None], is_even[:, None], dw)
    with np.errstate(all="ignore"):
        computed = np.asarray(fpsim.sub(w, dw, fmt=fmt)) == w
        other = independent(w, dw, fmt)
    normal = np.abs(values) >= fpsim.get_format(fmt).min_normal
    inward = np.where(values > 0, below, above)[normal]  # towards zero
    relative = inward / np.abs(values[normal])
    spacing = np.asarray(fpsim.ulp(values, fmt), np.float64)[normal]
    return {
        "pairs": law.size, "kept": int(np.count_nonzero(law)),
        "differ": int(np.count_nonzero(computed != law)),
        "differ_from_other": None if other is None else int(np.count_nonzero((other == w) != law)),
        "weights": len(values), "normal": int(np.count_nonzero(normal)),
        "half": int(np.count_nonzero(inward == spacing / 2)), "quarter": int(np.count_nonzero(inward == spacing / 4)),
        "least": float(relative.min()), "largest": float(relative.max()),
    }  # fmt: skip


def near(values: np.ndarray, threshold: np.ndarray) -> np.ndarray:
    """The four values of the format around each threshold, as rows."""
    place = np.searchsorted(values, threshold)[:, None] + np.arange(-2, 2)
    return values[np.clip(place, 0, len(values) - 1)]


def independent(w: np.ndarray, dw: np.ndarray, fmt: str) -> np.ndarray | None:
    """The difference by NumPy's float16 or torch's bfloat16; None for formats that neither calculates in."""
    if fmt == "fp16":
        return (w.astype(np.float16) - dw.astype(np.float16)).astype(np.float64)
    if fmt == "bf16":
        first, second = (torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16) for x in (w, dw))
        return (first - second).double().numpy()
    return None
