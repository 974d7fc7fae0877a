"""`fmt="native"`: each dtype means itself. A machine whose arithmetic is that of the dtype in hand."""

from __future__ import annotations

import torch

from fpsim.accumulation import Accumulator
from fpsim.emulation.machine.arithmetic import Arithmetic
from fpsim.emulation.machine.limits import SMALL
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.place import Surroundings
from fpsim.emulation.machine.policy import NativePolicy, Policy
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.sums.task import Sum


class NativeMachine(FormatMachine):
    """A machine whose format is that of the dtype in hand: `choose` before each rule."""

    has_one_format = False
    stands_for_largest = saturates_constants = False  # a model asks for the range of its own dtype; torch casts its constants

    def __init__(self, policy: Policy, emulation: Surroundings):
        assert isinstance(policy, NativePolicy)
        super().__init__(policy, emulation)
        self._policy = policy
        self._of: dict[torch.dtype, Arithmetic] = {}

    def choose(self, dtype: torch.dtype) -> None:
        """Compute in the arithmetic of this dtype from now on.

        Raises
        ------
        UnsupportedOp : where the accumulator that was asked for takes no values of that dtype.
        """
        arithmetic = self._of.get(dtype)
        if arithmetic is None:
            policy = self._policy.of(str(dtype).removeprefix("torch."))
            if isinstance(policy, str):
                raise self.refuse(policy)
            arithmetic = self._of[dtype] = Arithmetic.of(policy)
        self.arithmetic = arithmetic

    def sum_of_dtypes(self, left: torch.dtype, right: torch.dtype, result: torch.dtype) -> Sum:
        self.choose(result)
        return super().sum_of_dtypes(left, right, result)

    def policy_of_small(self) -> tuple[Accumulator, Rounding]:
        return self._policy.accumulator, self._policy.rounding

    def forget_marks(self) -> None:
        """Carriers alone are marked, and they are gone."""

    def emulates(self, dtype: torch.dtype) -> bool:
        return dtype in SMALL

    def system_of(self, tensor: torch.Tensor) -> NumberSystem:
        return get_format(str(tensor.dtype).removeprefix("torch."))

    def epsilon(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).eps


def common_dtype(tensors: list[torch.Tensor]) -> torch.dtype:
    """What type promotion makes of tensors: those with dimensions decide, unless they are integers and others are not."""
    result: torch.dtype | None = None
    for with_dims in (True, False):
        dtypes = [tensor.dtype for tensor in tensors if (tensor.dim() > 0) == with_dims]
        if result is not None:
            dtypes = [dtype for dtype in dtypes if dtype.is_floating_point and not result.is_floating_point]
        for dtype in dtypes:
            result = dtype if result is None else torch.promote_types(result, dtype)
    assert result is not None
    return result
