"""Sums into places that indices name: what meets in one place is accumulated in ascending order of the source.

The element that is there already is the first term; then the accumulator's sum is rounded once to the format.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba.places import elements_by_place
from fpsim.emulation.machine.engine import reduction
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, register, register_functional
from fpsim.emulation.rules.arithmetic import mul
from fpsim.emulation.rules.exact import exact_rule

_aten = torch.ops.aten
_FLOAT32 = torch.float32


def _accumulate(machine: Machine, base: np.ndarray | None, rows: int, index: np.ndarray, source: np.ndarray) -> np.ndarray:
    """(rows, d): base (or zeros), with the rows of source (n, d) summed into those that index (n) names."""
    out = np.zeros((rows, source.shape[1]), np.float32) if base is None else base.copy()
    order, starts = elements_by_place(index, rows)
    counts = np.diff(starts)
    for count in np.flatnonzero(np.bincount(counts)[1:]) + 1:
        places = np.flatnonzero(counts == count)
        terms = source[order[starts[places][:, None] + np.arange(count)]]
        if base is not None:
            terms = np.concatenate([base[places][:, None], terms], axis=1)
        out[places] = reduction(machine, terms, (1,))
    return out


def _array(machine: Machine, tensor: Tensor) -> np.ndarray:
    return array_of(machine.floating(tensor).detach().contiguous())


def _result(machine: Machine, values: np.ndarray, shape: tuple[int, ...]) -> Tensor:
    return machine.exact(torch.from_numpy(np.ascontiguousarray(values)).reshape(shape))


@register(_aten.embedding_dense_backward.default, family="scatter")
def embedding_dense_backward(
    machine: Machine, gradient: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    if gradient.dtype is not _FLOAT32:
        return exact_rule(_aten.embedding_dense_backward.default)(
            machine, gradient, indices, num_weights, padding_idx, scale_grad_by_freq
        )
    index = indices.reshape(-1).numpy()
    source = _array(machine, gradient).reshape(index.size, -1 if index.size else gradient.shape[-1])
    if scale_grad_by_freq and index.size:  # divided by how often its row occurs, rounded, then summed
        counts = np.bincount(index, minlength=num_weights)[index]
        source = machine.finish(torch.from_numpy(source.astype(np.float64) / counts[:, None])).numpy()
    kept = index != padding_idx
    return _result(machine, _accumulate(machine, None, num_weights, index[kept], source[kept]), (num_weights, source.shape[1]))


def _index_add_rule(op: torch._ops.OpOverload) -> Rule:
    exact = exact_rule(op)

    def index_add(machine: Machine, x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Tensor:
        if x.dtype is not _FLOAT32:
            return exact(machine, x, dim, index, source, alpha=alpha)
        source = machine.floating(source)
        source = source if alpha == 1 else mul(machine, source, alpha)
        first = _array(machine, x.movedim(dim, 0) if x.dim() else x.reshape(1))
        rows, width = first.shape[0], math.prod(first.shape[1:])
        terms = _array(machine, source.movedim(dim, 0) if source.dim() else source.reshape(1))
        places = index.reshape(-1).numpy()
        out = _accumulate(machine, first.reshape(rows, width), rows, places, terms.reshape(places.size, width))
        result = torch.from_numpy(out.reshape(first.shape))
        return machine.exact((result.movedim(0, dim) if x.dim() else result.reshape(())).contiguous())

    return index_add


def scatter_add_rule(op: torch._ops.OpOverload) -> Rule:
    exact = exact_rule(op)

    def scatter_add(machine: Machine, x: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
        if x.dtype is not _FLOAT32:
            return exact(machine, x, dim, index, src)
        base = _array(machine, x)
        if index.numel() == 0:
            return _result(machine, base.copy(), x.shape)
        index, src = (item if item.dim() else item.reshape(1) for item in (index, src))  # a number is a vector of one element
        dim %= index.dim()
        places = list(np.indices(tuple(index.shape), sparse=True))
        places[dim] = index.numpy()
        flat = np.ravel_multi_index(tuple(places), np.atleast_1d(base).shape).reshape(-1)
        source = _array(machine, src[tuple(slice(size) for size in index.shape)])
        return _result(machine, _accumulate(machine, base.reshape(-1, 1), base.size, flat, source.reshape(-1, 1)), x.shape)

    return scatter_add


def index_put_rule(op: torch._ops.OpOverload) -> Rule:
    exact = exact_rule(op)

    def index_put(
        machine: Machine, x: Tensor, indices: list[MaybeTensor], values: Tensor, accumulate: bool = False, *rest: Any
    ) -> Tensor:
        if not accumulate or x.dtype is not _FLOAT32:
            if x.dtype is _FLOAT32:
                values = machine.floating(machine.filling(values))
            return exact(machine, x, indices, values, accumulate)
        base = _array(machine, x)
        positions = torch.arange(base.size).reshape(x.shape)[tuple(slice(None) if item is None else item for item in indices)]
        source = _array(machine, machine.floating(values).expand(positions.shape))
        flat = positions.reshape(-1).numpy()
        return _result(machine, _accumulate(machine, base.reshape(-1, 1), base.size, flat, source.reshape(-1, 1)), x.shape)

    return index_put


register_functional("index_add", "scatter", _index_add_rule)
register_functional("scatter_add", "scatter", scatter_add_rule)
register_functional("index_put", "scatter", index_put_rule)


@register(_aten._index_put_impl_.default, family="scatter")
def index_put_into(
    machine: Machine, x: Tensor, indices: list[MaybeTensor], values: Tensor, accumulate: bool = False, unsafe: bool = False
) -> Tensor:
    return machine.write(x, index_put_rule(_aten.index_put.default)(machine, x, indices, values, accumulate))


@register(_aten.bincount.default, family="scatter")
def bincount(machine: Machine, x: Tensor, weights: MaybeTensor = None, minlength: int = 0) -> Tensor:
    """How often each number occurs; with weights their sums."""
    counted = _aten.bincount.default(x, weights, minlength)  # or torch's own error
    if weights is None or weights.dtype is not _FLOAT32:
        return counted
    return machine.rules[_aten.index_add.default](machine, machine.exact(torch.zeros(len(counted))), 0, x, weights)
