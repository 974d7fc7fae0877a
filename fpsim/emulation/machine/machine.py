"""The machine that rules compute on: operands in, rounded results out, everything counted.

One `Machine` belongs to one thread of one `Emulation`; rules get it as their first argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fpsim.accumulation import Accumulator
from fpsim.backend.numba import counting
from fpsim.emulation.errors import MetaTensor, UnsupportedOp, UnsupportedTensor
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.finishing import Finish, Values
from fpsim.emulation.machine.limits import LARGEST, SMALL, hash_of, in_fp32
from fpsim.emulation.machine.policy import Policy
from fpsim.emulation.machine.results import Results, Time
from fpsim.emulation.machine.tables import Function, Tables
from fpsim.emulation.machine.updates import Updates
from fpsim.emulation.registry import PRIMITIVE, RULES, tensors_in
from fpsim.numbers import rounding as roundings
from fpsim.numbers.formats import Format, get_format
from fpsim.numbers.rounding import Rounding, round_into
from fpsim.sums.task import Sum

_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_array, _pointer = marks.array_of, marks.pointer_to
WORTH_A_PASS = 1 << 12  # elements: below, torch's own kernel and a rounding have less to set up
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
    )
)


def _serve_a_pass(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether these are large contiguous float32 tensors of one shape."""
    shape = tensors[0].shape
    return tensors[0].numel() >= WORTH_A_PASS and all(
        item.dtype is _FLOAT32 and item.shape == shape and item.is_contiguous() for item in tensors
    )


