"""`fmt="native"`: each dtype means itself. float16 and bfloat16 operations go through the table of rules, carried as float32.

A half tensor enters a rule as a float32 tensor of its values, marked as such; marked results leave as half tensors, which
hold them exactly. Results that a rule leaves unmarked (statistics saved for a backward pass) stay float32. Operations
without a half tensor are torch's own.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from fpsim.emulation.dispatch.mode import EmulationMode, run_as_written
from fpsim.emulation.errors import BeingTraced, UnsupportedOp, UnsupportedTensor
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.limits import LARGEST, in_fp32
from fpsim.emulation.machine.machine import Machine
from fpsim.emulation.machine.policy import NativePolicy
from fpsim.emulation.machine.updates import KINDS
from fpsim.emulation.numbers import places
from fpsim.emulation.registry import RULES, TABLE, each_element, name_of, overloads, positions
from fpsim.numbers.formats import Format, get_format

_aten = torch.ops.aten
_FLOAT32, _FLOAT64 = torch.float32, torch.float64
HALVES = (torch.float16, torch.bfloat16)
_FLOATING = frozenset((*HALVES, _FLOAT32, _FLOAT64))
_UNINITIALIZED = ("aten::empty", "aten::new_empty")
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

#: What takes operands of one dtype only, as torch has it.
_UNIFORM = ("matmul", "convolution", "scatter")


#: What reads a tensor of no dimensions and a wider dtype as a number.
_ARITHMETIC = frozenset(("add", "sub", "rsub", "mul", "div", "floor_divide"))

#: What has the dtype of its first operand, whatever it is filled with.
_OF_THE_FIRST = frozenset(("masked_fill", "index_fill", "fill"))

#: What computes in the wider dtype, and is rounded to that of its first operand.
_ROUNDED_TO_THE_FIRST = frozenset(("huber_loss", "soft_margin_loss", "normal"))

#: What refuses numbers beyond the range as a float32 operation, where the half one makes infinities of them.
_READS_FLOAT32 = frozenset(
    (*overloads("linspace").values(), *overloads("logspace").values(), _aten.normal.float_Tensor)
)

#: What computes a number from a tensor of no dimensions in the dtype of that one.
_IN_ITS_OWN_DTYPE = frozenset(("ldexp",))

#: What normalizations keep for their gradients, in float32.
_STATISTICS = ("mean", "rstd", "save_mean", "save_invstd", "save_var")


class NativeMachine(Machine):
    """A machine whose format is that of the dtype in hand: `choose` before each rule."""

    stands_for_largest = saturates_constants = False  # a model asks for the range of its own dtype; torch casts its constants

    def __init__(self, policy: NativePolicy, emulation: Any = None):
        super().__init__(policy, emulation)
        self.native = policy
        self._chosen: torch.dtype | None = None
        self._arithmetics: dict[torch.dtype, dict[str, Any]] = {}

    def choose(self, dtype: torch.dtype) -> None:
        """Compute in the arithmetic of this dtype from now on.

        Raises
        ------
        UnsupportedOp : where the accumulator that was asked for takes no values of that dtype.
        """
        if self._chosen is dtype:
            return
        arithmetic = self._arithmetics.get(dtype)
        if arithmetic is None:
            policy = self.native.of(str(dtype).removeprefix("torch."))
            if isinstance(policy, str):
                raise self.refuse(policy)
            arithmetic = self._arithmetics[dtype] = self.arithmetic_of(policy)
        self.__dict__.update(arithmetic)
        self._chosen = dtype

    def emulates(self, dtype: torch.dtype) -> bool:
        return dtype in HALVES

    def format_of(self, tensor: torch.Tensor) -> Format:
        return get_format(str(tensor.dtype).removeprefix("torch."))

    def epsilon(self, dtype: torch.dtype) -> float:
        return torch.finfo(dtype).eps


def _collect(values: Any, found: list[torch.Tensor]) -> list[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            _collect(value, found)
    return found


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


class _Call:
    """One call of a rule: carriers in, half tensors out."""

    def __init__(self, machine: NativeMachine, dtype: torch.dtype, as_they_are: bool = False):
        machine.choose(dtype)
        self.machine = machine
        self.dtype = dtype
        self.as_they_are = as_they_are
        self.carriers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def carry(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self._carry(value)
        if isinstance(value, (list, tuple)):
            return type(value)(self.carry(item) for item in value)
        return _FLOAT32 if isinstance(value, torch.dtype) and value in HALVES else value

    def _carry(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype is not _FLOAT32 and tensor.dtype not in HALVES:
            return tensor
        found = self.carriers.get(id(tensor))
        if found is not None:
            return found[1]
        carrier = tensor.detach().to(_FLOAT32, copy=True)  # exact
        if tensor.dtype is self.dtype or self.as_they_are:
            marks.mark(carrier, self.machine.tag)
        self.carriers[id(tensor)] = (tensor, carrier)
        return carrier

    def store(self, tensors: Any) -> None:
        """Write what the rule wrote to carriers into the tensors they stand for."""
        for tensor in tensors if isinstance(tensors, (list, tuple)) else (tensors,):
            found = self.carriers.get(id(tensor)) if isinstance(tensor, torch.Tensor) else None
            if found is not None:
                carrier = found[1]
                if tensor.shape != carrier.shape:
                    tensor.resize_(carrier.shape)
                tensor.copy_(carrier)  # exact

    def give(self, result: Any, written: dict[int, torch.Tensor]) -> Any:
        if isinstance(result, torch.Tensor):
            if id(result) in written:
                return written[id(result)]
            if result.dtype is _FLOAT32 and marks.tag_on(result) is self.machine.tag:
                return result.to(self.dtype)  # exact
            return result
        if isinstance(result, (list, tuple)):
            return type(result)(self.give(item, written) for item in result)
        return result

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        machine = self.machine
        named = {key: self.carry(value) for key, value in kwargs.items()}
        result = machine.rules[func](machine, *map(self.carry, args), **named)
        written: dict[int, torch.Tensor] = {}
        for index, name in positions(func)[1]:
            target = args[index] if index < len(args) else kwargs.get(name)
            if target is not None:
                self.store(target)
                for tensor in _collect((target,), []):
                    found = self.carriers.get(id(tensor))
                    if found is not None:
                        written[id(found[1])] = tensor
        return self.give(result, written)


class NativeMode(EmulationMode):
    """One thread's mode under fmt="native"."""

    machine: NativeMachine

    def __init__(self, machine: NativeMachine):
        super().__init__(machine)
        machine.stepping = EmulationMode(machine)  # steps see carriers
        self._accepted: set[Any] = set()  # operations and numbers, or dtypes, that torch takes together

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kind = KINDS.get(func)
        if kind is not None and kind.concerns(args, kwargs):
            changes = self.machine.updates.before(kind, args, kwargs or {})
            if changes:
                again = functools.partial(self.__torch_dispatch__, func, types, args, kwargs)
                return self.machine.updates.observe(func, kind, changes, again)
        result = self.dispatch(func, types, args, kwargs or {})
        self.machine.results.note(result)
        return result

    def dispatch(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation's result, whatever the dtypes of its tensors."""
        if types and FakeTensor in types:
            self._refuse_subclasses(func, types)
        rule_exists = func in RULES
        if rule_exists and TABLE[func].family == "view" and not isinstance(args[0], torch.Tensor):
            raise BeingTraced(func)
        tensors = _collect((*args, *kwargs.values()), [])
        kinds = {tensor.dtype for tensor in tensors}
        wanted = self._wanted(func, args, kwargs) if rule_exists else kwargs.get("dtype")
        if kinds.isdisjoint(HALVES) and wanted not in HALVES:
            if not self._half_by_default(func, tensors, wanted):
                return self._plain(func, args, kwargs, kinds)
            wanted = torch.get_default_dtype()
        if not rule_exists:
            return self._without_rule(func, args, kwargs)
        self._check_types(func, types)
        for tensor in tensors:
            if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                if tensor.device.type == "meta":
                    return self._plain(func, args, kwargs, kinds)
                self.machine.op = func
                self.machine.check(tensor)
        if TABLE[func].family == "collective":
            self.machine.op = func
            return RULES[func](self.machine, *args, **kwargs)  # it sees the dtypes that are sent
        if TABLE[func].family == "view" or func._schema.name.startswith(_UNINITIALIZED):
            return self._plain(func, args, kwargs, kinds)
        self.machine.op = func
        try:
            with _without_dispatch(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
                return self._compute(func, args, kwargs, tensors, kinds & _FLOATING, wanted)
        except UnsupportedOp as error:
            self._explain(error, func, args, kwargs)
            raise

    @staticmethod
    def _half_by_default(func: Any, tensors: list[torch.Tensor], wanted: Any) -> bool:
        return not tensors and wanted is None and torch.get_default_dtype() in HALVES and func in RULES

    @staticmethod
    def _wanted(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        position = positions(func)[0]
        return args[position] if 0 <= position < len(args) else kwargs.get("dtype")

    def _check_types(self, func: Any, types: Any) -> None:
        if types and not {torch.Tensor, torch.nn.Parameter, torch.nn.Buffer}.issuperset(types):
            self._refuse_subclasses(func, types)

    def _plain(self, func: Any, args: Any, kwargs: dict[str, Any], kinds: set[torch.dtype]) -> Any:
        reads_only = func is _aten._local_scalar_dense.default or (func in TABLE and TABLE[func].family == "view")
        for dtype in () if reads_only else kinds:
            if "float8" in str(dtype) or "float4" in str(dtype):
                raise UnsupportedTensor(
                    f"{func}: a tensor of {dtype}; fmt='native' knows float16, bfloat16, float32 and float64"
                )
        with _without_dispatch():
            return func(*args, **kwargs)

    def _compute(
        self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor], kinds: set[torch.dtype], wanted: Any
    ) -> Any:
        machine = self.machine
        dtype = wanted if wanted is not None else next((kind for kind in kinds if kind in HALVES), None)
        if dtype in HALVES and places(func):
            self._refuse_as_torch(func, args, kwargs, dtype)
            if func in _READS_FLOAT32:
                args, kwargs = _within_float32(args), {key: _within_float32(value) for key, value in kwargs.items()}
        if func is _aten.copy_.default:
            return self._copy(*args)
        if func is _aten._to_copy.default and (wanted not in HALVES or kinds == {wanted}):
            return func(*args, **kwargs)  # exact, or torch's own
        if func is _aten._to_copy.default:
            machine.choose(wanted)
            fresh = args[0].detach().clone(memory_format=torch.preserve_format)
            if fresh.dtype in HALVES:
                fresh = fresh.float()
            others = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "pin_memory")}
            rounded = machine.finish(fresh) if fresh.is_floating_point() else machine.floating(fresh)
            return _aten._to_copy.default(rounded, dtype=wanted, **others)
        if wanted is not None:
            if wanted not in HALVES:
                return func(*map(_upcast, args), **{key: _upcast(value) for key, value in kwargs.items()})
            return _Call(machine, wanted).run(func, args, kwargs)
        if len(kinds) == 1:
            return _Call(machine, next(iter(kinds))).run(func, args, kwargs)
        return self._mixed(func, args, kwargs, tensors)

    def _refuse_as_torch(self, func: Any, args: Any, kwargs: dict[str, Any], dtype: torch.dtype) -> None:
        """Raise what torch raises of a number that its dtype does not hold: where it is converted, not where it computes."""
        limit = torch.finfo(dtype).max
        given = [args[index] if index < len(args) else kwargs.get(name) for index, name in places(func)]
        if name_of(func) in _OF_THE_FIRST or _fills_a_mask(func, args):  # where torch reads a number out of a tensor
            given = [value.item() if isinstance(value, torch.Tensor) and not value.dim() else value for value in given]
        numbers = tuple(value for value in _flat(given) if type(value) in (float, int) and limit < abs(value) < math.inf)
        if numbers:
            self._ask_torch(func, args, kwargs, (dtype, numbers))

    def _ask_torch(self, func: Any, args: Any, kwargs: dict[str, Any], about: Any) -> None:
        """Raise what torch raises of a call; asked once for each operation and what the question is about, on copies."""
        if (func, about) in self._accepted:
            return
        try:
            with torch.random.fork_rng(devices=[]):
                func(*map(_copied, args), **{key: _copied(value) for key, value in kwargs.items()})
        except RuntimeError as error:
            if "not implemented" not in str(error):
                raise
        self._accepted.add((func, about))

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if target.dtype not in HALVES or source.dtype is target.dtype:
            return target.copy_(source)
        machine = self.machine
        machine.choose(target.dtype)
        if not source.is_floating_point():
            return target.copy_(machine.floating(source))
        fresh = source.detach().float() if source.dtype in HALVES else source.detach().clone()
        return target.copy_(machine.finish(fresh))

    def _mixed(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
        machine, family = self.machine, TABLE[func].family
        halves = {tensor.dtype for tensor in tensors} & set(HALVES)
        half = next(iter(halves))
        if family == "foreach":
            return self._one_by_one(func, args, kwargs)
        if len(halves) == 1 and (family == "optimizer" or "nll_loss" in func._schema.name):
            return _Call(machine, half).run(func, args, kwargs)
        if any(not tensor.dim() and tensor.dtype in (_FLOAT32, _FLOAT64) for tensor in tensors):
            self._ask_torch(func, args, kwargs, _kinds_in((*args, *kwargs.values())))
        if _fills_a_mask(func, args):
            return self._beside_numbers(func, args, kwargs, args[0].dtype)
        if family == "attention" and len(halves) == 1:  # wide parts stay as they are
            return _Call(machine, half).run(func, args, kwargs)
        if family in (*_UNIFORM, "attention"):
            raise machine.refuse(f"operands of different dtypes ({', '.join(sorted({str(item.dtype) for item in tensors}))})")
        if family == "normalization" and len(halves) == 1:
            return self._normalize(func, args, kwargs, half)
        common = self._common(func, args, tensors)
        if common in HALVES:
            return self._beside_numbers(func, args, kwargs, common)
        return self._promoted(func, args, kwargs)

    @staticmethod
    def _common(func: Any, args: Any, tensors: list[torch.Tensor]) -> torch.dtype:
        """The dtype that the operation computes in."""
        if name_of(func) in _OF_THE_FIRST:
            return args[0].dtype
        return common_dtype([tensor for tensor in tensors if tensor.is_floating_point()])

    def _beside_numbers(self, func: Any, args: Any, kwargs: dict[str, Any], common: torch.dtype) -> Any:
        """Half operands and wider tensors of no dimensions: numbers to arithmetic, elsewhere operands of the half dtype."""
        machine = self.machine
        machine.choose(common)
        arithmetic = name_of(func) in _ARITHMETIC
        spared = _collect([args[index] if index < len(args) else kwargs.get(name) for index, name in positions(func)[1]], [])

        def beside(value: Any) -> Any:
            if isinstance(value, (list, tuple)):
                return type(value)(map(beside, value))
            if not isinstance(value, torch.Tensor) or value.dim() or value.dtype not in (_FLOAT32, _FLOAT64):
                return value
            if any(value is item for item in spared):
                return value
            if name_of(func) in _IN_ITS_OWN_DTYPE:
                return value.double()
            return value.item() if arithmetic else machine.narrowed(value)

        return _Call(machine, common).run(func, tuple(map(beside, args)), {key: beside(value) for key, value in kwargs.items()})

    def _promoted(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation is float32's or float64's: torch's own, on half operands as they are; half targets are rounded to."""
        targets = []
        for index, name in positions(func)[1]:
            targets += _collect((args[index] if index < len(args) else kwargs.get(name),), [])
        rounds = name_of(func) in _ROUNDED_TO_THE_FIRST and isinstance(args[0], torch.Tensor) and args[0].dtype in HALVES
        kind = _FLOAT64 if rounds else _FLOAT32
        wide = {id(item): item.to(kind) for item in _collect((*args, *kwargs.values()), []) if item.dtype in HALVES}

        def widen(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return wide.get(id(value), value)
            return type(value)(map(widen, value)) if isinstance(value, (list, tuple)) else value

        result = func(*map(widen, args), **{key: widen(value) for key, value in kwargs.items()})
        if rounds:
            self.machine.choose(args[0].dtype)
            return self.machine.finish(result).to(args[0].dtype)
        for target in targets:
            if id(target) in wide:
                value = wide[id(target)]
                self._copy(target, value)
                if result is value:
                    result = target
        return result

    def _one_by_one(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A list operation on tensors of several dtypes: each element for itself."""
        results: list[torch.Tensor] = []
        for arguments, named in each_element(args, kwargs):
            tensors = _collect((*arguments, *named.values()), [])
            kinds = {tensor.dtype for tensor in tensors} & _FLOATING
            if kinds.isdisjoint(HALVES):
                result = func(*arguments, **named)
            elif len(kinds) == 1:
                result = _Call(self.machine, next(iter(kinds))).run(func, arguments, named)
            else:
                common = common_dtype([tensor for tensor in tensors if tensor.is_floating_point()])
                if common in HALVES:
                    result = self._beside_numbers(func, arguments, named, common)
                else:
                    result = self._promoted(func, arguments, named)
            results += result or []
        return results or None

    def _normalize(self, func: Any, args: Any, kwargs: dict[str, Any], half: torch.dtype) -> Any:
        """Half activations and float32 parameters: the first output is rounded once to half, the others to float32.

        Where only the statistics that the forward pass saved are float32, every output is half.
        """
        parameters = zip(func._schema.arguments, args, strict=False)
        if all(
            value.dtype is half or not value.is_floating_point() or argument.name in _STATISTICS
            for argument, value in parameters
            if isinstance(value, torch.Tensor)
        ):
            return _Call(self.machine, half, as_they_are=True).run(func, args, kwargs)
        names = {name for _, name in positions(func)[1]}
        kept = [argument.name for argument in func._schema.arguments]
        spared = tuple(
            value.clone() if kept[index] in names and isinstance(value, torch.Tensor) else value
            for index, value in enumerate(args)
        )
        first = _Call(self.machine, half, as_they_are=True).run(func, spared, kwargs)
        self.machine.choose(_FLOAT32)
        named = {key: _upcast(value) for key, value in kwargs.items()}
        others = self.machine.rules[func](self.machine, *map(_upcast, args), **named)
        return (first[0], *others[1:]) if isinstance(others, tuple) else first


def _fills_a_mask(func: Any, args: Any) -> bool:
    """Whether this puts a tensor of no dimensions where a mask says: the one `index_put` that takes another dtype."""
    if name_of(func) not in ("index_put", "_index_put_impl") or args[0].dtype not in HALVES or args[2].dim():
        return False
    return all(item is None or item.dtype is torch.bool for item in args[1])


def _within_float32(value: Any) -> Any:
    """Numbers beyond float32's range as the infinities that they are to whatever computes in it."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_within_float32, value))
    return in_fp32(value) if type(value) is float and abs(value) > LARGEST else value


def _kinds_in(values: Any) -> tuple[Any, ...]:
    """What among arguments decides whether torch takes them: dtypes and dimensions of tensors, types of numbers, switches."""

    def kind(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            return item.dtype, item.dim()
        return item if item is None or isinstance(item, (bool, str, torch.dtype)) else type(item)

    return tuple(map(kind, _flat(values)))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


def _copied(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_copied, value))
    if isinstance(value, torch.Generator):
        return value.clone_state()
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def _upcast(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().float() if value.dtype in HALVES else value
    if isinstance(value, (list, tuple)):
        return type(value)(map(_upcast, value))
    return value


run_as_written(NativeMode.__torch_dispatch__)
