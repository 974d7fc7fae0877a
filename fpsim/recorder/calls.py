"""Every operation that a thread makes with torch, below autograd: its arguments before, its results after, in bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from .bundle import MAX_HEADER, MAX_TENSORS, SIZES, Bundle
from .environment import flags

_UNSIGNED = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

#: Operations that copy or make numbers and compute none.
_NO_ARITHMETIC = frozenset((
    "clone", "detach", "alias", "lift_fresh", "empty_like", "zeros_like", "ones_like", "full_like", "new_empty", "new_zeros",
    "new_ones", "new_full", "new_empty_strided", "zero_", "fill_", "set_", "resize_", "resize_as_", "as_strided_",
    "is_same_size", "_local_scalar_dense", "record_stream",
))  # fmt: skip


class CallRecorder(TorchDispatchMode):
    """While it is entered, the calls of this thread that compute with floating-point tensors become records of a bundle.

    limit  bytes of tensors, before compression, after which nothing more is recorded; the bundle says where it stopped
    """

    def __init__(self, bundle: Bundle, limit: int):
        super().__init__()
        self.bundle, self.limit = bundle, limit
        self.section, self.label = "model", ""
        self._path: list[str] = []
        self._text = 0  # characters of the records' description

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.bundle.stopped is not None or not _computes(func, args, kwargs):
            return func(*args, **kwargs)
        record: dict[str, Any] = {"kind": "call", "section": self.section, "op": str(func), "place": self._place()}
        if self.label:
            record["label"] = self.label
        if torch.Tag.nondeterministic_seeded in func.tags:
            self._note(record | {"skipped": "draws random numbers"})
            return func(*args, **kwargs)
        try:
            record["args"] = [self._encoded(value) for value in args]
            record["kwargs"] = {key: self._encoded(value) for key, value in kwargs.items()}
        except _NotRecorded as reason:
            self._note(record | {"skipped": str(reason)})
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        written = {str(place): value for place, value in _written(func, args, kwargs) if value is not result}
        try:
            record["result"] = self._encoded(result)
            record["written"] = {place: self._encoded(value) for place, value in written.items()}
        except _NotRecorded as reason:
            self._note(record | {"skipped": str(reason)})
            return result
        record["flags"] = self.changed_flags()
        self._note(record)
        return result

    def _note(self, record: dict[str, Any]) -> None:
        """Add a record, and stop where a file has no room for more; half of a header is left for what one record may add."""
        bundle = self.bundle
        bundle.records.append(record)
        self._text += len(json.dumps(record))
        reason = None
        if bundle.nbytes > self.limit:
            reason = f"the limit of {self.limit >> 20} MB was reached"
        elif self._text > MAX_HEADER // 2 or len(bundle.tensors) > MAX_TENSORS // 2:
            reason = "a bundle has no room for the description of more"
        if reason is not None:
            bundle.stopped = f"after {len(bundle.records)} records, at {record['op']}: {reason}"

    def _place(self) -> str:
        node = torch._C._current_autograd_node()
        return f"backward, {node.name()}" if node is not None else self._path[-1] if self._path else ""

    def changed_flags(self) -> dict[str, Any]:
        """The flags that are not as the bundle's environment says."""
        usual = self.bundle.environment["flags"]
        return {key: value for key, value in flags().items() if value != usual[key]}

    def _encoded(self, value: Any) -> Any:
        """A value as JSON holds it; tensors go into the bundle."""
        if isinstance(value, torch.Tensor):
            return {"tensor": self.add(value)}
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return {"float": value.hex()}
        if isinstance(value, (list, tuple)):
            return [self._encoded(item) for item in value]
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": None}
        if isinstance(value, (torch.layout, torch.memory_format)):
            return {"layout": str(value)}
        raise _NotRecorded(f"a value is a {type(value).__name__}")

    def add(self, tensor: torch.Tensor) -> int:
        """The number of a tensor in the bundle."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype not in SIZES or tensor.layout is not torch.strided:
            raise _NotRecorded(f"a tensor of {dtype}, {tensor.layout}")
        return self.bundle.add_tensor(dtype, tuple(tensor.shape), tuple(tensor.stride()), bits_of(tensor))

    @contextmanager
    def following(self, model: torch.nn.Module | None = None) -> Iterator[CallRecorder]:
        """Enter, and note for each call which module made it: by its name in the model, else by its type."""
        names = {id(module): name for name, module in model.named_modules()} if model is not None else {}

        def before(module: torch.nn.Module, args: Any) -> None:
            outside = ".".join([*self._path[-1:], type(module).__name__])
            self._path.append(names.get(id(module), outside))

        def after(module: torch.nn.Module, args: Any, output: Any) -> None:
            if self._path:
                self._path.pop()

        handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after, always_call=True)]
        try:
            with self:
                yield self
        finally:
            for handle in handles:
                handle.remove()


class _NotRecorded(Exception):
    """A value that a bundle cannot hold, and why."""


def bits_of(tensor: torch.Tensor) -> np.ndarray:
    """The bits of a tensor on any device, flat in row-major order."""
    size = tensor.element_size()
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        flat = tensor.detach().contiguous().reshape(-1)
        raw = flat.to(torch.uint8) if tensor.dtype is torch.bool else flat.view(_UNSIGNED[size])
        # a copy before `numpy()`, after which torch lets no storage grow any more: `out=` and `resize_` must stay as they were
        return raw.to("cpu", copy=True).numpy().view(f"u{size}")


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def may_compute(func: Any) -> bool:
    """Whether this is an operation of torch's own that makes results of its operands: no view, nothing that only allocates."""
    if not isinstance(func, torch._ops.OpOverload) or func.namespace != "aten":
        return False
    is_view = any(item.alias_info and not item.alias_info.is_write for item in func._schema.returns)
    return not is_view and func._schema.name.removeprefix("aten::") not in _NO_ARITHMETIC


def _computes(func: Any, args: Any, kwargs: Any) -> bool:
    if not may_compute(func):
        return False
    name = func._schema.name.removeprefix("aten::")
    kinds = {tensor.dtype for tensor in _tensors((*args, *kwargs.values())) if tensor.is_floating_point()}
    if name in ("copy_", "_to_copy"):
        wanted = kwargs.get("dtype") or args[0].dtype
        return bool(kinds) and wanted.is_floating_point and kinds != {wanted}
    return bool(kinds)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    """(place, value) of each argument that the operation writes to."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            place = index if index < len(args) else argument.name
            yield place, args[index] if index < len(args) else kwargs.get(argument.name)
