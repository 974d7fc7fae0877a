"""Operands whose shapes kernels take for granted: gradients, pivots, statistics, lists, windows and scales."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from fpsim.emulation.replay.trusted.requirements import (
    MOST_ELEMENTS,
    MOST_ITERATIONS,
    Arguments,
    require,
    require_at_most,
    within,
)
from fpsim.emulation.schemas import names


def _pivots(named: Arguments, rows: str, name: str) -> None:
    """Rows that LU with partial pivoting exchanged."""
    factors, pivots = named[rows], named[name]
    within(pivots, 1, factors.shape[-2] + 1, "its pivots")
    wanted = (*factors.shape[:-2], min(factors.shape[-2:]))
    require(pivots.shape == wanted, "its pivots have another shape than its factors")


def _block_pivots(named: Arguments) -> None:
    """Of LAPACK's sytrf: numbers of rows, those of a block of two negative and alike."""
    pivots, n = named["pivots"], named["LD"].shape[-1]
    within(pivots.abs(), 1, n + 1, "its pivots")
    require(pivots.shape == named["LD"].shape[:-1], "its pivots have another shape than its factors")
    for line in pivots.reshape(-1, n).tolist() if n else ():
        place = 0
        while place < n:
            if line[place] < 0:
                require(line[place + 1 : place + 2] == [line[place]], "a pivot of a block stands alone")
                place += 1
            place += 1


def _pairs(named: Arguments) -> None:
    rows = named["self"].shape[0]
    many = rows * (rows - 1) // 2
    require(named["grad"].shape == named["pdist"].shape == (many,), "its gradient has another shape than its distances")


def _three(named: Arguments) -> None:
    """Products of three operands, of which some dimensions are summed away."""
    shapes = []
    for key in "123":
        x = named[f"i{key}"]
        for dim in sorted(named[f"expand{key}"]):
            x = x.unsqueeze(dim)
        shapes.append(x.shape)
    require(math.prod(torch.broadcast_shapes(*shapes)) <= MOST_ELEMENTS, f"it has more than {MOST_ELEMENTS} products")


def _distances(named: Arguments) -> None:
    left, right = named["x1"], named["x2"]
    require(left.dim() >= 2 and right.dim() >= 2 and left.shape[-1] == right.shape[-1], "its points have several dimensions")
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    wanted = (*batch, left.shape[-2], right.shape[-2])
    require(named["grad"].shape == named["cdist"].shape == wanted, "its gradient has another shape than its distances")


def _dropped(named: Arguments) -> None:
    require(named["mask"].dtype is torch.bool, "its mask is none")


def _normalized(named: Arguments) -> None:
    """A normalization and its gradient, as large as its input: of each channel or row one weight, one mean, one deviation."""
    x = named["input"]
    require("grad_out" not in named or named["grad_out"].shape == x.shape, "its gradient has another shape than its input")
    if "reserve" in named:
        require(named["reserve"].numel() == 0, "what a GPU's library reserved means nothing on a CPU")
    inner = tuple(named["normalized_shape"]) if "normalized_shape" in named else None
    if inner is not None:
        require(len(inner) > 0 and tuple(x.shape[-len(inner) :]) == inner, "its input ends in another shape")
        channels, rows = inner, math.prod(x.shape[: x.dim() - len(inner)])
    elif "group" in named:
        channels, rows = (named["C"],), named["N"] * named["group"]
        require(named["group"] > 0 and named["C"] % named["group"] == 0, "its groups do not divide its channels")
        sizes = named["N"] * named["C"] * named["HxW"]
        require(x.shape[:2] == (named["N"], named["C"]) and sizes == x.numel(), "its sizes are not those of its input")
    else:
        require(x.dim() > 1, "its input has no channels")
        channels, rows = (x.shape[1],), x.shape[1]
    for name in ("weight", "bias"):
        require(named.get(name) is None or named[name].shape == channels, f"its {name} has another shape than its channels")
    for name in ("mean", "rstd", "save_mean", "save_invstd", "save_var", "running_mean", "running_var"):
        item = named.get(name)
        unread = name.startswith("save_") and not named.get("train", named.get("update", False))
        fits = item is None or item.numel() == rows or (unread and item.numel() == 0)
        require(fits and (inner is not None or item is None or item.dim() <= 2), f"its {name} has another size than its input")


