"""`fmt="native"`: each dtype means itself. Operations on dtypes below float32 go through the rules, carried as float32.

Results that a rule leaves unmarked (statistics saved for a backward pass) stay float32. Operations without a tensor of such a
dtype are torch's own.
"""

from __future__ import annotations

from typing import Any

import torch

from fpsim.emulation.dispatch.acceptance import Acceptance, fills_a_mask
from fpsim.emulation.dispatch.carriers import COMPLEX32, Call, ComplexCall, upcast
from fpsim.emulation.dispatch.mode import EmulationMode
from fpsim.emulation.errors import BeingTraced, UnsupportedTensor, stop_recording
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.layouts import with_values
from fpsim.emulation.machine.limits import SMALL, instead_of
from fpsim.emulation.machine.native import NativeMachine, common_dtype
from fpsim.emulation.machine.parts import conjugating
from fpsim.emulation.registry import PARTS_OF_SPARSE, RULES, SPARSE, TABLE, Entry, arrived, positions, written_by
from fpsim.emulation.schemas import OF_THE_FIRST, each_element, mapped, name_of, tensors_in

_aten = torch.ops.aten
_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_FLOATING = frozenset((*SMALL, _FLOAT32, _FLOAT64))
_HALF = {torch.float16}
_OF_HALVES = frozenset((COMPLEX32, torch.float16, *_INTEGERS))
_COMPLEX = frozenset((torch.complex32, torch.complex64, torch.complex128))
_modes_left = torch._C._len_torch_dispatch_stack  # type: ignore[attr-defined]
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]
_LOOKS_FOR_INFINITIES = _aten._amp_foreach_non_finite_check_and_unscale_.default
_AUTOCAST = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU)

#: What takes operands of one dtype only, as torch has it.
_UNIFORM = ("matmul", "convolution", "scatter")

#: What reads a tensor of no dimensions and a wider dtype as a number.
_ARITHMETIC = frozenset(("add", "sub", "rsub", "mul", "div", "floor_divide"))

#: What computes in the wider dtype, and is rounded to that of its first operand.
_ROUNDED_TO_THE_FIRST = frozenset(("huber_loss", "soft_margin_loss", "normal"))

#: What computes a number from a tensor of no dimensions in the dtype of that one.
_IN_ITS_OWN_DTYPE = frozenset(("ldexp",))

#: What normalizations keep for their gradients, in float32.
_STATISTICS = ("mean", "rstd", "save_mean", "save_invstd", "save_var")


