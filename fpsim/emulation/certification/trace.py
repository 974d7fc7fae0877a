"""A model's emulated run written down: a straight line of torch operations on numbered tensors.

Every method of certification reads the same trace. In-place operations are recorded as the functions they stand for; what
could make the exact model take another path than the emulated one (a tensor read back into Python) is refused later, by
the operation's missing rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fpsim.emulation.certification import other_layouts
from fpsim.emulation.certification.attention import record_steps
from fpsim.emulation.certification.other_layouts import real_form
from fpsim.emulation.certification.steps import RecordedStep, Ref, Trace
from fpsim.emulation.errors import UnsupportedOp
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.operations import ATTENTION
from fpsim.emulation.registry import TABLE
from fpsim.emulation.rules.exact import MAKERS
from fpsim.emulation.schemas import mapped, tensors_in
from fpsim.emulation.simulation import Simulation

_FLOAT32 = torch.float32
_without_dispatch = torch._C._DisableTorchDispatch  # type: ignore[attr-defined]
_MAKERS = frozenset(f"aten::{name}" for name in MAKERS)
_DETACH = torch.ops.aten.detach.default
_UNINITIALIZED = frozenset(f"aten::{name}" for name in MAKERS if "empty" in name)

#: What is asked of memory, whatever it holds.
_OF_MEMORY = frozenset(("aten::is_pinned",))

#: What shows the numbers of a complex tensor or a sparse matrix where they lie.
_SHOWN = frozenset(("view_as_real", "view_as_complex", "detach", "alias", "_values", "values"))

#: What holds the numbers of one of its arguments, by place, in their order.
_HOLDING = {"_sparse_coo_tensor_with_dims_and_tensors": 4, "sparse_compressed_tensor": 2, "t": 0, "transpose": 0}


class _Recorder(TorchDispatchMode):
    """Sees every operation before the emulating mode below it, and writes down what went in and what came out.

    The emulation runs as it does without a recorder, draw for draw: what an operation reads a tensor from outside as, the
    machine tells (`reads`), each time that it does. Tensors are known by where they lie: views of one storage with the
    same shape and strides are one tensor. The trace keeps every storage alive, so that no place is used twice.
    """

    def __init__(self, machine: FormatMachine, trace: Trace):
        super().__init__()
        self.machine, self.trace = machine, trace
        self._numbers: dict[Any, int] = {}
        self._in_storage: dict[int, list[int]] = {}
        self._read: dict[Any, list[torch.Tensor]] = {}  # by the running operation
        self._leaves: dict[Any, int] = {}  # of tensors from outside, where no draw tells one reading from the next
        self._outside: list[torch.Tensor] = []

    def remember(self, tensor: torch.Tensor, number: int | None = None) -> int:
        number = self.trace.add(real_form(tensor)) if number is None else number
        self._numbers[_place(tensor)] = number
        self._in_storage.setdefault(_storage(tensor), []).append(number)
        return number

    def leaf(self, tensor: torch.Tensor, reference: torch.Tensor) -> int:
        """A tensor of emulated values that the run starts from; `reference` holds the exact ones."""
        number = self.remember(tensor)
        if _is_inexact(tensor):
            with _without_dispatch():
                self.trace.references[number] = real_form(reference.detach()).double()
        else:
            self.trace.integers.append(number)
        return number

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        target = self._target(func, args)
        if target is not None and _place(target) not in self._numbers:
            raise UnsupportedOp(f"{func}: certification follows no write to a tensor from outside the model")
        outside = [tensor for tensor in tensors_in((args, kwargs)) if self._is_outside(tensor)]
        for tensor in outside:
            self._refuse_stale(tensor)
        if target is not None:
            self._keep_old_values(target)
        self._read = {}
        if func is ATTENTION:
            return record_steps(self.machine, self.step, args)
        result = func(*args, **kwargs)
        name = func._schema.name
        if name in _UNINITIALIZED:
            self._in_storage.setdefault(_storage(result), [])
        elif any(item.is_complex() or item.layout is not torch.strided for item in tensors_in([args, kwargs, result])):
            self._record_other(func, args, kwargs, result, outside, target)
        elif name in _OF_MEMORY:
            pass
        elif name in _MAKERS and not tensors_in((args, kwargs)):
            with _without_dispatch():
                self.leaf(result, func(*args, **kwargs))
        elif func is _DETACH and not outside:  # autograd calls it too: the same tensor
            pass
        elif not (outside and func in TABLE and TABLE[func].family == "view"):  # what is seen through a view is outside too
            valued = name not in _MAKERS
            places = mapped(lambda tensor: self._number(tensor, func if valued else None), (args, kwargs))
            self._record(func, places, result, target)
        else:
            self._outside.extend(outside)
        return result

    def _record_other(
        self, func: Any, args: Any, kwargs: dict[str, Any], result: Any, outside: list[torch.Tensor], target: Any
    ) -> None:
        """An operation on complex numbers or sparse matrices."""
        name = func._schema.name.removeprefix("aten::")
        self._outside.extend(outside)
        if name in _SHOWN or not any(map(_is_inexact, tensors_in([result]))):
            return
        is_sparse = isinstance(result, torch.Tensor) and result.layout is not torch.strided
        if is_sparse and name in _HOLDING:
            source = args[_HOLDING[name]]
            number = self._number(source, func if name not in ("t", "transpose") else None)
            if isinstance(number, Ref):
                self.remember(result, number.index)
            return
        with _without_dispatch():
            known = target is None and other_layouts.write(self, func, args, result, kwargs)
        if not known:
            sparse = any(item.layout is not torch.strided for item in tensors_in([args, kwargs, result]))
            raise UnsupportedOp(f"{func}: {other_layouts.OF_SPARSE if sparse else other_layouts.OF_COMPLEX}")

    def reads(self, tensor: torch.Tensor, value: torch.Tensor) -> None:
        """What the machine reads a tensor from outside as."""
        self._read.setdefault(_place(tensor), []).append(value)

    def output(self, tensor: torch.Tensor) -> int | None:
        """The number of what the run returns, as it came if nothing was computed of it; None for integers."""
        if not self._is_outside(tensor):
            return self._numbers.get(_place(tensor))
        self._refuse_stale(tensor)
        return self.leaf(tensor, tensor)

    def _record(self, func: Any, places: Any, result: Any, target: torch.Tensor | None) -> None:
        if target is not None:
            func = self._functional(func)
        results = result if isinstance(result, (tuple, list)) else (result,)
        outputs = tuple(self.remember(item) if isinstance(item, torch.Tensor) and item.numel() else None for item in results)
        self.trace.steps.append(RecordedStep(func, places[0], places[1], outputs, self.machine.path))

    def value(self, tensor: torch.Tensor, op: Any) -> torch.Tensor:
        """The real form of what the operation read the tensor as."""
        number = self._number(tensor, op)
        return self.trace.values[number.index] if isinstance(number, Ref) else real_form(tensor)

    def step(self, op: Callable[..., Any], args: Sequence[Any], result: Any) -> Any:
        """Write down one step of an operation, and what it gave; returns that."""
        places = tuple(mapped(lambda tensor: self._number(tensor, op), list(args)))
        self._record(op, (places, {}), result, None)
        return result

    def _is_outside(self, tensor: torch.Tensor) -> bool:
        return _is_inexact(tensor) and real_form(tensor).numel() > 0 and _place(tensor) not in self._numbers

    def _refuse_stale(self, tensor: torch.Tensor) -> None:
        if _storage(tensor) in self._in_storage:
            raise UnsupportedOp(
                f"{self.machine.path or 'no module'}: a tensor is read that was not written as a whole, or through another "
                "view; certification follows in-place operations on whole tensors only"
            )
        if real_form(tensor).dtype is not _FLOAT32:
            raise UnsupportedOp(f"a tensor of {tensor.dtype}: certification takes models and inputs in float32")

    def _number(self, tensor: torch.Tensor, reader: Any) -> Any:
        """The number of a tensor; one from outside gets that of what the operation `reader` (None: only its shape) read."""
        number = self._numbers.get(_place(tensor))
        if number is None and self._is_outside(tensor):
            number = self._outside_number(tensor, reader)
        return tensor if number is None else Ref(number)

    def _outside_number(self, tensor: torch.Tensor, reader: Any) -> int:
        place = _place(tensor)
        if place in self._leaves:
            return self._leaves[place]
        numbers = self._read.get(place, [])
        if not numbers and reader is not None:
            raise UnsupportedOp(f"{reader}: certification cannot see what it reads a tensor from outside the model as")
        self._outside.append(tensor)  # kept, so that no other tensor takes its place
        number = self.leaf(numbers.pop(0) if len(numbers) > 1 else (*numbers, tensor)[0], tensor)
        if not self.machine.arithmetic.stochastic:
            self._leaves[place] = number
        return number

    @staticmethod
    def _target(func: Any, args: Any) -> torch.Tensor | None:
        """What an in-place operation writes to."""
        if not func._schema.is_mutable:
            return None
        written = [argument for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write]
        if len(written) != 1 or written[0].kwarg_only or written[0].name != func._schema.arguments[0].name:
            if "batch_norm" in func._schema.name:  # it writes statistics in training only, which its rule refuses
                return None
            raise UnsupportedOp(f"{func}: certification follows no operation that writes to several tensors or to out=")
        return args[0]

    def _keep_old_values(self, target: torch.Tensor) -> None:
        """Before its storage changes: what was recorded there stays what it was, and other views of it are stale."""
        storage = _storage(target)
        with _without_dispatch():
            for number in self._in_storage.get(storage, ()):
                old = self.trace.values[number]
                if _storage(old) == storage:
                    self.trace.values[number] = old.clone()
        self._stale = [place for place in self._numbers if place[0] == storage]

    def _functional(self, func: Any) -> Any:
        """The function that an in-place operation stands for; stale views are forgotten."""
        for place in self._stale:
            self._numbers.pop(place, None)
        packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::").removesuffix("_"), None)
        if packet is None or func._overloadname not in packet.overloads():
            raise UnsupportedOp(f"{func}: certification knows no function that it stands for")
        return getattr(packet, func._overloadname)


def _is_inexact(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _storage(tensor: torch.Tensor) -> int:
    return (tensor if tensor.layout is torch.strided else real_form(tensor)).untyped_storage()._cdata


def _place(tensor: torch.Tensor) -> Any:
    """Where a tensor's real form lies: complex numbers and their parts are one tensor, a sparse matrix and its values too."""
    conjugates = tensor.is_complex() and tensor.is_conj()
    if tensor.layout is not torch.strided or (tensor.is_complex() and not conjugates):
        tensor = real_form(tensor)
    return _storage(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, conjugates


def record(simulation: Simulation, model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], box: bool = False) -> Trace:
    """The trace of simulation(*inputs), whose one output is a tensor (or has one in `.logits`, as in transformers).

    What is recorded is that call, draw for draw. For a `box` around the inputs they are rounded before it, once.

    Raises
    ------
    UnsupportedOp : operations that certification cannot follow.
    TypeError : an output that is no tensor.
    """
    trace = Trace()
    machine = simulation._emulation.machine
    recorder = _Recorder(machine, trace)
    originals = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with simulation:
        with _without_dispatch():  # what is read here keeps the values that it has
            for name, tensor in (*simulation.model.named_parameters(), *simulation.model.named_buffers()):
                if tensor.dtype in (_FLOAT32, torch.complex64):
                    recorder.leaf(tensor, originals[name])
            arguments = []
            for item in inputs:
                if _is_inexact(item) and real_form(item).dtype is not _FLOAT32:
                    raise UnsupportedOp(f"an input of {item.dtype}: certification takes models and inputs in float32")
                if box and real_form(item) is not item:
                    raise UnsupportedOp("an input of complex numbers, or sparse: a radius is one of dense real inputs")
                if item.layout is not torch.strided:
                    arguments.append(item)  # its values are read where it is multiplied
                    continue
                if _is_inexact(item) and machine.arithmetic.stochastic and not box:  # drawn anew wherever it is read
                    arguments.append(item)
                    continue
                arguments.append(machine.operand(item.detach().clone()))
                number = recorder.leaf(arguments[-1], item)
                if item.dtype is _FLOAT32:
                    trace.inputs.append(number)
        machine.reads = recorder.reads
        try:
            with recorder:
                result = simulation.model(*arguments)
        finally:
            machine.reads = None
        result = getattr(result, "logits", result)
        if not isinstance(result, torch.Tensor) or result.is_complex():
            kind = type(result).__name__ if not isinstance(result, torch.Tensor) else result.dtype
            raise TypeError(f"the model's output must be a tensor of logits, got {kind}")
        output = recorder.output(result)
        if output is None:
            raise TypeError("the model's output holds no floating-point numbers that it computed")
    trace.output = output
    return trace
