"""Targets of losses and bins of counts: each names a class, a position or a bin that is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from fpsim.emulation.replay.trusted.requirements import MOST_ELEMENTS, Arguments, require, size_of, within


def _classes(named: Arguments, low: int = 0) -> None:
    x = named["self"]
    within(named["target"], low, size_of(x, -1), "its targets")
    if "is_target" in named:
        alike = named["is_target"].shape == named["target"].shape == x.shape
        require(alike, "its targets have another shape than its input")
    if "grad_output" in named:
        rows = x.shape[0] if x.dim() > 1 else 1
        require(named["grad_output"].numel() in (1, rows), "its gradient has another shape than its result")
        require(low < 0 or named["target"].numel() == rows, "it has another number of targets than of rows")
    if named.get("weight") is not None:
        require(named["weight"].numel() == size_of(x, -1), "it has another number of weights than of classes")


def _labels(named: Arguments) -> None:
    """Targets of the negative log likelihood, but for the one that is ignored."""
    x, target = named["self"], named["target"]
    classes = x.shape[1] if x.dim() > 1 else size_of(x, 0)
    counted = target[target != named["ignore_index"]]
    within(counted, 0, classes, "its targets")
    if named.get("weight") is not None:
        require(named["weight"].numel() == classes, "it has another number of weights than of classes")
    if "total_weight" in named:
        require(named["total_weight"].numel() == 1, "its total weight is no number")


def _alignments(named: Arguments) -> None:
    """Targets of each image, one after the other or a row each, and how many of the times and of the targets count."""
    x, targets = named["log_probs"], named["targets"]
    require(x.dim() == 3 and 0 <= named["blank"] < x.shape[2], "its blank is none of its classes")
    times, images, classes = x.shape
    within(targets, 0, classes, "its targets")
    lengths = []
    for name in ("input_lengths", "target_lengths"):
        values = named[name]
        if isinstance(values, torch.Tensor):
            within(values, 0, 1 << 40, f"its {name}")
            values = values.tolist()
        require(isinstance(values, list) and len(values) == images, f"it has other {name} than images")
        lengths.append(values)
    most = targets.shape[1] if targets.dim() == 2 else targets.numel()
    require(all(0 <= length <= times for length in lengths[0]), "an input is longer than there are times")
    require(all(0 <= length <= most for length in lengths[1]), "a target is longer than its row")
    if targets.dim() == 1:
        require(sum(lengths[1]) == most, "its target lengths do not add up to its targets")
    else:
        require(targets.dim() == 2 and targets.shape[0] == images, "it has another number of targets than of images")
    many = times * images * (2 * max(lengths[1], default=0) + 1)
    require(many <= MOST_ELEMENTS, f"it has more than {MOST_ELEMENTS} states")
    if "log_alpha" in named:
        alpha = named["log_alpha"]
        states, losses = 2 * max(lengths[1], default=0) + 1, named["neg_log_likelihood"]
        require(alpha.dim() == 3 and alpha.shape[:2] == (images, times), "its log_alpha has another shape")
        require(alpha.shape[2] >= states, "its log_alpha has too few states")
        require(losses.shape == named["grad"].shape == (images,), "its gradient has another shape than its result")
        require(len({tensor.dtype for tensor in (x, alpha, losses, named["grad"])}) == 1, "its operands are of several dtypes")


def _counted(named: Arguments) -> None:
    """Bins of counts up to the largest number."""
    within(named["self"], 0, 1 << 24, "its numbers")
    require(0 <= named["minlength"] < 1 << 24, "its least number of bins is beyond 2^24")


def _bins(named: Arguments) -> None:
    x, bins = named["self"], named["bins"]
    several = isinstance(bins, (list, tuple))
    counts = [item if isinstance(item, int) else item.numel() for item in (bins if several else [bins])]
    require(not several or (x.dim() > 1 and len(bins) == x.shape[-1]), "it has another number of bins than of dimensions")
    require(min(counts, default=1) > 0 and math.prod(counts) <= 1 << 24, "it has more than 2^24 bins, or none")
    weight = named.get("weight")
    require(weight is None or weight.shape == x.shape[: x.dim() - several], "it has other weights than numbers")
    ends = named.get("range")
    require(ends is None or len(ends) == 2 * len(counts), "its range has other ends than its bins")


ROWS: dict[str, Callable[[Arguments], None]] = {
    **{f"nll_loss{axes}_{way}": _labels for axes in ("", "2d") for way in ("forward", "backward")},
    **dict.fromkeys(("multi_margin_loss", "multi_margin_loss_backward"), _classes),
    **dict.fromkeys(("multilabel_margin_loss_forward", "multilabel_margin_loss_backward"), partial(_classes, low=-1)),
    **dict.fromkeys(("_ctc_loss", "_ctc_loss_backward"), _alignments),
    "bincount": _counted,
    "histogram": _bins,
    **{f"_histogramdd_{kind}": _bins for kind in ("bin_edges", "from_bin_cts", "from_bin_tensors")},
}