class Machine:
    """Arithmetic, counters and place in the model, for one thread."""

    def __init__(self, policy: Policy, emulation: Any = None):
        self.emulation = emulation
        self.__dict__.update(self.arithmetic_of(policy))
        self.op: Any = None
        self.rows: dict[tuple[str, Any, bool], np.ndarray] = {}
        self.path = ""
        self.calls = 0
        self.places: list[tuple[str, int]] = []
        self.nodes: list[tuple[int, str, Time]] = []  # from which autograd node on nodes were made by which module, and when
        self.first_node = 0
        self.many_nodes = 0  # above which those of graphs that are gone are forgotten
        self.time = Time()
        self.optimizer: Any = None
        self.results = Results()
        self.updates = Updates(self)
        self.halves: Any = None  # what 16-bit tensors mean while an optimizer steps
        self.reads: Callable[[torch.Tensor, torch.Tensor], None] | None = None  # told what a tensor from outside is read as
        self.mode: Any = None  # what hands it operations while the context is entered
        self.call: Any = None  # what observers were told of last that is not computed yet

    policy: Policy
    fmt: Format
    task: Sum
    product_task: Sum  # of products of matrices and convolutions
    rounding: Rounding
    tag: marks.Tag
    fast: bool
    stochastic: bool
    primitive: bool
    rules: dict[Any, Any]
    stepping: Any
    finishing: Finish
    tables: Tables
    _constants: dict[float, float]
    #: Whether float32's largest number, and a constant beyond the range, mean the format's own largest.
    stands_for_largest = True
    saturates_constants = True
    #: Whether products read their factors in a format of their own.
    has_factors = False

    @staticmethod
    def arithmetic_of(policy: Policy) -> dict[str, Any]:
        """The attributes that say how a machine of this policy computes."""
        fmt, rounding = policy.fmt, policy.rounding
        finishing = Finish(fmt, rounding)
        task = Sum.of(fmt, policy.accumulator, rounding)
        return {
            "policy": policy,
            "fmt": fmt,
            "task": task,
            "product_task": task,
            "rounding": rounding,
            "tag": marks.Tag(fmt.name),
            "fast": policy.carried_by_float32,
            "stochastic": rounding is Rounding.STOCHASTIC,
            "primitive": policy.granularity == "primitive",
            "rules": PRIMITIVE if policy.granularity == "primitive" else RULES,
            "finishing": finishing,
            "tables": Tables(finishing),
            "_constants": {},
        }

    def forget_marks(self) -> None:
        """What is marked may be changed outside, by anyone: from now on only a new mark counts."""
        self.tag = marks.Tag(self.fmt.name)

    # Operands

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of values of the format: the tensor itself if its storage says so, else a rounded copy.

        Integers, booleans and float64 pass as they are.

        Raises
        ------
        UnsupportedTensor : float16, bfloat16 and float8 (they mean themselves only under fmt="native"), complex
            numbers, tensors on another device, sparse tensors.
        """
        try:
            if tensor.untyped_storage()._fpsim is self.tag:  # type: ignore[attr-defined]
                return tensor
        except (AttributeError, NotImplementedError):
            pass
        if tensor.dtype is not _FLOAT32:
            self.check(tensor)
            return tensor
        if marks.tag_on(tensor) is marks.EXEMPT:
            return tensor
        self.check(tensor)
        fresh = self.rounded_copy(tensor)
        if self.reads is not None:
            self.reads(tensor, fresh)
        return fresh

    def rounded_copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """A rounded copy; elements that are float32's largest stand for the format's own."""
        fresh = tensor.detach().clone(memory_format=torch.preserve_format)
        overflows = self.row()[counting.OVERFLOWS]
        self._round(fresh)
        if self.stands_for_largest and self.row()[counting.OVERFLOWS] != overflows:
            told = tensor.detach().abs() == LARGEST
            self.row()[counting.OVERFLOWS] -= int(told.sum())
            fresh[told] = tensor.detach()[told].sign() * self.fmt.max_finite
        return fresh

    def holds(self, value: Any) -> bool:
        """Whether this is a float32 tensor that is known to hold values of the format."""
        try:
            return value.untyped_storage()._fpsim is self.tag and value.dtype is _FLOAT32
        except (AttributeError, NotImplementedError):
            return False

    def filling(self, value: Any) -> Any:
        """What fills elements: a number, or a tensor of one element from outside, is a constant; else an operand."""
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
        return marks.tag_on(tensor) is self.tag

    def emulates(self, dtype: torch.dtype) -> bool:
        """Whether tensors of this dtype hold values of an emulated format."""
        return dtype is _FLOAT32

    def epsilon(self, dtype: torch.dtype) -> float:
        """The distance from 1 to the next larger value of what a forward pass computes in."""
        return 2.0 ** (1 - self.fmt.precision)

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        """As `operand`, for what the operation stores into as well: the values that are there now."""
        return self.operand(tensor)

    def cast(self, source: torch.Tensor, dtype: torch.dtype, **kwargs: Any) -> torch.Tensor:
        """A tensor of a dtype below float32, rounded once to it; under a named format it can be printed and read."""
        self.check(source, computes=False)
        if source.dtype is not dtype:
            wide = np.array((source if source.dtype in SMALL else self.operand(source)).detach().double().numpy(), order="C")
            round_into(wide, wide, get_format(SMALL[dtype]), self.rounding, self._draws())
            source = torch.from_numpy(wide)
        return torch.ops.aten._to_copy.default(source, dtype=dtype, **kwargs)

    def check(self, tensor: torch.Tensor, computes: bool = True) -> None:
        """Refuse a tensor that this machine does not have; a dtype below float32 only for what computes with it."""
        dtype = tensor.dtype
        if tensor.device.type == "meta":
            raise MetaTensor
        if tensor.device.type != "cpu":
            raise UnsupportedTensor(self.message(f"a tensor on {tensor.device}; emulation runs on the CPU"))
        if tensor.layout is not torch.strided:
            raise UnsupportedTensor(self.message(f"a tensor of layout {tensor.layout}; emulation takes dense tensors"))
        if dtype is _FLOAT32 or dtype is _FLOAT64 or dtype in _AS_THEY_ARE or (not computes and dtype in SMALL):
            return
        if dtype.is_complex:
            raise UnsupportedTensor(self.message(f"a tensor of {dtype}; complex numbers have no rules"))
        raise UnsupportedTensor(
            self.message(f"a tensor of {dtype}; under fmt={self.fmt.name!r} float32 tensors hold {self.fmt.name} values "
                         'and smaller ones can be printed and read only: leave the model in float32 (or use fmt="native")')
        )  # fmt: skip

    def operands(self, value: Any) -> Any:
        """`operand` over tensors inside lists and tuples; everything else as it is."""
        if isinstance(value, torch.Tensor):
            return self.operand(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self.operands(item) for item in value)
        return value

    def scalar(self, value: float) -> float:
        """A Python number as an operand of arithmetic: in fp32 under "kernel", rounded to the format under "primitive"."""
        value = self.meant(value)
        if self.primitive:
            return self.in_format(value, draws=type(value) is float)
        return in_fp32(value) if type(value) is float else value

    def meant(self, value: Any) -> Any:
        """What a number stands for: float32's largest for the format's own, and so infinity where the format has none."""
        if type(value) is not float or not self.stands_for_largest:
            return value
        if abs(value) == LARGEST or (abs(value) == np.inf and not self.fmt.has_infinity):
            return math.copysign(self.fmt.max_finite, value)
        return value

    def in_format(self, value: Any, draws: bool = False) -> Any:
        """A Python number rounded to the format; an overflow is counted. What is no number is returned as it is.

        A value of the format draws only if `draws`: how many draws there were is part of what a seed means.
        """
        if type(value) is not float and type(value) is not int:
            return value
        if abs(value) == np.inf and not self.fmt.has_infinity:
            return value  # no value of the format is infinite, and comparisons find that out
        value = self.meant(value)
        if abs(value) > self.fmt.max_finite:
            own = np.zeros(counting.LENGTH, np.int64)
            self.finishing.count(np.array([value], dtype=np.float64), own)
            self.row()[counting.OVERFLOWS] += own[counting.OVERFLOWS]
        if self.stochastic and not draws and self._is_value(value):
            return value
        rounded = self.constant(value, saturate=False)
        return value if rounded == value else rounded

    def _is_value(self, value: float) -> bool:
        inward = np.array([value], dtype=np.float64)
        round_into(inward, inward, self.fmt, Rounding.TOWARD_ZERO)
        return bool(inward[0] == value)

    def constant(self, value: Any, saturate: bool = True) -> Any:
        """A constant that fills a tensor: rounded, and saturated if it is finite or the format has no infinity."""
        if type(value) is not float and type(value) is not int:
            return value
        if value == 0:
            return value if self.fmt.has_negative_zero else 0.0
        saturate = saturate and self.saturates_constants
        found = self._constants.get(value) if saturate and not self.stochastic else None
        if found is not None:
            return found
        array = np.array([value], dtype=np.float64)
        round_into(array, array, self.fmt, self.rounding, self.key() if self.stochastic else 0)
        result = float(array[0])
        if saturate and value == value and ((np.isinf(result) and abs(value) != np.inf) or not abs(result) <= np.inf):
            result = self.fmt.max_finite if value > 0 else -self.fmt.max_finite
        if saturate and not self.stochastic:
            self._constants[value] = result
        return result

    def floating(self, tensor: torch.Tensor) -> torch.Tensor:
        """An operand as the float32 tensor that type promotion makes of it: integers are rounded to the format."""
        tensor = self.operand(tensor)
        return tensor if tensor.dtype is _FLOAT32 else self._narrow(tensor.to(_FLOAT64, copy=True))

    def factor(self, tensor: torch.Tensor) -> torch.Tensor:
        """A factor of products of matrices or of a convolution, as they read it; as `floating` otherwise."""
        return self.floating(tensor)

    def turn(self, op: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Choose what the operation reads and what its results are rounded to: here always the same."""

    @contextmanager
    def as_forward(self) -> Iterator[None]:
        """Within a backward pass: results are what the forward pass makes of them. Here that is always so."""
        yield

    def narrowed(self, tensor: torch.Tensor) -> torch.Tensor:
        """Floating-point numbers of another dtype as values of the format, rounded, in a fresh float32 tensor."""
        return self._narrow(tensor.to(_FLOAT64, copy=True))

    def sum_of(self, left: torch.Tensor, right: torch.Tensor) -> Sum:
        """The sum of products of two factors' values."""
        return self.product_task

    def is_step_count(self, tensor: torch.Tensor) -> bool:
        """Whether this is `state["step"]` of the optimizer that is stepping: a count, which never rounds."""
        if self.optimizer is None or tensor.dim() != 0:
            return False
        if marks.tag_on(tensor) is marks.EXEMPT:
            return True
        storage = tensor.untyped_storage().data_ptr()
        found = False
        for state in self.optimizer.state.values():
            step = state.get("step") if isinstance(state, dict) else None
            if isinstance(step, torch.Tensor) and step.numel() == 1:
                marks.mark(step, marks.EXEMPT)
                found = found or step.untyped_storage().data_ptr() == storage
        return found

    # Results

    def finish(self, result: torch.Tensor) -> torch.Tensor:
        """Round a fresh result to the format, count what happened, mark it: float32 in place, float64 into float32.

        Anything else (integers, booleans) is returned as it is.
        """
        dtype = result.dtype
        if dtype is _FLOAT32:
            return self._round(result)
        if dtype is _FLOAT64:
            return self._narrow(result)
        return result

    def exact(self, result: torch.Tensor) -> torch.Tensor:
        """Mark a fresh float32 result whose elements are values of the format already."""
        return self._mark(result)

    def _mark(self, result: torch.Tensor) -> torch.Tensor:
        if result.dtype is _FLOAT32:
            result.untyped_storage()._fpsim = self.tag  # type: ignore[attr-defined]
        return result

    def compute(self, values: Values, shape: Any, granule: int = 1, cost: int = 0) -> torch.Tensor:
        """A fresh result: `values(i, j)` gives the float64 numbers of elements i ... j - 1 in row-major order.

        Ranges start at multiples of `granule`, may be computed by several threads at once, and end up rounded, counted and
        marked. `cost` is that of an element, in multiply-adds.
        """
        result = torch.empty(shape, dtype=_FLOAT32)
        flat = _array(result).reshape(-1)
        self.finishing.compute(values, flat, self.row(), self._draws(), granule, cost)
        return self._mark(result)

    def one_pass(
        self, operation: int, tensors: tuple[torch.Tensor, ...], factor: float = 1.0, into: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """An operation of `backend/numba/passes.py` on large float32 operands of one shape; None if they are not that.

        The result is fresh, or `into`, which may be one of the operands; fresh too where it is but a part of one.
        """
        if into is not None and any(0 < abs(_pointer(item) - _pointer(into)) < 4 * item.numel() for item in tensors):
            into = None
        if not self.fast or not _serve_a_pass(tensors if into is None else (*tensors, into)):
            return None
        result = torch.empty(tensors[0].shape, dtype=_FLOAT32) if into is None else into
        marks.judge(result)
        arrays = tuple(_array(item.detach()).reshape(-1) for item in (*tensors, result))
        self.finishing.one_pass(operation, arrays[:-1], factor, arrays[-1], self.row())
        if into is None:
            return self._mark(result)
        self.claim(into)
        return result

    def tanh_gradient(self, gradient: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        """gradient * (1 - result^2), computed in float64, of large float32 operands of one shape; None if they are not that."""
        if not _serve_a_pass((gradient, result)):
            return None
        out = torch.empty(gradient.shape, dtype=_FLOAT32)
        first, second, target = (_array(item.detach()).reshape(-1) for item in (gradient, result, out))
        self.finishing.tanh_gradient(first, second, target, self.row())
        return self._mark(out)

    def look_up(self, name: Any, function: Function, x: torch.Tensor) -> torch.Tensor | None:
        """A function of each value of a contiguous operand from a table, as `compute` would have it; None without one."""
        if self.stochastic:
            return None
        result = torch.empty(x.shape, dtype=_FLOAT32)
        values, flat = _array(x.detach()).reshape(-1), _array(result).reshape(-1)
        return self._mark(result) if self.tables.apply(name, function, values, flat, self.row()) else None

    def count_before(self, flat: np.ndarray, row: np.ndarray) -> None:
        """Count what rounding these float32 or float64 numbers to the format is about to do."""
        self.finishing.count(flat, row)

    def _round(self, result: torch.Tensor) -> torch.Tensor:
        if self.stochastic or not (result.is_contiguous() and self.finishing.round_few(result, self.row())):
            array = _array(result)
            flat = self._flat(result, array)
            self.finishing.round(flat, flat, self.row(), self._draws())
            if not np.may_share_memory(flat, array):
                array[...] = flat.reshape(array.shape)
        return self._mark(result)

    def _narrow(self, result: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(result, dtype=_FLOAT32)
        target = _array(out)
        if result.is_contiguous() or (not self.stochastic and marks.is_dense(result) and out.stride() == result.stride()):
            wide, flat = self._flat(result, _array(result)), self._flat(out, target)
        else:
            wide = np.ascontiguousarray(_array(result)).reshape(-1)
            flat = np.empty(wide.size, np.float32)
        self.finishing.round(wide, flat, self.row(), self._draws())
        if not np.may_share_memory(flat, target):
            target[...] = flat.reshape(target.shape)
        return self._mark(out)

    def _flat(self, tensor: torch.Tensor, array: np.ndarray) -> np.ndarray:
        """The elements in one line: as they lie in memory where their order is of no account, else row-major."""
        if not array.flags.c_contiguous and not self.stochastic and marks.is_dense(tensor):
            return _array(tensor.as_strided((tensor.numel(),), (1,)))
        return np.ascontiguousarray(array).reshape(-1)

    def _draws(self) -> int:
        return self.key() if self.stochastic else 0

    def write(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Store a result in an existing tensor, as in-place and `out=` operations do; returns the target."""
        if target is result:
            return target
        if not torch.can_cast(result.dtype, target.dtype):
            raise RuntimeError(f"result type {result.dtype} can't be cast to the desired output type {target.dtype}")
        if target.dtype is not _FLOAT32:
            marks.unmark(target)
            return target.copy_(result)
        if result.dtype is _FLOAT64:  # of operands that mean themselves
            result = self._narrow(result.expand(target.shape))
        target.copy_(result)
        self.claim(target)
        return target

    def claim(self, target: torch.Tensor) -> None:
        """Mark a tensor that was written to, if it is all of its storage and nobody else's."""
        if marks.tag_on(target) is not self.tag and marks.covers_storage(target):
            marks.claim(target, self.tag)

    def store(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Round a fresh result into an existing tensor; returns the target."""
        return self.write(target, self.finish(result))

    def formats_of(
        self, tensors: list[torch.Tensor], model: torch.nn.Module
    ) -> Iterator[tuple[torch.Tensor, Format, Rounding, marks.Tag]]:
        """Every parameter and buffer of a model, the format that it is rounded to, in which mode, and the mark that says so."""
        for tensor in tensors:
            yield tensor, self.fmt, self.rounding, self.tag

    def policy_of_halves(self) -> tuple[Accumulator, Rounding]:
        """How 16-bit tensors compute while an optimizer steps."""
        policy = self.emulation.policy
        return policy.asked or policy.accumulator, policy.rounding

    def would_hold(self, target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """What `store` of this value, in the place of the one just stored, would leave in the target; nothing is counted.

        Stochastic rounding draws what it drew for that one.
        """
        rows, self.rows = self.rows, {}
        if self.stochastic:
            self.calls -= 1
        try:
            return self.finish(value)
        finally:
            self.rows = rows

    # Counters and draws

    def row(self) -> np.ndarray:
        """The counters of the current module and operation."""
        key = (self.place(), self.op, self.fmt.saturate)
        try:
            return self.rows[key]
        except KeyError:
            return self.rows.setdefault(key, np.zeros(counting.LENGTH, dtype=np.int64))

    def place(self) -> str:
        """The path of the module whose forward pass, or whose part of the backward pass, is running."""
        if self.places or torch._C._current_graph_task_id() == -1:  # a recomputed forward pass has places too
            return self.path
        return self.emulation.backward_path() if self.emulation is not None else self.path

    def phase_of(self, op: Any, args: Any) -> str:
        """The pass that an operation belongs to: "forward", "backward" or "optimizer"."""
        if self.places:
            return "forward"  # a recomputed one too, and a closure's
        if torch._C._current_graph_task_id() != -1:
            return "backward"
        if torch.is_grad_enabled():
            return "forward"
        steps = self.optimizer is not None or (op._schema.is_mutable and any(map(marks.is_parameter, tensors_in(args[:1]))))
        return "optimizer" if steps else "forward"

    def format_of(self, tensor: torch.Tensor) -> Format:
        """The format whose values a floating-point tensor holds that an operation read or made."""
        return self.fmt if tensor.dtype is _FLOAT32 else get_format(str(tensor.dtype).removeprefix("torch."))

    def as_number(self, value: float) -> float:
        """A Python number as arithmetic reads it; nothing is counted or drawn."""
        value = self.meant(value)
        if not self.primitive or self.stochastic:
            return in_fp32(value) if type(value) is float else value
        return self.constant(value, saturate=False) if abs(value) < np.inf else value

    def key(self) -> int:
        """The key of one rounding's draws: a hash of seed, training step, module path and op number in its call."""
        step = self.emulation.training_step if self.emulation is not None else 0
        self.calls += 1
        path = self.path if self.places or torch._C._current_graph_task_id() == -1 else "<backward>"
        assert self.policy.seed is not None
        return roundings.draw_key(self.policy.seed, hash_of(step, path, self.calls))

    @contextmanager
    def dispatching(self) -> Iterator[None]:
        """Within a rule: torch's operations meet their own rules again."""
        with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.Python, False), self.stepping:  # type: ignore[attr-defined]
            yield

    def message(self, reason: str) -> str:
        """A sentence that names the current operation and module."""
        place = self.path or "no module"
        return f"{self.op} (called from {place}): {reason}"

    def refuse(self, reason: str) -> UnsupportedOp:
        """An `UnsupportedOp` for the current operation."""
        return UnsupportedOp(self.message(reason))

    def whole(self) -> None:
        """What a rule that rounds many steps as one calls first: under "primitive" it should not have been reached."""
        if self.primitive:
            raise self.refuse('this operation is rounded as a whole; granularity="primitive" has no steps for it')