class NativeMode(EmulationMode):
    """One thread's mode under fmt="native"."""

    machine: NativeMachine

    def __init__(self, machine: NativeMachine):
        super().__init__(machine)
        machine.stepping = EmulationMode(machine)  # steps see carriers
        self._acceptance = Acceptance()

    def dispatch(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation's result, whatever the dtypes of its tensors."""
        if types and not marks.PLAIN_TYPES.issuperset(types):
            self._refuse_subclasses(func, types)
        if _modes_left() > 0:
            stop_recording(func)
        entry = TABLE.get(func) or arrived(func)
        family = None if entry is None else entry.family
        if family == "view" and not isinstance(args[0], (torch.Tensor, complex)):
            raise BeingTraced(func)
        tensors = tensors_in((*args, *kwargs.values()))
        kinds = {tensor.dtype for tensor in tensors}
        wanted = kwargs.get("dtype") if entry is None else entry.wanted(args, kwargs)
        if COMPLEX32 in kinds or wanted is COMPLEX32 or (func is _aten.complex.default and kinds == _HALF):
            return self._of_half_complex_numbers(func, args, kwargs, kinds)
        if kinds.isdisjoint(SMALL) and wanted not in SMALL:
            if not self._half_by_default(func, tensors, wanted):
                return self._plain(func, args, kwargs, kinds)
            wanted = torch.get_default_dtype()
        if entry is None:
            return self._without_rule(func, args, kwargs)
        for tensor in tensors:
            if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
                if tensor.device.type == "meta":
                    return self._plain(func, args, kwargs, kinds)
                self.machine.op = func
                if tensor.device.type != "cpu" or (func not in SPARSE and family not in ("sparse", "view", "matmul")):
                    self.machine.check(tensor)
        self.machine.op = func
        if family == "complex" or (func is not _aten._to_copy.default and not kinds.isdisjoint(_COMPLEX)):
            raise self.machine.refuse("complex numbers beside a dtype below float32: cast that to float32 first")
        if family == "collective":
            return RULES[func](self.machine, *args, **kwargs)  # it sees the dtypes that are sent
        if family == "scaled":
            with _without_dispatch():
                return RULES[func](self.machine, *args, **kwargs)
        if entry.computes_nothing or func in PARTS_OF_SPARSE:
            return self._plain(func, args, kwargs, kinds)
        with _without_dispatch(), torch._C._ExcludeDispatchKeyGuard(_AUTOCAST):
            return self._compute(entry, args, kwargs, tensors, kinds & _FLOATING, wanted)

    def _of_half_complex_numbers(self, func: Any, args: Any, kwargs: dict[str, Any], kinds: set[torch.dtype]) -> Any:
        """complex32: two values of float16. Beside a wider dtype it is that one's, as torch promotes it."""
        entry = TABLE.get(func)
        if entry is None:
            return self._without_rule(func, args, kwargs)
        if entry.computes_nothing:
            return self._plain(func, args, kwargs, kinds)
        self.machine.op = func
        with _without_dispatch():
            if func is _aten._to_copy.default and kwargs.get("dtype", COMPLEX32) is not COMPLEX32:
                return func(*args, **kwargs)  # exact, or torch's own
            if func is _aten.copy_.default and args[0].dtype is not COMPLEX32:
                return self._plain(func, (args[0], *upcast(args[1:])), kwargs, kinds)
            if func not in (_aten._to_copy.default, _aten.copy_.default) and not kinds.issubset(_OF_HALVES):
                args, kwargs = upcast((args, kwargs))
                return self._plain(func, args, kwargs, kinds)
            return ComplexCall(self.machine, torch.float16).run(func, args, kwargs)

    @staticmethod
    def _half_by_default(func: Any, tensors: list[torch.Tensor], wanted: Any) -> bool:
        return not tensors and wanted is None and torch.get_default_dtype() in SMALL and func in RULES

    def _plain(self, func: Any, args: Any, kwargs: dict[str, Any], kinds: set[torch.dtype]) -> Any:
        reads_only = func is _aten._local_scalar_dense.default or (func in TABLE and TABLE[func].family == "view")
        for dtype in () if reads_only else kinds - SMALL.keys():
            if "float8" in str(dtype) or "float4" in str(dtype):
                raise UnsupportedTensor(f"{func}: a tensor of {dtype}, which has no arithmetic; {instead_of(dtype)}")
        with _without_dispatch():
            if func is _LOOKS_FOR_INFINITIES:
                return self._look_for_infinities(*args)
            if kinds.isdisjoint(_COMPLEX):
                return func(*args, **kwargs)
            with conjugating():
                return func(*args, **kwargs)

    def _look_for_infinities(self, gradients: Any, found: torch.Tensor, inverse_scale: torch.Tensor) -> None:
        """As a loss scaler does: of several lists of gradients the first that has some tells that a step is skipped."""
        earlier = found.item()
        _LOOKS_FOR_INFINITIES(gradients, found, inverse_scale)
        self.machine.emulation.note_unscaled(gradients, inverse_scale.item())
        if found.item() and not earlier:
            self.machine.emulation.skip_step()

    def _compute(
        self, entry: Entry, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor], kinds: set[torch.dtype], wanted: Any
    ) -> Any:
        machine, func = self.machine, entry.op
        only_tensors = not kwargs and marks.PLAIN_TYPES.issuperset(map(type, args))
        if entry.numbers and (entry.fills or not only_tensors):
            dtype = wanted if wanted is not None else next((kind for kind in kinds if kind in SMALL), None)
            if dtype is not None and dtype in SMALL:
                args, kwargs = self._acceptance.of_numbers(func, args, kwargs, dtype)
        if func is _aten.copy_.default:
            return self._copy(*args)
        if func is _aten._to_copy.default and (wanted not in SMALL or kinds == {wanted}):
            return func(*args, **kwargs)  # exact, or torch's own
        if func is _aten._to_copy.default and args[0].layout is not torch.strided:
            stored = marks.stored(args[0])
            values = self._compute(entry, (stored,), {"dtype": wanted}, [stored], kinds, wanted)
            return with_values(args[0], values)
        if func is _aten._to_copy.default:
            machine.choose(wanted)
            fresh = args[0].detach().clone(memory_format=torch.preserve_format)
            if fresh.dtype in SMALL:
                fresh = fresh.float()
            others = {key: value for key, value in kwargs.items() if key not in ("dtype", "device", "pin_memory")}
            rounded = machine.finish(fresh) if fresh.is_floating_point() else machine.floating(fresh)
            return _aten._to_copy.default(rounded, dtype=wanted, **others)
        if wanted is not None:
            if wanted not in SMALL:
                args, kwargs = upcast((args, kwargs))
                return func(*args, **kwargs)
            return Call(machine, wanted).run(func, args, kwargs)
        if len(kinds) == 1:
            return Call(machine, next(iter(kinds))).run(func, args, kwargs)
        return self._mixed(func, args, kwargs, tensors)

    def _copy(self, target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        if not isinstance(source, torch.Tensor):
            source = torch.tensor(source, dtype=_FLOAT64)
        if target.dtype not in SMALL or source.dtype is target.dtype:
            return target.copy_(source)
        machine = self.machine
        machine.choose(target.dtype)
        if not source.is_floating_point():
            return target.copy_(machine.floating(source))
        fresh = source.detach().float() if source.dtype in SMALL else source.detach().clone()
        return target.copy_(machine.finish(fresh))

    def _mixed(self, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[torch.Tensor]) -> Any:
        machine, family = self.machine, TABLE[func].family
        halves = {tensor.dtype for tensor in tensors}.intersection(SMALL)
        half = next(iter(halves))
        if family == "foreach":
            return self._one_by_one(func, args, kwargs)
        if len(halves) == 1 and (family == "optimizer" or "nll_loss" in func._schema.name):
            return Call(machine, half).run(func, args, kwargs)
        if any(not tensor.dim() and tensor.dtype in (_FLOAT32, _FLOAT64) for tensor in tensors):
            self._acceptance.of_kinds(func, args, kwargs)
        if fills_a_mask(func, args):
            return self._beside_numbers(func, args, kwargs, args[0].dtype)
        if family == "attention" and len(halves) == 1:  # wide parts stay as they are
            return Call(machine, half).run(func, args, kwargs)
        if family in (*_UNIFORM, "attention"):
            raise machine.refuse(f"operands of different dtypes ({', '.join(sorted({str(item.dtype) for item in tensors}))})")
        if family == "normalization" and len(halves) == 1:
            return self._normalize(func, args, kwargs, half)
        common = self._common(func, args, tensors)
        if common in SMALL:
            return self._beside_numbers(func, args, kwargs, common)
        return self._promoted(func, args, kwargs)

    @staticmethod
    def _common(func: Any, args: Any, tensors: list[torch.Tensor]) -> torch.dtype:
        """The dtype that the operation computes in."""
        if name_of(func) in OF_THE_FIRST:
            return args[0].dtype
        return common_dtype([tensor for tensor in tensors if tensor.is_floating_point()])

    def _beside_numbers(self, func: Any, args: Any, kwargs: dict[str, Any], common: torch.dtype) -> Any:
        """Half operands and wider tensors of no dimensions: numbers to arithmetic, elsewhere operands of the half dtype."""
        machine = self.machine
        machine.choose(common)
        arithmetic = name_of(func) in _ARITHMETIC
        targets = tensors_in(written_by(func, args, kwargs))

        def beside(value: torch.Tensor) -> Any:
            if value.dim() or value.dtype not in (_FLOAT32, _FLOAT64) or any(value is item for item in targets):
                return value
            if name_of(func) in _IN_ITS_OWN_DTYPE:
                return value.double()
            return value.item() if arithmetic else machine.narrowed(value)

        return Call(machine, common).run(func, *mapped(beside, (args, kwargs)))

    def _promoted(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation is float32's or float64's: torch's own, on half operands as they are; half targets are rounded to."""
        targets = tensors_in(written_by(func, args, kwargs))
        rounds = name_of(func) in _ROUNDED_TO_THE_FIRST and isinstance(args[0], torch.Tensor) and args[0].dtype in SMALL
        kind = _FLOAT64 if rounds else _FLOAT32
        wide = {id(item): item.to(kind) for item in tensors_in((*args, *kwargs.values())) if item.dtype in SMALL}
        arguments, named = mapped(lambda tensor: wide.get(id(tensor), tensor), (args, kwargs))
        result = func(*arguments, **named)
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
            tensors = tensors_in((*arguments, *named.values()))
            kinds = _FLOATING.intersection(tensor.dtype for tensor in tensors)
            if kinds.isdisjoint(SMALL):
                result = func(*arguments, **named)
            elif len(kinds) == 1:
                result = Call(self.machine, next(iter(kinds))).run(func, arguments, named)
            else:
                common = common_dtype([tensor for tensor in tensors if tensor.is_floating_point()])
                if common in SMALL:
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
            return Call(self.machine, half, as_they_are=True).run(func, args, kwargs)
        names = {name for _, name in positions(func)[1]}
        kept = [argument.name for argument in func._schema.arguments]
        spared = tuple(
            value.clone() if kept[index] in names and isinstance(value, torch.Tensor) else value
            for index, value in enumerate(args)
        )
        first = Call(self.machine, half, as_they_are=True).run(func, spared, kwargs)
        self.machine.choose(_FLOAT32)
        arguments, named = upcast((args, kwargs))
        others = self.machine.rules[func](self.machine, *arguments, **named)
        return (first[0], *others[1:]) if isinstance(others, tuple) else first
