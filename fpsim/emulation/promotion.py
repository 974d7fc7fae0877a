"""Operations on tensors of several dtypes: what comes of them is of the dtype that torch promotes them to."""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.machine.protocol import Machine, Rule
from fpsim.emulation.schemas import mapped, tensors_in

#: Operations that promote their operands, floating-point ones and integers.
PROMOTING: set[torch._ops.OpOverload] = set()

_FLOAT32_ALONE = frozenset((torch.float32,))


def promoting(op: torch._ops.OpOverload, rule: Rule) -> Rule:
    """The rule, for float32 tensors and integers beside them that torch takes.

    What torch makes a float64 result of means itself, what it makes a float32 one of in float64 is rounded once; what it
    refuses raises its own error.
    """

    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        dtypes = {tensor.dtype for tensor in tensors_in((*args, *kwargs.values()) if kwargs else args)}
        if dtypes == _FLOAT32_ALONE:
            return rule(machine, *args, **kwargs)
        result = op(*machine.operands(args), **{key: machine.operands(value) for key, value in kwargs.items()})
        if torch.float32 not in {tensor.dtype for tensor in tensors_in((result,))}:
            return result
        if torch.float64 in dtypes:
            return machine.finish(result)
        args, kwargs = mapped(machine.floating, (args, kwargs))
        return rule(machine, *args, **kwargs)

    return compute
