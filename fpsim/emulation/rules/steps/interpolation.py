"""Interpolation: weighted sums of neighbors, `windows.Windows` with weights from the scale of each axis."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from fpsim.emulation.registry import register_steps
from fpsim.emulation.rules.steps.windows import Axis, Windows

Tensor = torch.Tensor
BICUBIC = -0.75  # torch's, where nothing is smoothed
_Taps = tuple[np.ndarray, np.ndarray | None]  # positions and weights, (outputs, taps)


def _scale(size: int, outputs: int, align_corners: bool, scale: float | None) -> float:
    """How far an output's step goes in the input."""
    if align_corners:
        return (size - 1) / (outputs - 1) if outputs > 1 else 0.0
    return 1.0 / scale if scale is not None and scale > 0 else size / outputs


def _source(size: int, outputs: int, align_corners: bool, scale: float | None) -> np.ndarray:
    index, step = np.arange(outputs, dtype=np.float64), _scale(size, outputs, align_corners, scale)
    return index * step if align_corners else (index + 0.5) * step - 0.5


def _nearest(shift: float) -> Callable[..., _Taps]:
    def taps(size: int, outputs: int, align_corners: bool, scale: float | None) -> _Taps:
        # In float32, as torch has it: at the borders between two neighbors the rounding of the scale decides.
        step = np.float32(_scale(size, outputs, False, scale))
        index = np.arange(outputs, dtype=np.float32) + np.float32(shift)
        return np.floor(index * step)[:, None], None

    return taps


def _linear(size: int, outputs: int, align_corners: bool, scale: float | None) -> _Taps:
    source = np.maximum(_source(size, outputs, align_corners, scale), 0.0)
    low = np.minimum(np.floor(source), size - 1)
    part = np.clip(source - low, 0.0, 1.0)
    return np.stack([low, low + 1], 1), np.stack([1.0 - part, part], 1)


def keys_near(d: Any, a: float) -> Any:
    """Keys' cubic convolution kernel (IEEE Transactions on ASSP 29, 1981) at distances up to 1: of arrays, or of tensors."""
    return ((a + 2) * d - (a + 3)) * d * d + 1.0


def keys_far(d: Any, a: float) -> Any:
    """The same at distances from 1 to 2."""
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def _keys(distance: np.ndarray, a: float) -> np.ndarray:
    d = np.abs(distance)
    return np.where(d <= 1, keys_near(d, a), np.where(d < 2, keys_far(d, a), 0.0))


def _cubic(size: int, outputs: int, align_corners: bool, scale: float | None) -> _Taps:
    source = _source(size, outputs, align_corners, scale)
    low = np.floor(source)
    offsets = np.arange(-1.0, 3.0)
    return low[:, None] + offsets, _keys((source - low)[:, None] - offsets, BICUBIC)


def _smoothed(reach: float, kernel: Callable[[np.ndarray], np.ndarray]) -> Callable[..., _Taps]:
    """Antialiased: the kernel is stretched by the scale, and its weights made to sum to 1."""

    def taps(size: int, outputs: int, align_corners: bool, scale: float | None) -> _Taps:
        step = _scale(size, outputs, align_corners, scale)
        stretch = max(step, 1.0)
        centers = (np.arange(outputs)[:, None] + 0.5) * step
        first = np.maximum(np.floor(centers - reach * stretch + 0.5), 0)
        last = np.minimum(np.floor(centers + reach * stretch + 0.5), size)
        positions = first + np.arange(math.ceil(reach * stretch) * 2 + 1)
        weights = np.where(positions < last, kernel((positions - centers + 0.5) / stretch), 0.0)
        return positions, weights / weights.sum(1, keepdims=True)

    return taps


_KINDS: dict[str, Callable[..., _Taps]] = {
    "upsample_nearest{}d": _nearest(0.0),
    "_upsample_nearest_exact{}d": _nearest(0.5),
    "upsample_linear{}d": _linear,
    "upsample_bilinear{}d": _linear,
    "upsample_trilinear{}d": _linear,
    "upsample_bicubic{}d": _cubic,
    "_upsample_bilinear{}d_aa": _smoothed(1.0, lambda x: np.maximum(1.0 - np.abs(x), 0.0)),
    "_upsample_bicubic{}d_aa": _smoothed(2.0, lambda x: _keys(x, -0.5)),
}


def _windows(
    taps: Callable[..., _Taps], sizes: Sequence[int], outputs: Sequence[int], align_corners: bool, scales: Sequence[Any]
) -> Windows:
    axes = []
    for size, count, scale in zip(sizes, outputs, scales, strict=True):
        positions, weights = taps(size, count, align_corners, scale)
        counted = np.ones(positions.shape, np.bool_) if weights is None else weights != 0
        axes.append(Axis(positions.clip(0, size - 1), counted, weights))
    return Windows(axes, sizes)


def _steps_for(taps: Callable[..., _Taps], backward: bool) -> Any:
    def steps_for(op: torch._ops.OpOverload) -> Any:
        names = [argument.name for argument in op._schema.arguments]

        def interpolate(*args: Any, **kwargs: Any) -> Tensor:
            named = dict(zip(names, args, strict=False)) | kwargs
            x = named["grad_output" if backward else "input" if "input" in names else "self"]
            dims = x.dim() - 2
            sizes = named["input_size"][2:] if backward else x.shape[2:]
            factors = named.get("scale_factors")
            scales = list(factors) if factors is not None else [named.get(f"scales_{axis}") for axis in "dhw"[3 - dims :]]
            if dims == 1 and factors is None:
                scales = [named.get("scales")]
            outputs = named.get("output_size")
            if outputs is None:
                outputs = [math.floor(size * scale) for size, scale in zip(sizes, scales, strict=True)]
            outputs = list(outputs)[-dims:]
            windows = _windows(taps, sizes, outputs, bool(named.get("align_corners", False)), scales)
            return windows.backward(x) if backward else windows.forward(x)

        return interpolate

    return steps_for


for _name, _taps in _KINDS.items():
    for _dims in (1, 2, 3):
        register_steps(_name.format(_dims), _steps_for(_taps, False))
        register_steps(f"{_name.format(_dims)}_backward", _steps_for(_taps, True))
