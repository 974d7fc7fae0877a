"""fmt="fp32", accumulate="native": torch itself. Every operation is torch's own, its results are counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch._C._dynamo import eval_frame
from torch.utils._pytree import tree_leaves

from fpsim._kernels import counting
from fpsim.emulation.mode import EmulationMode
from fpsim.emulation.table import TABLE

#: Tests switch this off, to see the rules run their whole path with a rounding that changes nothing.
shortcut = True

_MAKES_NO_NUMBERS = frozenset(("view", "exact", "comparison", "constant"))


class IdentityMode(EmulationMode):
    """One thread's mode where the machine is torch: no operation is refused, none is changed."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        entry = TABLE.get(func)
        if entry is not None and entry.family not in _MAKES_NO_NUMBERS:
            self.machine.op = func
            for item in (result,) if isinstance(result, torch.Tensor) else tree_leaves(result):
                if isinstance(item, torch.Tensor) and item.dtype is torch.float32 and _is_plain(item):
                    counting.count_results(np.ravel(item.detach().numpy()), self.machine.row())
        return result


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) is torch.Tensor and tensor.device.type == "cpu" and tensor.layout is torch.strided


eval_frame.set_code_exec_strategy(
    IdentityMode.__torch_dispatch__.__code__,
    eval_frame._FrameExecStrategy(eval_frame._FrameAction.SKIP, eval_frame._FrameAction.SKIP),
)
