"""What a rule may ask of the machine that it computes on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from fpsim.emulation.errors import UnsupportedOp
from fpsim.emulation.machine.all_reduce import AllReduce
from fpsim.emulation.machine.arithmetic import Arithmetic
from fpsim.emulation.machine.finishing import Values
from fpsim.emulation.machine.tables import Function
from fpsim.sums.observers.observer import SumObserver
from fpsim.sums.task import Sum

#: A function that does what one operation does: it gets the machine, then the operation's own arguments.
Rule = Callable[..., Any]

# What arguments of operations are
MaybeTensor = torch.Tensor | None
MaybeDtype = torch.dtype | None
Axes = int | list[int] | None
_Value = TypeVar("_Value")


class Told(Protocol):
    """What keeps the changes of a parameter that an optimizer's step meant."""

    told: list[Any] | None


class Machine(Protocol):
    """Operands in, rounded results out, everything counted. Tensors are float32 tensors of values of the format."""

    arithmetic: Arithmetic
    rules: dict[torch._ops.OpOverload, Rule]
    has_factors: bool  # whether products read their factors in a format of their own
    optimizer: Any  # torch.optim.Optimizer while it steps, else None
    owner: str | None  # the module whose parameter an optimizer computes for

    @property
    def updates(self) -> Told: ...

    # Operands

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of values of the format: itself, or a rounded copy; of complex64 its two parts. Others pass as they are."""

    def operands(self, value: _Value) -> _Value:
        """`operand` over tensors inside lists and tuples; everything else as it is."""

    def floating(self, tensor: torch.Tensor) -> torch.Tensor:
        """An operand as the float32 tensor that type promotion makes of it: integers are rounded to the format."""

    def factor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A factor of products of matrices or of a convolution, as they read it; as `floating` otherwise."""

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `operand`, for what the operation stores into as well: the values that are there now."""

    def narrowed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floating-point numbers of another dtype as values of the format, rounded, in a fresh float32 tensor."""

    def filling(self, value: Any) -> Any:
        """What fills elements: a number, or a tensor of one element from outside, is a constant; else an operand."""

    def scalar(self, value: float) -> float:
        """A Python number as an operand of arithmetic: in fp32 under "kernel", rounded to the format under "primitive"."""

    def scalar_tensor(self, value: float) -> torch.Tensor:
        """`scalar` as a float32 tensor of no dimensions, which torch computes with in less time; nobody may write to it."""

    def constant(self, value: Any, saturate: bool = True) -> Any:
        """A constant that fills a tensor: rounded, and saturated if it is finite or the format has no infinity."""

    def in_format(self, value: Any, draws: bool = False) -> Any:
        """A Python number rounded to the format; an overflow is counted. What is no number is returned as it is.

        A value of the format draws only if `draws`: how many draws there were is part of what a seed means.
        """

    def check(self, tensor: torch.Tensor, computes: bool = True) -> None:
        """Refuse a tensor that this machine does not have; a dtype below float32 only for what computes with it."""

    def holds(self, value: Any) -> bool:
        """Whether this is a float32 tensor that is known to hold values of the format."""

    def emulates(self, dtype: torch.dtype) -> bool:
        """Whether tensors of this dtype hold values of an emulated format."""

    def epsilon(self, dtype: torch.dtype) -> float:
        """The distance from 1 to the next larger value of what a forward pass computes in."""

    def is_step_count(self, tensor: torch.Tensor) -> bool:
        """Whether this is `state["step"]` of the optimizer that is stepping: a count, which never rounds."""

    def sum_of(self, left: torch.Tensor, right: torch.Tensor) -> Sum:
        """The sum of products of two factors' values."""

    def sum_of_dtypes(self, left: torch.dtype, right: torch.dtype, result: torch.dtype) -> Sum:
        """The sum of products of values of two dtypes below float32, for a result of a dtype; `finish` rounds to that."""

    # Results

    def finish(self, result: torch.Tensor) -> torch.Tensor:
        """Round a fresh result to the format, count what happened, mark it: float32 in place, float64 into float32.

        Anything else (integers, booleans) is returned as it is.
        """

    def exact(self, result: torch.Tensor) -> torch.Tensor:
        """Mark a fresh float32 result whose elements are values of the format already."""

    def write(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Store a result in an existing tensor, as in-place and `out=` operations do; returns the target."""

    def store(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Round a fresh result into an existing tensor; returns the target."""

    def claim(self, target: torch.Tensor) -> None:
        """Mark a tensor that was written to, if it is all of its storage and nobody else's."""

    def would_hold(self, target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What `store` of this value, in the place of the one just stored, would leave in the target; nothing is counted.

        Stochastic rounding draws what it drew for that one.
        """

    def compute(self, values: Values, shape: Any, granule: int = 1, cost: int = 0) -> torch.Tensor:
        """A fresh result: `values(i, j)` gives the float64 numbers of elements i ... j - 1 in row-major order.

        Ranges start at multiples of `granule`, may be computed by several threads at once, and end up rounded, counted and
        marked. `cost` is that of an element, in multiply-adds.
        """

    def one_pass(
        self, operation: int, tensors: tuple[torch.Tensor, ...], factor: float = 1.0, into: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """An operation of `backend/numba/passes.py` on large float32 operands of one shape; None if they are not that.

        The result is fresh, or `into`, which may be one of the operands; fresh too where it is but a part of one.
        """

    def tanh_gradient(self, gradient: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """gradient * (1 - result^2), computed in float64, of large float32 operands of one shape; None if they are not that."""

    def look_up(self, name: Hashable, function: Function, x: torch.Tensor) -> torch.Tensor | None:
        """A function of each value of a contiguous operand from a table, as `compute` would have it; None without one."""

    # Counters, draws and the place in the model

    def row(self) -> np.ndarray:
        """The counters of the current module, operation, pass and format."""

    def look_into(self, task: Sum) -> SumObserver | None:
        """What is told of the roundings inside a sum of products, if an observer wants to know and they can be counted."""

    def count_before(self, flat: np.ndarray, row: np.ndarray) -> None:
        """Count what rounding these float32 or float64 numbers to the format is about to do."""

    def draws(self) -> int:
        """The key of one rounding's draws, 0 where it draws nothing."""

    @property
    def all_reduce(self) -> AllReduce:
        """How sums over the ranks of a group are made."""

    def dispatching(self) -> AbstractContextManager[None]:
        """Within a rule: torch's operations meet their own rules again."""

    def as_forward(self) -> AbstractContextManager[None]:
        """Within a backward pass: results are what the forward pass makes of them."""

    def message(self, reason: str) -> str:
        """A sentence that names the current operation and module."""

    def refuse(self, reason: str) -> UnsupportedOp:
        """An `UnsupportedOp` for the current operation."""

    def whole(self) -> None:
        """What a rule that rounds many steps as one calls first: under "primitive" it should not have been reached."""
