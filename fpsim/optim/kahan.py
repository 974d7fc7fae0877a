"""Compensated updates."""

from __future__ import annotations

import torch

from fpsim.optim.formats import rounded_like
from fpsim.optim.wrapping import WrappedOptimizer


class Kahan(WrappedOptimizer):
    """Any torch optimizer, its updates added with Kahan's compensation (Zamirai et al., arXiv 2010.06192).

    With u the step's change rounded to the weight's format, w the weight and c the compensation (0 at first):
    y = u - c; s = w + y; c = (s - w) - y; w = s, each operation rounded as the format's operations are: by torch for
    bfloat16 and float16 weights, by the machine under emulation. c costs as much memory as the weights. Updates below about
    u^2 |w|, u the unit roundoff, are lost even so. After an overflow c is NaN, as in Kahan summation everywhere.

        optimizer = fpsim.optim.Kahan(torch.optim.AdamW(model.parameters(), lr=1e-4))
    """

    def stored(self, index: int, parameter: torch.Tensor, start: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        kept = self.state[parameter]
        if "compensation" not in kept:
            kept["compensation"] = torch.zeros_like(start)
        y = rounded_like(change, start) - kept["compensation"]
        s = start + y
        kept["compensation"] = (s - start) - y
        return s
