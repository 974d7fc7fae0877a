"""The machine that rules compute on: operands in, rounded results out, everything counted.

One `FormatMachine` belongs to one thread of one `Emulation`; rules get it as their first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from fpsim.accumulation import Accumulator
from fpsim.backend.numba import counting
from fpsim.emulation.errors import NESTED, MetaTensor, SparseTensor, UnsupportedTensor
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.all_reduce import AllReduce
from fpsim.emulation.machine.arithmetic import Arithmetic
from fpsim.emulation.machine.limits import LARGEST, SMALL, instead_of
from fpsim.emulation.machine.parts import COMPLEX64, joined, parts_of
from fpsim.emulation.machine.place import Surroundings
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.machine.protocol import Rule
from fpsim.emulation.machine.updates import Updates
from fpsim.emulation.machine.writing import Writing
from fpsim.emulation.registry import PRIMITIVE, RULES
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.system import NumberSystem
from fpsim.sums.observers.counters import Counters
from fpsim.sums.task import Sum

_Tensor, _FLOAT32, _FLOAT64 = torch.Tensor, torch.float32, torch.float64
_NUMBERS = frozenset((int, float, bool, type(None)))
_AS_THEY_ARE = frozenset(
    (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.uint16,
        torch.uint32,
        torch.uint64,
        COMPLEX64,
        torch.complex128,
    )
)


class FormatMachine(Writing):
    """A machine of one format, for one thread; what its methods do for rules, `protocol.Machine` says."""

    #: Whether products read their factors in a format of their own.
    has_factors = False
    #: Whether all that operations read and make is of one format, whatever the operation and its place.
    has_one_format = True
    stepping: AbstractContextManager[Any]  # in which the steps of an operation meet their rules

    def __init__(self, policy: Policy, emulation: Surroundings):
        super().__init__(Arithmetic.of(policy), emulation)
        self.rules: dict[torch._ops.OpOverload, Rule] = PRIMITIVE if policy.granularity == "primitive" else RULES
        self.optimizer: Any = None  # that steps: the inner one, where its step is a part of another's
        self.outer_optimizers: list[Any] = []
        self.updates = Updates(self)
        self.others: Any = None  # what tensors below float32 and complex ones mean, where float32 ones hold a format
        self.reads: Callable[[torch.Tensor, torch.Tensor], None] | None = None  # told what a tensor from outside is read as
        self.mode: Any = None  # what hands it operations while the context is entered
        self.call: Any = None  # what observers were told of last that is not computed yet

    def forget_marks(self) -> None:
        """What is marked may be changed outside, by anyone: from now on only a new mark counts."""
        self.arithmetic = self.arithmetic.marking(marks.Tag(self.arithmetic.fmt.name))

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of values of the format: the tensor itself if its storage says so, else a rounded copy.

        Integers, booleans and float64 pass as they are; complex64 is two values of the format.

        Raises
        ------
        UnsupportedTensor : tensors on another device, sparse tensors.
        """
        try:
            tag = getattr(tensor.untyped_storage(), "_fpsim", None)
        except NotImplementedError:  # as in `marks.tag_on`
            tag = None
        if tag is self.arithmetic.tag:
            return tensor
        if tensor.dtype is not _FLOAT32:
            self.check(tensor)
            return joined(self.operand(parts_of(tensor))) if tensor.dtype is COMPLEX64 else tensor
        if tag is marks.EXEMPT:
            return tensor
        self.check(tensor)
        fresh = self.rounded_copy(tensor)
        if self.reads is not None:
            self.reads(tensor, fresh)
        return fresh

    def rounded_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A rounded copy; elements that are float32's largest stand for the format's own."""
        row = self.row()
        overflows = row[counting.OVERFLOWS]
        source = tensor.detach() if tensor.requires_grad else tensor
        fresh = self._round(source.clone(), row)
        if self.stands_for_largest and row[counting.OVERFLOWS] != overflows:
            told = source.abs() == LARGEST
            row[counting.OVERFLOWS] -= int(told.sum())
            fresh[told] = source[told].sign() * self.arithmetic.fmt.max_finite
        return fresh

    def holds(self, value: Any) -> bool:
        if not isinstance(value, _Tensor) or value.dtype is not _FLOAT32:
            return False
        try:
            return getattr(value.untyped_storage(), "_fpsim", None) is self.arithmetic.tag
        except NotImplementedError:  # as in `marks.tag_on`
            return False

    def filling(self, value: Any) -> Any:
        if isinstance(value, float):
            return self.constant(value)
        if isinstance(value, torch.Tensor) and value.dim() == 0 and value.dtype is _FLOAT32:
            if value.device.type == "cpu" and not self.made(value):
                fresh = self.exact(torch.tensor(self.constant(value.item())))
                if self.reads is not None:
                    self.reads(value, fresh)
                return fresh
        return self.operands(value)

    def made(self, tensor: torch.Tensor) -> bool:
        """Whether this machine has put values of a format into the tensor's memory."""
        return marks.tag_on(tensor) is self.arithmetic.tag

    def emulates(self, dtype: torch.dtype) -> bool:
        return dtype is _FLOAT32

    def epsilon(self, dtype: torch.dtype) -> float:
        return 2.0 ** (1 - self.arithmetic.fmt.enclosing.precision)

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.operand(tensor)

    def check(self, tensor: torch.Tensor, computes: bool = True) -> None:
        dtype = tensor.dtype
        if dtype is _FLOAT32 or dtype in _AS_THEY_ARE:  # the frequent ones, at least cost
            if tensor.is_cpu and tensor.layout is torch.strided and not tensor.is_nested:
                return
        if tensor.device.type == "meta":
            raise MetaTensor
        if tensor.device.type != "cpu":
            raise UnsupportedTensor(self.message(f"a tensor on {tensor.device}; emulation runs on the CPU"))
        if tensor.layout is not torch.strided and computes:
            reason = f"a tensor of layout {tensor.layout}; emulation takes dense tensors here: use to_dense()"
            raise SparseTensor(self.message(reason))
        if tensor.is_nested and computes:
            raise UnsupportedTensor(self.message(f"{NESTED} or take its parts, unbind(), one by one"))
        if dtype is _FLOAT32 or dtype is _FLOAT64 or dtype in _AS_THEY_ARE or (not computes and dtype in SMALL):
            return
        raise UnsupportedTensor(self.message(f"a tensor of {dtype}, which has no rules here; {instead_of(dtype)}"))

    def operands(self, value: Any) -> Any:
        if isinstance(value, _Tensor):
            return self.operand(value)
        if isinstance(value, (list, tuple)):
            return type(value)([x if type(x) in _NUMBERS else self.operands(x) for x in value])
        return value

    def floating(self, tensor: torch.Tensor) -> torch.Tensor:
        tensor = self.operand(tensor)
        return tensor if tensor.dtype is _FLOAT32 else self._narrow(tensor.to(_FLOAT64, copy=True))

    def factor(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.floating(tensor)

    def select(self, op: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Choose what the operation reads and what its results are rounded to: here always the same."""

    @contextmanager
    def as_forward(self) -> Iterator[None]:
        """Within a backward pass: results are what the forward pass makes of them. Here that is always so."""
        yield

    def begin_step(self, optimizer: Any) -> None:
        """An optimizer is about to step, within the step of another one if that one has not ended."""
        if self.optimizer is not None:
            self.outer_optimizers.append(self.optimizer)
        self.optimizer, self.updates_parameters = optimizer, True

    def end_step(self) -> None:
        """The step that began last has ended."""
        self.optimizer = self.outer_optimizers.pop() if self.outer_optimizers else None
        self.updates_parameters = self.optimizer is not None

    @property
    def computes_as_torch(self) -> bool:
        """Whether each dtype means itself where the running operation belongs."""
        return False

    def made_as_torch(self, result: torch.Tensor) -> None:
        """Remember where a result of such an operation was made."""

    def narrowed(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._narrow(tensor.to(_FLOAT64, copy=True))

    def sum_of(self, left: torch.Tensor, right: torch.Tensor) -> Sum:
        return self.arithmetic.product_task

    def is_step_count(self, tensor: torch.Tensor) -> bool:
        if self.optimizer is None or tensor.dim() != 0:
            return False
        if marks.tag_on(tensor) is marks.EXEMPT:
            return True
        storage = tensor.untyped_storage().data_ptr()
        is_one = False
        for state in self.optimizer.state.values():
            step = state.get("step") if isinstance(state, dict) else None
            if isinstance(step, torch.Tensor) and step.numel() == 1:
                marks.mark(step, marks.EXEMPT)
                is_one = is_one or step.untyped_storage().data_ptr() == storage
        return is_one

    def formats_of(
        self, tensors: list[torch.Tensor], model: torch.nn.Module
    ) -> Iterator[tuple[torch.Tensor, NumberSystem, Rounding, marks.Tag]]:
        """Every parameter and buffer of a model, the format that it is rounded to, in which mode, and the mark that says so."""
        for tensor in tensors:
            yield tensor, self.arithmetic.fmt, self.arithmetic.rounding, self.arithmetic.tag

    def policy_of_small(self) -> tuple[Accumulator, Rounding]:
        """How tensors below float32 compute."""
        policy = self.emulation.policy
        return policy.asked or policy.accumulator, policy.rounding

    def sum_of_dtypes(self, left: torch.dtype, right: torch.dtype, result: torch.dtype) -> Sum:
        accumulate, rounding = self.policy_of_small()
        return Sum.of(get_format(SMALL[left]), accumulate, rounding, self.arithmetic.fmt, get_format(SMALL[right]))

    @property
    def all_reduce(self) -> AllReduce:
        return self.emulation.policy.all_reduce

    def look_into(self, task: Sum) -> Counters | None:
        call = self.call
        return call.sums if call is not None and task.accumulator.kind.uncounted is None else None

    def system_of(self, tensor: torch.Tensor) -> NumberSystem:
        """The number system whose values a floating-point tensor holds that an operation read or made."""
        if tensor.dtype is _FLOAT32:
            return self.arithmetic.fmt
        return get_format(str(tensor.dtype).removeprefix("torch."))

    @contextmanager
    def dispatching(self) -> Iterator[None]:
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.Python, False), self.stepping:  # type: ignore[attr-defined]
            yield

    def whole(self) -> None:
        if self.arithmetic.primitive:
            raise self.refuse('this operation is rounded as a whole; granularity="primitive" has no steps for it')
