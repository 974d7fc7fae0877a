"""The format that a weight is kept in, and rounding to it."""

from __future__ import annotations

import torch

from fpsim.arrays.rounding import round as round_to
from fpsim.emulation.dispatch.context import current
from fpsim.emulation.machine.marks import set_beside
from fpsim.emulation.machine.policy import MixedPolicy
from fpsim.numbers.formats import Format, get_format

_STEPPED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def format_of(parameter: torch.Tensor) -> Format:
    """The format of a weight: its dtype's, or under a named format the machine's.

    NotImplementedError under a mapping of formats, and for dtypes that nothing is added to.
    """
    if parameter.dtype not in _STEPPED:
        raise NotImplementedError(f"weights of {parameter.dtype} are not stepped; use bfloat16, float16 or float32")
    emulation = current()
    if parameter.dtype is torch.float32 and emulation is not None and not emulation.policy.is_native:
        if isinstance(emulation.policy, MixedPolicy):
            raise NotImplementedError(
                "under a mapping of formats the emulation rounds updates itself: rounding={'optimizer': 'stochastic'} of "
                "fpsim.run, or a wider format for the role 'weight'"
            )
        return emulation.policy.fmt
    return get_format(parameter.dtype)


def rounded_like(wide: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """float64 rounded once to nearest even to what `like` holds, in its dtype."""
    if like.dtype in (torch.float16, torch.bfloat16):  # torch's own cast from float64 rounds to float32 on the way
        wide = round_to(wide, like.dtype)
    set_beside((wide,), like)
    return wide.to(like.dtype)
