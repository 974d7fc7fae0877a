"""The same run in float64 beside the emulated one: the same operations, masks and random numbers, errors being rounding's."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fpsim.backend.numba import magnitudes
from fpsim.emulation.machine import marks
from fpsim.emulation.observers.call import Call
from fpsim.emulation.observers.float64 import compute_in_float64, is_widened
from fpsim.emulation.observers.observer import Observer, observer_named
from fpsim.emulation.report import Draft, Key
from fpsim.report.counts import Error

_DROPOUT = torch.ops.aten.native_dropout.default
_MOVING = ("exact", "constant", "random", "collective")  # families that make no error of their own


@observer_named("shadow")
class Shadow(Observer):
    """Every tensor that the emulation computes has a shadow of its memory, with the float64 numbers in the place of its own.

    Parameters start from the values that the emulation has, inputs from what they are before they are rounded. What a model
    decides with Python's numbers (`.item()`) it decides by the emulated ones; what it draws at random is what it drew there.
    All of that is a float64 run to the bit; attention, which libraries compute in orders of their own, to within rounding.
    What is written to parameters outside the context is not seen: `reset` lets shadows start anew.
    """

    keeps_operands = True
    looks_at_counts = False

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._era = object()
        self._errors: dict[Key, tuple[np.ndarray, np.ndarray]] = {}  # cumulative and local ones

    def of(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """The shadow of a tensor: a view of what is kept, float64 for floating-point numbers; None where there is none."""
        if tensor.layout is not torch.strided:
            return self._of_sparse(tensor)
        found: Any = getattr(tensor.untyped_storage(), "_fpsim_shadow", None)
        if found is None or found[0] is not self._era or found[1] != tensor.element_size():
            return None
        return found[2].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())  # type: ignore[no-any-return]

    def _of_sparse(self, tensor: torch.Tensor) -> torch.Tensor | None:
        values = self.of(tensor._values()) if tensor.layout is torch.sparse_coo else None
        if values is None:
            return None
        return torch.sparse_coo_tensor(
            tensor._indices(), values, tensor.shape, is_coalesced=tensor.is_coalesced(), check_invariants=False
        )

    def after(self, call: Call) -> None:
        if call.outer is not None:  # the whole of it is computed at once
            return
        if not call.results and all(self.of(tensor) is None for tensor in call.tensors):
            return
        shadows = self._compute(call)
        for tensor, shadow in zip(call.made, shadows, strict=True):
            if marks.tag_on(tensor) is not marks.EXEMPT:
                self._keep(tensor, shadow)
        self._measure(call, shadows)

    def after_unscaling(self, gradients: list[torch.Tensor], factor: float) -> None:
        for shadow in map(self.of, gradients):
            if shadow is not None:
                shadow.mul_(factor)

    def _compute(self, call: Call) -> tuple[torch.Tensor, ...]:
        if call.operation is _DROPOUT:
            kept = call.result[1]
            probability = call.args[1]
            scale = 0.0 if probability == 1 else 1 / (1 - probability)
            return (self._operand(call, call.args[0]) * kept * scale if call.args[2] is not False else
                    self._operand(call, call.args[0])), kept  # fmt: skip
        shadows = compute_in_float64(call, lambda tensor: self._operand(call, tensor))
        if shadows is None:
            return tuple(tensor.double() if is_widened(tensor) else tensor for tensor in call.made)
        return shadows

    def _operand(self, call: Call, tensor: torch.Tensor) -> torch.Tensor:
        """An operand's shadow, which is written to in place where it is; made now for what has none."""
        found = self.of(tensor)
        if found is not None:
            return found
        is_written = any(tensor is target for target in call.written)
        given = call.as_written(tensor) if is_written else tensor
        wide = given.double() if is_widened(tensor) else given.clone() if is_written else given
        if is_written or marks.is_parameter(tensor):
            self._keep(tensor, wide)
            return self.of(tensor)  # type: ignore[return-value]
        return wide

    def _keep(self, tensor: torch.Tensor, shadow: torch.Tensor) -> None:
        """Let the tensor's memory have this shadow; where the tensor is but a part, the rest is what it is.

        Of a sparse tensor, what is stored: one of another layout than coordinates keeps none.
        """
        if tensor.layout is not torch.strided:
            if tensor.layout is torch.sparse_coo is shadow.layout and tensor._values().shape == shadow._values().shape:
                self._keep(tensor._values(), shadow._values())
            return
        there = self.of(tensor)
        if there is not None:
            if marks.pointer_to(there) != marks.pointer_to(shadow):  # else it was written to in place
                there.copy_(shadow)
            return
        storage: Any = tensor.untyped_storage()
        size = storage.nbytes() // tensor.element_size()
        dtype = torch.float64 if tensor.is_floating_point() else tensor.dtype
        covers = tensor.numel() == size and not tensor.storage_offset()
        if covers and shadow.stride() == tensor.stride() and shadow.dtype is dtype:
            buffer = shadow.as_strided((size,), (1,))
        else:
            buffer = tensor.detach().as_strided((size,), (1,), 0).to(dtype, copy=True)
            buffer.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).copy_(shadow)
        storage._fpsim_shadow = self._era, tensor.element_size(), buffer

    def _measure(self, call: Call, shadows: tuple[torch.Tensor, ...]) -> None:
        results = call.results
        if len(results) != len(shadows):
            shadows = tuple(shadow for shadow in shadows if shadow.is_floating_point())
        exact: Any = None if call.family in _MOVING else call.exact()
        emulated = call.emulated
        for tensor, shadow, wide in zip(results, shadows, exact or (None,) * len(results), strict=True):
            if not any(tensor is item for item in emulated):
                continue
            fmt = call.format_of(tensor)
            key = (call.module_of(tensor), call.name, call.phase, call.system_of(tensor).name)
            rows = self._errors.get(key)
            if rows is None:
                rows = self._errors[key] = np.zeros(4), np.zeros(4)
            constants, narrow = _constants(fmt.emin, fmt.precision), _plain(tensor, torch.float32)
            _compare(narrow, shadow, constants, rows[0])
            if wide is not None:
                _compare(narrow, wide, constants, rows[1])

    def contribute(self, draft: Draft) -> None:
        draft.observed.append("shadow")
        for key, (cumulative, local) in self._errors.items():
            draft.add(key, cumulative=_error(cumulative), local=_error(local))


@lru_cache(maxsize=256)
def _constants(emin: int, precision: int) -> np.ndarray:
    """What `magnitudes.compare` reads."""
    return np.array([0, 1, 52, 0x7FF, emin + 1023, precision - 1 + 2 * 1023], np.int64)


def _compare(narrow: torch.Tensor, reference: torch.Tensor, constants: np.ndarray, row: np.ndarray) -> None:
    """`magnitudes.compare`, row-major."""
    wide = _plain(reference, torch.float64)
    magnitudes.compare(marks.pointer_to(narrow), marks.pointer_to(wide), narrow.numel(), constants, row)


def _plain(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The elements side by side in their order: itself, or a copy."""
    if tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return tensor if tensor.is_contiguous() else tensor.contiguous()


def _error(row: np.ndarray) -> Error:
    elements, squares, reference, ulps = row.tolist()
    return Error(int(elements), squares, reference, ulps)
