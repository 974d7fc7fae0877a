"""Pooling of regions of interest, rows (image, x1, y1, x2, y2): torchvision's own operator in float64, one rounding.

Sizes, scales and the number of samples are geometry, not data.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import Machine
from fpsim.emulation.registry import Rule, register
from fpsim.emulation.rules.elementwise import wide_rule
from fpsim.emulation.rules.torchvision import region_steps as steps
from fpsim.emulation.rules.torchvision.operators import operators

_STEPS: dict[str, Callable[..., Any]] = {
    "roi_align": steps.roi_align,
    "_roi_align_backward": steps.roi_align_backward,
    "ps_roi_align": steps.ps_roi_align,
    "_ps_roi_align_backward": steps.ps_roi_align_backward,
    "roi_pool": steps.roi_pool,
    "_roi_pool_backward": steps.roi_pool_backward,
    "ps_roi_pool": steps.ps_roi_pool,
    "_ps_roi_pool_backward": steps.ps_roi_pool_backward,
}


def _check(machine: Machine, rois: Tensor, images: int) -> None:
    """Regions of images that there are, before any memory is read: the operator trusts what it is given."""
    if rois.dim() != 2 or rois.shape[1] != 5:
        raise RuntimeError(machine.message(f"rois must have shape as Tensor[K, 5], not {tuple(rois.shape)}"))
    if not bool(rois.isfinite().all()):
        raise RuntimeError(machine.message("rois that are not finite"))
    image = rois[:, 0].trunc()
    if bool(((image < 0) | (image >= images)).any()):
        raise RuntimeError(machine.message(f"rois of images {sorted(set(image.tolist()))}, of which there are {images}"))


def _checked(op: torch._ops.OpOverload, rule: Rule) -> Rule:
    places = [argument.name for argument in op._schema.arguments]
    batch = places.index("batch_size") if "batch_size" in places else None

    def compute(machine: Machine, x: Tensor, rois: Tensor, *rest: Any) -> Any:
        rois = machine.operand(rois)
        _check(machine, rois, x.shape[0] if batch is None else rest[batch - 2])
        return rule(machine, x, rois, *rest)

    return compute


for _name, _steps in _STEPS.items():
    for _op in operators(_name):
        register(_op, family="pooling", steps=_steps)(_checked(_op, wide_rule(_op, scalars=False)))
