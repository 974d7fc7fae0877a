"""float16, bfloat16 and float8 tensors under a named format: they mean themselves, as under fmt="native".

A cast rounds to the dtype that is asked for; operations on such tensors alone accumulate and round as a machine of that dtype
does; where one meets a float32 tensor, or is cast to float32, it is rounded to the format that the machine has there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from fpsim.emulation.dispatch.acceptance import Acceptance
from fpsim.emulation.dispatch.complex_numbers import compute as compute_complex, has_complex
from fpsim.emulation.dispatch.mode import EmulationMode
from fpsim.emulation.dispatch.native import NativeMode
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.limits import SMALL
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.native import NativeMachine, common_dtype
from fpsim.emulation.machine.policy import Policy, make_policy
from fpsim.emulation.registry import TABLE, written_by
from fpsim.emulation.schemas import each_element, mapped, name_of, tensors_in
from fpsim.numbers.rounding import Rounding

_FLOAT32 = torch.float32
_copy = torch.ops.aten.copy_.default
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]


class OtherTensors:
    """What a machine with formats of its own does with tensors that are below float32, or complex."""

    def __init__(self, machine: FormatMachine):
        self.machine = machine
        self._acceptance = Acceptance()
        self._modes: dict[Any, NativeMode] = {}

    def compute(self, mode: EmulationMode, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The result of an operation in which such a tensor or dtype has a part.

        Raises
        ------
        RuntimeError : what torch raises of dtypes that do not go together.
        UnsupportedOp : an accumulator that takes no values of that dtype.
        """
        self.machine.op = func
        if has_complex(args, kwargs):
            return self._complex(func, types, args, kwargs)
        if TABLE[func].family == "view":
            with _without_dispatch():
                return func(*args, **kwargs)
        if TABLE[func].family == "foreach" and len(_kinds((*args, *kwargs.values()))) > 1:
            results: list[torch.Tensor] = []
            for arguments, named in each_element(args, kwargs):
                results += self._one(mode, func, types, arguments, named, None) or []
            return results or None
        return self._one(mode, func, types, args, kwargs, TABLE[func].wanted(args, kwargs))

    def as_itself(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation where each dtype means itself: torch's own, unless a small dtype has a part in it."""
        result = self._native().dispatch(func, (), args, kwargs)
        for target in tensors_in(written_by(func, args, kwargs)) if func in TABLE else ():
            marks.unmark(marks.stored(target))
        for item in tensors_in([result]):
            self.machine.made_as_torch(item)
        return result

    def _complex(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Small operands beside complex ones are rounded to the format; a cast to a small dtype is one of real parts."""
        wanted = TABLE[func].wanted(args, kwargs)
        if wanted in SMALL:
            return self._one(self.machine.mode, func, types, (args[0].real, *args[1:]), kwargs, wanted)
        self.machine.select(func, args, kwargs)
        if self.machine.computes_as_torch:
            return self.as_itself(func, args, kwargs)
        args, kwargs = mapped(_replacing(self.machine.narrowed, tuple(SMALL)), (args, kwargs))
        return compute_complex(self.machine, func, args, kwargs)

    def _one(self, mode: EmulationMode, func: Any, types: Any, args: Any, kwargs: dict[str, Any], wanted: Any) -> Any:
        self.machine.select(func, args, kwargs)
        if self.machine.computes_as_torch:
            return self.as_itself(func, args, kwargs)
        kinds = _kinds((*args, *kwargs.values()))
        targets = tensors_in(written_by(func, args, kwargs))
        if wanted is None:
            wanted = targets[0].dtype if func is _copy else self._dtype_of_result(func, args, kwargs, kinds)
        if wanted in SMALL:
            return self._small(func, types, args, kwargs, targets)
        if wanted is not _FLOAT32 and TABLE[func].family != "scaled":  # float64 means itself, and integers do
            is_rounded = any(target.dtype in SMALL for target in targets)
            with _without_dispatch():
                return self._native().dispatch(func, types, args, kwargs) if is_rounded else func(*args, **kwargs)
        return self._float32(mode, func, args, kwargs, targets)

    def _dtype_of_result(self, func: Any, args: Any, kwargs: dict[str, Any], kinds: set[torch.dtype]) -> Any:
        """The dtype of what an operation computes, as torch has it."""
        if TABLE[func].family == "scaled":
            place = [argument.name for argument in func._schema.arguments].index("out_dtype")
            given = args[place] if place < len(args) else kwargs.get("out_dtype")
            return given or args[0].dtype
        if len(kinds) == 1:
            return next(iter(kinds))
        with _without_dispatch():
            found = self._acceptance.of_kinds(func, args, kwargs)
        if found in SMALL or found is _FLOAT32 or found is torch.float64:
            return found
        tensors = tensors_in((*args, *kwargs.values()))
        return common_dtype([tensor for tensor in tensors if tensor.is_floating_point()])

    def _small(self, func: Any, types: Any, args: Any, kwargs: dict[str, Any], targets: list[torch.Tensor]) -> Any:
        """An operation of a machine of the small dtype; float32 operands are values of the format."""
        machine = self.machine
        copies = {id(item): machine.operand(item).clone() for item in targets if item.dtype is _FLOAT32}
        read = _replacing(lambda tensor: copies[id(tensor)] if id(tensor) in copies else machine.operand(tensor), (_FLOAT32,))
        arguments, named = mapped(read, (args, kwargs))
        result = self._native().dispatch(func, types, arguments, named)
        if name_of(func).endswith("backward"):  # gradients of float32 parameters; forwards such results are statistics
            result = mapped(_replacing(machine.finish, (_FLOAT32,)), result)
        for target in targets:
            if id(target) in copies:  # what a normalization keeps beside a small result
                machine.store(target, copies[id(target)])
            else:
                marks.unmark(marks.stored(target))
        return result

    def _float32(
        self, mode: EmulationMode, func: Any, args: Any, kwargs: dict[str, Any], targets: list[torch.Tensor]
    ) -> Any:
        """An operation of the format; small operands are rounded to it, and results into small tensors to their dtype."""
        machine = self.machine
        fresh: dict[int, torch.Tensor] = {}

        def narrowed(tensor: torch.Tensor) -> torch.Tensor:
            if id(tensor) not in fresh:
                fresh[id(tensor)] = machine.narrowed(tensor)
            return fresh[id(tensor)]

        arguments, named = args, kwargs
        if TABLE[func].family != "scaled":
            arguments, named = mapped(_replacing(narrowed, tuple(SMALL)), (args, kwargs))
        with _without_dispatch():
            rule = mode.rules.get(func)
            assert rule is not None
            result = rule(machine, *arguments, **named)
        for target in targets:
            if id(target) in fresh:
                self._native().dispatch(_copy, (), (target, fresh[id(target)]), {})
                marks.unmark(marks.stored(target))
                result = target if result is fresh[id(target)] else result
        return result

    def _native(self) -> NativeMode:
        """The mode of a machine of each dtype, made when it is first needed."""
        machine = self.machine
        accumulate, rounding = machine.policy_of_small()
        key = (id(accumulate), rounding)  # the policy keeps it alive
        mode = self._modes.get(key)
        if mode is None:
            policy = machine.emulation.policy
            seed = policy.seed if rounding is Rounding.STOCHASTIC else None
            try:
                native = make_policy("native", accumulate, rounding, seed, policy.granularity)
            except ValueError as error:
                raise machine.refuse(str(error)) from None
            mode = self._modes[key] = NativeMode(_Small(native, machine))
        return mode


def _kinds(values: Iterable[Any]) -> set[torch.dtype]:
    return {tensor.dtype for tensor in tensors_in(values) if tensor.dtype.is_floating_point}


def _replacing(
    function: Callable[[torch.Tensor], torch.Tensor], dtypes: tuple[torch.dtype, ...]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function on tensors of these dtypes, others as they are."""
    return lambda tensor: function(tensor) if tensor.dtype in dtypes else tensor


class _Small(NativeMachine):
    """A machine of small dtypes within another one: it computes in its place, counts into its rows and draws on from it."""

    def __init__(self, policy: Policy, host: FormatMachine):
        self._host, kept = host, dict(vars(host))
        super().__init__(policy, host.emulation)
        vars(host).update(kept)

    def place(self) -> str:
        return self._host.place()

    def place_and_phase(self) -> tuple[str, str]:
        return self._host.place_and_phase()

    def key(self) -> int:
        return self._host.key()


def _of_host(name: str) -> property:
    return property(lambda self: getattr(self._host, name), lambda self, value: setattr(self._host, name, value))


for _name in ("rows", "path", "places", "updates_parameters", "calls", "call", "reads"):
    setattr(_Small, _name, _of_host(_name))
