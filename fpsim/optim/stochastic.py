"""Updates stored with stochastic rounding."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from fpsim.arrays.rounding import round as round_to
from fpsim.optim.formats import format_of
from fpsim.optim.wrapping import WrappedOptimizer

_RULES = ("exact", "add-carry", "less-than")
_LOW = 0xFFFF


def round_to_bfloat16(x: torch.Tensor, random16: torch.Tensor, rule: str) -> torch.Tensor:
    """float32 to bfloat16 by 16 random bits an element, as fused optimizers do it.

    Parameters
    ----------
    x : float32, of any shape.
    random16 : int32 of x's shape, each in [0, 2**16).
    rule : "add-carry" adds them to the low half of the word and drops that: away from zero with probability low / 2^16.
        "less-than" goes away from zero where they are less than the low half (torchao): the same probability, by other draws.

    Returns
    -------
    bfloat16 of x's shape. Infinities stay, -0 stays, NaN is NaN. Above the largest number the carry makes an infinity.

    Raises
    ------
    TypeError : another dtype. ValueError : another rule, other shapes.
    """
    if x.dtype is not torch.float32 or random16.dtype is not torch.int32:
        raise TypeError(f"float32 and int32 are rounded by, not {x.dtype} and {random16.dtype}")
    if x.shape != random16.shape:
        raise ValueError(f"x has shape {tuple(x.shape)}, random16 {tuple(random16.shape)}")
    words = x.contiguous().view(torch.int32)
    if rule == "add-carry":
        raised = words + random16
    elif rule == "less-than":
        raised = words + (random16 < (words & _LOW)).int() * (_LOW + 1)
    else:
        raise ValueError(f"rule is 'add-carry' or 'less-than', not {rule!r}")
    kept = torch.where(x.isfinite(), raised, words) & ~_LOW
    return torch.where(x.isnan(), torch.nan, kept.view(torch.float32)).to(torch.bfloat16)


class Stochastic(WrappedOptimizer):
    """Any torch optimizer, its updates stored with stochastic rounding (Zamirai et al., arXiv 2010.06192).

    The weight plus the step's change, in float64, is rounded once, up with the probability that makes the mean right: rule
    "exact" in every format, by 32 random bits (`fpsim.round`); "add-carry" and "less-than" in bfloat16 alone, by 16 bits
    from the sum in float32, as fused kernels do it (`round_to_bfloat16`). Draws depend on the seed, the step, the place
    of the parameter among the optimizer's and the element, on nothing else.

        optimizer = fpsim.optim.Stochastic(torch.optim.SGD(model.parameters(), lr=0.01), seed=0)
    """

    draws = True

    def __init__(self, inner: torch.optim.Optimizer, *, seed: int, rule: str = "exact"):
        if rule not in _RULES:
            raise ValueError(f"rule is one of {', '.join(map(repr, _RULES))}, not {rule!r}")
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"seed is a whole number from 0, not {seed!r}")
        super().__init__(inner)
        self.seed, self.rule = seed, rule

    def stored(self, index: int, parameter: torch.Tensor, start: torch.Tensor, change: torch.Tensor) -> torch.Tensor:
        kept = self.state[parameter]
        kept["step"] = kept.get("step", 0) + 1
        draws = np.random.SeedSequence((self.seed, kept["step"], index))
        target, wide = format_of(parameter), start.double() + change
        if self.rule == "exact":
            key = int(draws.generate_state(1, np.uint64)[0] >> np.uint64(1))
            return round_to(wide, target, "stochastic", seed=key)
        if target.name != "bf16":
            raise ValueError(f"rule {self.rule!r} is of bfloat16; weights of {target.name} take rule='exact'")
        bits = np.random.Generator(np.random.Philox(draws)).integers(1 << 16, size=tuple(wide.shape), dtype=np.int32)
        with _disable_current_modes():  # the rule's float32 is no value of an emulated format
            return round_to_bfloat16(wide.float(), torch.from_numpy(bits), self.rule)
