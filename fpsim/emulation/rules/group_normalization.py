"""Group normalization, and the newer names of batch normalization: float64 inside in a fixed order, one rounding per output."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fpsim.backend.numba import normalization as kernels
from fpsim.backend.numba.sums64 import sum_rows
from fpsim.emulation.machine.finishing import by_rows
from fpsim.emulation.machine.marks import array_of
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import Rule, itself_in_float64, register
from fpsim.emulation.rules.normalization import batch_norm, batch_norm_backward, vector_of, wide_tensor

_aten = torch.ops.aten


@register(_aten.native_group_norm.default, family="normalization")
@itself_in_float64(_aten.native_group_norm.default)
def group_norm(
    machine: Machine, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, images: int, channels: int, size: int, group: int,
    eps: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    machine.whole()
    x = machine.floating(x)
    width = channels // group * size
    array = array_of(x.detach().contiguous()).reshape(images * group, width)
    mean, inverse = np.empty((2, len(array)))
    scale, shift = (
        vector_of(machine, item, channels, default).reshape(group, -1).repeat(size, axis=1)
        for item, default in ((weight, 1.0), (bias, 0.0))
    )

    def normalized(rows: slice, out: np.ndarray) -> None:
        for i in range(rows.start, rows.stop):
            one, part = slice(i, i + 1), slice(i - rows.start, i - rows.start + 1)
            factors = scale[i % group], shift[i % group]
            kernels.layer_forward(array[one], *factors, eps, out[part], mean[one], inverse[one])

    result = machine.compute(by_rows(normalized, max(1, width)), x.shape, max(1, width))
    return result, wide_tensor(mean).view(images, group), wide_tensor(inverse).view(images, group)


@register(_aten.native_group_norm_backward.default, family="normalization")
@itself_in_float64(_aten.native_group_norm_backward.default, 1)
def group_norm_backward(
    machine: Machine, gradient: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: MaybeTensor, images: int, channels: int,
    size: int, group: int, output_mask: list[bool],
) -> tuple[MaybeTensor, ...]:  # fmt: skip
    machine.whole()
    width = channels // group * size
    array, g = (array_of(machine.operand(item).detach().contiguous()).reshape(-1, width) for item in (x, gradient))
    middle, inverse = (array_of(item.detach().contiguous()).reshape(-1).astype(np.float64) for item in (mean, rstd))
    scale = vector_of(machine, weight, channels, 1.0)
    weights = scale.reshape(group, -1).repeat(size, axis=1)

    def input_gradient(rows: slice, out: np.ndarray) -> None:
        for i in range(rows.start, rows.stop):
            one, part = slice(i, i + 1), slice(i - rows.start, i - rows.start + 1)
            kernels.layer_gradient(g[one], array[one], middle[one], inverse[one], weights[i % group], out[part])

    normal = (array.astype(np.float64) - middle[:, None]) * inverse[:, None]
    gw, gb = np.empty(channels), np.empty(channels)
    for values, out in ((g * normal, gw), (g, gb)):
        lines = values.reshape(images, channels, size).swapaxes(0, 1).reshape(channels, images * size)
        sum_rows(np.ascontiguousarray(lines), out)
    return (
        machine.compute(by_rows(input_gradient, max(1, width)), x.shape, max(1, width)) if output_mask[0] else None,
        machine.finish(torch.from_numpy(gw)) if output_mask[1] else None,
        machine.finish(torch.from_numpy(gb)) if output_mask[2] else None,
    )


def _with_reserve(training: bool) -> Rule:
    def normalize(
        machine: Machine, x: Tensor, weight: MaybeTensor, bias: MaybeTensor, running_mean: MaybeTensor,
        running_var: MaybeTensor, momentum: float, eps: float,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        results = batch_norm(machine, x, weight, bias, running_mean, running_var, training, momentum, eps)
        return (*results, torch.empty(0, dtype=torch.uint8))

    return normalize


register(_aten._batch_norm_with_update.default, family="normalization")(_with_reserve(training=True))
register(_aten._batch_norm_no_update.default, family="normalization")(_with_reserve(training=False))


@register(_aten.batch_norm_backward.default, family="normalization")
def batch_norm_backward_with_reserve(
    machine: Machine, gradient: Tensor, x: Tensor, weight: MaybeTensor, running_mean: MaybeTensor, running_var: MaybeTensor,
    save_mean: Tensor, save_var: Tensor, update: bool, eps: float, output_mask: list[bool], reserve: Tensor,
) -> tuple[MaybeTensor, ...]:  # fmt: skip
    return batch_norm_backward(
        machine, gradient, x, weight, running_mean, running_var, save_mean, save_var, update, eps, output_mask
    )
