"""Results on their way out of a machine: rounded, counted, marked, stored."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import torch

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.constants import Constants
from fpsim.emulation.machine.finishing import Values
from fpsim.emulation.machine.parts import COMPLEX64, joined, parts_of
from fpsim.emulation.machine.tables import Function

_FLOAT32, _FLOAT64 = torch.float32, torch.float64
_array, _pointer = marks.array_of, marks.pointer_to
WORTH_A_PASS = 1 << 12  # elements: below, torch's own kernel and a rounding have less to set up


def _serve_a_pass(tensors: tuple[torch.Tensor, ...]) -> bool:
    """Whether these are large contiguous float32 tensors of one shape."""
    shape = tensors[0].shape
    return tensors[0].numel() >= WORTH_A_PASS and all(
        item.dtype is _FLOAT32 and item.shape == shape and item.is_contiguous() for item in tensors
    )


class Writing(Constants):
    """What fresh results become."""

    def finish(self, result: torch.Tensor) -> torch.Tensor:
        dtype = result.dtype
        if dtype is _FLOAT32:
            arithmetic = self.arithmetic
            if arithmetic.stochastic or not arithmetic.finishing.round_few(result, self.row()):
                return self._round(result)
            result.untyped_storage()._fpsim = arithmetic.tag  # type: ignore[attr-defined]
            return result
        if dtype is _FLOAT64:
            return self._narrow(result)
        return joined(self.finish(parts_of(result))) if dtype.is_complex else result

    def exact(self, result: torch.Tensor) -> torch.Tensor:
        return self._mark(result)

    def _mark(self, result: torch.Tensor) -> torch.Tensor:
        if result.dtype in (_FLOAT32, COMPLEX64):
            result.untyped_storage()._fpsim = self.arithmetic.tag  # type: ignore[attr-defined]
        return result

    def compute(self, values: Values, shape: Any, granule: int = 1, cost: int = 0) -> torch.Tensor:
        result = torch.empty(shape, dtype=_FLOAT32)
        flat = _array(result).reshape(-1)
        self.arithmetic.finishing.compute(values, flat, self.row(), self.draws(), granule, cost)
        return self._mark(result)

    def one_pass(
        self, operation: int, tensors: tuple[torch.Tensor, ...], factor: float = 1.0, into: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        if not self.arithmetic.fast or tensors[0].numel() < WORTH_A_PASS:
            return None
        if into is not None and any(0 < abs(_pointer(item) - _pointer(into)) < 4 * item.numel() for item in tensors):
            into = None
        if not _serve_a_pass(tensors if into is None else (*tensors, into)):
            return None
        result = torch.empty(tensors[0].shape, dtype=_FLOAT32) if into is None else into
        marks.judge(result)
        arrays = tuple(_array(item.detach()).reshape(-1) for item in (*tensors, result))
        self.arithmetic.finishing.one_pass(operation, arrays[:-1], factor, arrays[-1], self.row())
        if into is None:
            return self._mark(result)
        self.claim(into)
        return result

    def tanh_gradient(self, gradient: torch.Tensor, result: torch.Tensor) -> torch.Tensor | None:
        if not _serve_a_pass((gradient, result)):
            return None
        out = torch.empty(gradient.shape, dtype=_FLOAT32)
        first, second, target = (_array(item.detach()).reshape(-1) for item in (gradient, result, out))
        self.arithmetic.finishing.tanh_gradient(first, second, target, self.row())
        return self._mark(out)

    def look_up(self, name: Hashable, function: Function, x: torch.Tensor) -> torch.Tensor | None:
        if self.arithmetic.stochastic:
            return None
        result = torch.empty(x.shape, dtype=_FLOAT32)
        values, flat = _array(x.detach()).reshape(-1), _array(result).reshape(-1)
        return self._mark(result) if self.arithmetic.tables.apply(name, function, values, flat, self.row()) else None

    def count_before(self, flat: np.ndarray, row: np.ndarray) -> None:
        self.arithmetic.finishing.count(flat, row)

    def _round(self, result: torch.Tensor, row: np.ndarray | None = None) -> torch.Tensor:
        """The float32 result rounded in place and marked; `row` are the counters, left out those of the operation that runs."""
        arithmetic, row = self.arithmetic, self.row() if row is None else row
        if arithmetic.stochastic or not arithmetic.finishing.round_few(result, row):
            array = _array(result)
            flat = self._flat(result, array)
            arithmetic.finishing.round(flat, flat, row, self.draws())
            if not np.may_share_memory(flat, array):
                array[...] = flat.reshape(array.shape)
        result.untyped_storage()._fpsim = arithmetic.tag  # type: ignore[attr-defined]
        return result

    def _narrow(self, result: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(result, dtype=_FLOAT32)
        target = _array(out)
        if result.is_contiguous():
            wide, flat = _array(result).reshape(-1), self._flat(out, target)
        elif not self.arithmetic.stochastic and marks.is_dense(result) and out.stride() == result.stride():
            wide, flat = self._flat(result, _array(result)), self._flat(out, target)
        else:
            wide = np.ascontiguousarray(_array(result)).reshape(-1)
            flat = np.empty(wide.size, np.float32)
        self.arithmetic.finishing.round(wide, flat, self.row(), self.draws())
        if not np.may_share_memory(flat, target):
            target[...] = flat.reshape(target.shape)
        return self._mark(out)

    def _flat(self, tensor: torch.Tensor, array: np.ndarray) -> np.ndarray:
        """The elements in one line: as they lie in memory where their order is of no account, else row-major."""
        if not array.flags.c_contiguous and not self.arithmetic.stochastic and marks.is_dense(tensor):
            return _array(tensor.as_strided((tensor.numel(),), (1,)))
        return np.ascontiguousarray(array).reshape(-1)

    def write(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if target is result:
            return target
        if not torch.can_cast(result.dtype, target.dtype):
            raise RuntimeError(f"result type {result.dtype} can't be cast to the desired output type {target.dtype}")
        if target.dtype is COMPLEX64:
            held = result if result.dtype is COMPLEX64 else self.finish(result).to(COMPLEX64)
            self.write(parts_of(target), parts_of(held))
            return target
        if target.dtype is not _FLOAT32:
            marks.unmark(target)
            return target.copy_(result)
        if result.dtype is _FLOAT64:  # of operands that mean themselves
            result = self._narrow(result.expand(target.shape))
        target.copy_(result)
        self.claim(target)
        return target

    def claim(self, target: torch.Tensor) -> None:
        if marks.tag_on(target) is not self.arithmetic.tag and marks.covers_storage(target):
            marks.claim(target, self.arithmetic.tag)

    def store(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        return self.write(target, self.finish(result))

    def would_hold(self, target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        rows, touched, self.rows, self.touched = self.rows, self.touched, {}, None
        if self.arithmetic.stochastic:
            self.calls -= 1
        try:
            return self.finish(value)
        finally:
            self.rows, self.touched = rows, touched
