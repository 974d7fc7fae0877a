"""Batch and layer normalization: float64 inside in a fixed order, one rounding per output.

The statistics that are saved for the backward pass stay wide (float32, unmarked).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpsim.backend import threads
from fpsim.backend.numba import normalization as kernels
from fpsim.emulation.machine.finishing import by_rows
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import itself_in_float64, register

_aten = torch.ops.aten
_SUM_COST = 4  # of a term of a sum in float64, in multiply-adds


def vector_of(machine: Machine, tensor: MaybeTensor, size: int, default: float) -> np.ndarray:
    if tensor is None:
        return np.full(size, default)
    return array_of(machine.operand(tensor).detach()).astype(np.float64)


def _channels(tensor: Tensor) -> np.ndarray:
    """The (n, c, s) array of a tensor (n, c, ...)."""
    return array_of(tensor.detach().contiguous()).reshape(tensor.shape[0], tensor.shape[1], -1)


def _like(machine: Machine, result: Tensor, tensor: Tensor) -> Tensor:
    """A contiguous result in the tensor's memory format."""
    if tensor.is_contiguous():
        return result
    return machine.exact(torch.empty_like(tensor, memory_format=torch.preserve_format).copy_(result))


def _by_channels(kernel: Any, *arrays: np.ndarray) -> None:
    """Run a kernel over all channels of the first array, (n, c, s); threads share them."""
    channels = arrays[0].shape[1]
    threads.run(lambda first, last: kernel(*arrays, first, last), threads.parts(channels, _SUM_COST * arrays[0].size))


def wide_tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(values.astype(np.float32))


