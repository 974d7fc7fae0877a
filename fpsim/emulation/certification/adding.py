"""The parts of an error bound of a running pass, added up in one look at each result."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from fpsim.backend.numba.running_bounds import make_add_up
from fpsim.numbers.formats import Format


class Weights(NamedTuple):
    """What the parts of a bound count, in the order of `error_sums`: with 0 a part counts nothing."""

    near: float = 0.0
    above: float = 0.0
    local: float = 0.0
    inner: float = 0.0
    result: float = 0.0
    least: float = 0.0
    constant: float = 0.0


Parts = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def added_up(
    result: torch.Tensor, parts: Parts, rest: torch.Tensor, weights: Weights, fmt: Format
) -> torch.Tensor | None:
    """What `make_add_up`'s kernel gives for each element, in float64; None where the format's largest value is reached.

    `parts` are near and above in float32, local in either and inner in float64, None for nothing; `result` holds float32
    values, and `rest` one number for each of as many equal stretches of them.
    """
    rows = (rest.numel(), -1)
    lines = result.contiguous().reshape(rows).numpy()
    arrays = [lines if part is None else part.expand(result.shape).contiguous().reshape(rows).numpy() for part in parts]
    out = np.empty(lines.shape)
    add_up = make_add_up(tuple(part is not None for part in parts))
    largest = np.int32(add_up(lines, *arrays, rest.reshape(-1).numpy(), np.array(weights), out)).view(np.float32)
    return torch.from_numpy(out).reshape(result.shape) if largest < fmt.max_finite else None