def _degree(named: Arguments, key: str, most: int) -> None:
    require_at_most(named[key], most, "the order")


def check_windows(named: Arguments) -> None:
    """No padded operand is larger than what a bundle can hold, whatever kernels make of padding, steps and holes."""
    operands = [named.get(key) for key in ("self", "input", "weight", "grad_output")]
    extents = [operand.shape for operand in operands if isinstance(operand, torch.Tensor)]
    sizes = ("padding", "dilation", "kernel_size", "stride", "output_padding", "output_size")
    numbers = [named[key] for key in sizes if key in named]
    values = [number for item in numbers for number in (item if isinstance(item, (list, tuple)) else [item])]
    right = all(type(number) is int and 0 <= number < 1 << 24 for number in values)
    require(right, "its windows are out of all proportion")
    axes = max((len(item) for item in numbers if isinstance(item, (list, tuple))), default=1)

    def of(key: str, axis: int) -> int:
        item = named.get(key, 0)
        return item if isinstance(item, int) else item[axis] if axis < len(item) else item[-1] if item else 0

    total = max((math.prod(shape[:-axes]) for shape in extents), default=1)
    for axis in range(axes):
        side = max((shape[axis - axes] for shape in extents if len(shape) >= axes), default=1)
        window = max(of("kernel_size", axis), 1) * max(of("dilation", axis), 1) if "kernel_size" in named else 0
        total *= side + 2 * of("padding", axis) + window + (of("dilation", axis) * _kernel(named, axis - axes))
    require(total <= MOST_ELEMENTS, f"its windows take more than {MOST_ELEMENTS} elements")


def _kernel(named: Arguments, axis: int) -> int:
    weight = named.get("weight")
    return weight.shape[axis] if isinstance(weight, torch.Tensor) and weight.dim() >= -axis else 0


def check_lists(base: str, named: Arguments) -> None:
    lists = [value for value in named.values() if isinstance(value, (list, tuple)) and value]
    require(len({len(value) for value in lists}) <= 1, "its lists have several lengths")
    if not base.startswith("_fused_"):
        return
    for name, value in named.items():
        single = name in ("state_steps", "grad_scale", "found_inf", "lr")
        for place, item in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if isinstance(item, torch.Tensor):
                fits = item.numel() == 1 if single else item.shape == named["self"][place].shape
                require(fits, f"an entry of {name!r} has another shape than its parameter")


def check_scale(named: Arguments, key: str) -> None:
    """A scale is what its sizes say: kernels compute from it where to read."""
    axis = {"scales": -1, "scales_w": -1, "scales_h": -2, "scales_d": -3}[key]
    if "input_size" in named:
        before = named["input_size"][axis]
    else:
        before = named["self"].shape[axis]
    after, scale = named["output_size"][axis], named[key]
    require(math.isfinite(scale) and scale > 0 and abs(before * scale - after) <= 1, "its scale is not that of its sizes")


_NORMALIZATIONS = names(
    """
    native_batch_norm _native_batch_norm_legit _batch_norm_with_update _batch_norm_no_update native_batch_norm_backward
    batch_norm_backward native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    _fused_rms_norm _fused_rms_norm_backward
    """
)

ROWS: dict[str, Callable[[Arguments], None]] = {
    "linalg_lu_solve": partial(_pivots, rows="LU", name="pivots"),
    "lu_unpack": partial(_pivots, rows="LU_data", name="LU_pivots"),
    "linalg_ldl_solve": _block_pivots,
    "_trilinear": _three,
    "_pdist_backward": _pairs,
    "_cdist_backward": _distances,
    **dict.fromkeys(_NORMALIZATIONS, _normalized),
    "native_dropout_backward": _dropped,
    "polygamma": partial(_degree, key="n", most=MOST_ITERATIONS),
    "mvlgamma": partial(_degree, key="p", most=64),
}