@itself_in_float64(_aten.native_batch_norm.default)
def batch_norm(
    machine: Machine, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, running_mean: MaybeTensor, running_var: MaybeTensor,
    training: bool, momentum: float, eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    machine.whole()
    x = machine.floating(x)
    array, channels = _channels(x), x.shape[1]
    scale, shift = vector_of(machine, weight, channels, 1.0), vector_of(machine, bias, channels, 0.0)
    if training:
        mean, variance = np.empty(channels), np.empty(channels)
        _by_channels(kernels.batch_statistics, array, mean, variance)
        count = array.shape[0] * array.shape[2]
        if running_mean is not None:
            _move(machine, running_mean, mean, momentum)
        if running_var is not None:
            _move(machine, running_var, variance * (count / (count - 1) if count > 1 else np.nan), momentum)
    else:
        mean, variance = vector_of(machine, running_mean, channels, 0.0), vector_of(machine, running_var, channels, 1.0)
    inverse = 1.0 / np.sqrt(variance + eps)
    size = max(1, array.shape[2])
    planes = array.reshape(-1, size)

    def normalized(rows: slice, out: np.ndarray) -> None:
        kernels.batch_apply(planes[rows], rows.start, mean, inverse, scale, shift, out)

    result = _like(machine, machine.compute(by_rows(normalized, size), x.shape, size), x)
    saved = (wide_tensor(mean), wide_tensor(inverse)) if training else (torch.empty(0), torch.empty(0))
    return (result, *saved)


def _move(machine: Machine, running: Tensor, batch: np.ndarray, momentum: float) -> None:
    """running = (1 - momentum) * running + momentum * batch, rounded once."""
    old = array_of(machine.held(running).detach()).astype(np.float64)
    machine.store(running, torch.from_numpy((1.0 - momentum) * old + momentum * batch))


register(_aten.native_batch_norm.default, family="normalization")(batch_norm)
register(_aten._native_batch_norm_legit.default, family="normalization")(batch_norm)


@register(_aten._native_batch_norm_legit.no_stats, family="normalization")
def batch_norm_without_statistics(
    machine: Machine, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, training: bool, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    return batch_norm(machine, x, weight, bias, None, None, training, momentum, eps)


@register(_aten.native_batch_norm_backward.default, family="normalization")
@itself_in_float64(_aten.native_batch_norm_backward.default, 1)
def batch_norm_backward(
    machine: Machine, gradient: Tensor, x: Tensor, weight: MaybeTensor, running_mean: MaybeTensor, running_var: MaybeTensor,
    save_mean: Tensor, save_invstd: Tensor, train: bool, eps: float, output_mask: list[bool],
) -> tuple[MaybeTensor, ...]:  # fmt: skip
    machine.whole()
    x, gradient = machine.operand(x), machine.operand(gradient)
    array, channels = _channels(x), x.shape[1]
    if train:
        mean, inverse = array_of(save_mean).astype(np.float64), array_of(save_invstd).astype(np.float64)
    else:
        mean = vector_of(machine, running_mean, channels, 0.0)
        inverse = 1.0 / np.sqrt(vector_of(machine, running_var, channels, 1.0) + eps)
    gradients, (total, product) = _channels(gradient), np.empty((2, channels))
    _by_channels(kernels.batch_gradient_sums, gradients, array, mean, total, product)
    count = max(1, array.shape[0] * array.shape[2])
    gx = None
    if output_mask[0]:
        # In training the statistics depend on the input.
        average, slope = (total / count, product * inverse * inverse / count) if train else np.zeros((2, channels))
        scale = inverse * vector_of(machine, weight, channels, 1.0)
        size = max(1, array.shape[2])
        g, planes = gradients.reshape(-1, size), array.reshape(-1, size)

        def input_gradient(rows: slice, out: np.ndarray) -> None:
            kernels.batch_gradient(g[rows], planes[rows], rows.start, mean, average, slope, scale, out)

        gx = _like(machine, machine.compute(by_rows(input_gradient, size), x.shape, size), x)
    return (
        gx,
        machine.finish(torch.from_numpy(product * inverse)) if output_mask[1] else None,
        machine.finish(torch.from_numpy(total)) if output_mask[2] else None,
    )


@register(_aten.native_layer_norm.default, family="normalization")
@itself_in_float64(_aten.native_layer_norm.default)
def layer_norm(
    machine: Machine, x: Tensor, shape: list[int], weight: MaybeTensor, bias: MaybeTensor, eps: float
) -> tuple[Tensor, ...]:
    machine.whole()
    x = machine.floating(x)
    size = math.prod(shape)
    array = array_of(x.detach().contiguous()).reshape(-1, size)
    scale, shift = (vector_of(machine, item, size, default).reshape(-1) for item, default in ((weight, 1.0), (bias, 0.0)))
    mean, inverse = np.empty((2, len(array)))

    def normalized(rows: slice, out: np.ndarray) -> None:
        kernels.layer_forward(array[rows], scale, shift, eps, out, mean[rows], inverse[rows])

    result = machine.compute(by_rows(normalized, size), x.shape, size)
    outer = [*x.shape[: x.dim() - len(shape)], *(1 for _ in shape)]
    return (
        result,
        wide_tensor(mean).view(outer),
        wide_tensor(inverse).view(outer),
    )


@register(_aten.native_layer_norm_backward.default, family="normalization")
@itself_in_float64(_aten.native_layer_norm_backward.default, 1)
def layer_norm_backward(
    machine: Machine, gradient: Tensor, x: Tensor, shape: list[int], mean: Tensor, rstd: Tensor, weight: MaybeTensor,
    bias: MaybeTensor, output_mask: list[bool],
) -> tuple[MaybeTensor, ...]:  # fmt: skip
    machine.whole()
    size = math.prod(shape)
    array, g = (array_of(machine.operand(item).detach().contiguous()).reshape(-1, size) for item in (x, gradient))
    middle, inverse = (array_of(item.detach().contiguous()).reshape(-1).astype(np.float64) for item in (mean, rstd))
    gw, gb = np.zeros((2, size))

    def input_gradient(rows: slice, out: np.ndarray) -> None:
        kernels.layer_gradient(g[rows], array[rows], middle[rows], inverse[rows], scale, out)

    scale = vector_of(machine, weight, size, 1.0).reshape(-1)
    gx = machine.compute(by_rows(input_gradient, size), x.shape, size) if output_mask[0] else None
    threads.run(
        lambda first, last: kernels.layer_gradient_sums(g, array, middle, inverse, gw, gb, first, last),
        threads.parts(size, _SUM_COST * array.size),
    )
    return (
        gx,
        machine.finish(torch.from_numpy(gw.reshape(shape))) if output_mask[1] and weight is not None else None,
        machine.finish(torch.from_numpy(gb.reshape(shape))) if output_mask[2] and bias is not None else None,
    )
