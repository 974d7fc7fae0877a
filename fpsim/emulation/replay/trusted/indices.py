"""Indices and offsets: each names an element that is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch

from fpsim.emulation.replay.trusted.requirements import MOST_ELEMENTS, Arguments, ascending, require, size_of, within


def _along(named: Arguments, wraps: bool = False) -> None:
    """Indices into one dimension; where it wraps, negative ones count from its end."""
    size = size_of(named["self"], named["dim"])
    within(named["index"], -size if wraps else 0, size, "its indices")


def _flat(named: Arguments) -> None:
    many = named["self"].numel()
    within(named["index"], -many, many, "its indices")


def _several(named: Arguments) -> None:
    """Indices or masks, one for each dimension from the first; a mask of several dimensions stands for them."""
    shape, place, chosen, kept = named["self"].shape, 0, [], 1
    for index in named["indices"]:
        if index is None:
            kept *= shape[place] if place < len(shape) else 1
            place += 1
        elif index.dtype in (torch.bool, torch.uint8):
            require(index.shape == shape[place : place + index.dim()], "a mask has another shape than what it selects from")
            place += index.dim()
            chosen.append((int(index.count_nonzero()),))
        else:
            require(place < len(shape), "it has more indices than dimensions")
            within(index, -shape[place], shape[place], "its indices")
            place += 1
            chosen.append(tuple(index.shape))
    many = math.prod(torch.broadcast_shapes(*chosen)) * kept * math.prod(shape[place:])
    require(many <= MOST_ELEMENTS, f"it selects more than {MOST_ELEMENTS} elements")


def _nothing(named: Arguments) -> None:
    """Torch's kernel checks, clamps or compares them."""


def _rows_of(named: Arguments, source: str) -> None:
    rows = named[source]
    within(named["indices"], 0, rows if isinstance(rows, int) else size_of(rows, 0), "its indices")


def _pooled(named: Arguments, axes: int) -> None:
    """Where in each plane of the input a maximum was."""
    x, indices = named["self"], named["indices"]
    gradient = named["grad_output"]
    within(indices, 0, math.prod(x.shape[-axes:]), "its indices")
    require(indices.shape == gradient.shape, "its indices have another shape than its gradient")
    same = x.dim() == gradient.dim() and x.shape[:-axes] == gradient.shape[:-axes]
    require(same and x.dim() > axes, "its gradient has other planes than its input")
    size = named.get("output_size")
    require(size is None or tuple(size) == gradient.shape[-axes:], "its gradient is not of the size that it names")


def _unpooled(named: Arguments) -> None:
    within(named["indices"], 0, math.prod(named["output_size"]), "its indices")
    require(named["indices"].shape == named["self"].shape, "its indices have another shape than its input")


def _samples(named: Arguments) -> None:
    """Where fractional windows begin."""
    samples = named["random_samples"]
    require(bool(((samples >= 0) & (samples < 1)).all()), "its random samples are not in [0, 1)")
    x, axes = named["self"], len(named["output_size"])
    rows = x.shape[0] if x.dim() == axes + 2 else 1
    enough = samples.dim() == 3 and samples.shape[2] == axes and samples.shape[0] >= rows
    require(enough and samples.shape[1] >= x.shape[-axes - 1], "it has other samples than planes")


def _bags(named: Arguments) -> None:
    """Embeddings summed in bags that begin at offsets."""
    indices, offsets = named["indices"], named.get("offsets")
    weight = named.get("weight")
    rows = named["num_weights"] if weight is None else weight.shape[0]
    within(indices, 0, rows, "its indices")
    require(indices.dim() == 1, "its indices are no vector")
    if offsets is not None:
        require(offsets.dim() == 1, "its offsets are no vector")
        ascending(offsets, indices.numel(), "its offsets")
    samples = named.get("per_sample_weights")
    require(samples is None or samples.shape == indices.shape, "it has another number of weights than of indices")
    require(named["mode"] in (0, 1, 2), "its mode is none")
    gradient = named.get("grad")
    if gradient is None:
        require(weight is not None and weight.dim() == 2, "its weight is no matrix")
        require(not named.get("include_last_offset") or named["offsets"].numel() > 0, "it has no last offset")
        return
    require(gradient.dim() == 2 and (weight is None or gradient.shape[1:] == weight.shape[1:]), "its gradient is no matrix")
    bags = gradient.shape[0]
    owners = named["offset2bag"]
    if offsets is not None:
        closed = offsets.numel() == bags + 1 and int(offsets[-1]) == indices.numel()
        require(closed or offsets.numel() == bags, "it has another number of offsets than of bags")
    require(offsets is not None or owners.numel() == indices.numel(), "it has another number of indices than of their bags")
    within(owners, 0, bags, "the numbers of its bags")
    require(owners.numel() in (0, indices.numel()), "it has another number of indices than of their bags")
    for name, low, high, shape in (("bag_size", 0, 1 << 40, (bags,)), ("maximum_indices", -1, rows, tuple(gradient.shape))):
        item = named.get(name)
        if item is not None:
            within(item, low, high, f"its {name}")
            unread = named["mode"] == 0 or (name == "maximum_indices" and named["mode"] != 2)
            require(item.shape == shape or unread, f"its {name} has another shape")


def _segments(named: Arguments) -> None:
    x = named["data"]
    axis = named["axis"] % max(x.dim(), 1)
    size = size_of(x, axis)
    lengths, offsets = named["lengths"], named["offsets"]
    require((lengths is None) != (offsets is None), "it needs lengths or offsets")
    require(named.get("indices") is None, "indices of segments are not in use")
    if lengths is not None:
        within(lengths, 0, size + 1, "its lengths")
        require(lengths.dim() == axis + 1 and lengths.shape[:axis] == x.shape[:axis], "its lengths have another shape")
        require(bool((lengths.sum(-1) <= size).all()), "its lengths add up to more than the size")
    else:
        right = offsets.dim() == axis + 1 and offsets.shape[:axis] == x.shape[:axis] and offsets.shape[-1] > 0
        require(right, "its offsets have another shape")
        ascending(offsets, size, "its offsets")
    if "grad" in named:
        count = (lengths.shape if lengths is not None else (*offsets.shape[:-1], offsets.shape[-1] - 1))[-1]
        wanted = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        require(named["grad"].shape == named["output"].shape == wanted, "its gradient has another shape than its result")


def _sorter(named: Arguments) -> None:
    if named.get("sorter") is not None:
        edges = named["sorted_sequence"]
        within(named["sorter"], 0, size_of(edges, -1), "its sorter's indices")
        require(named["sorter"].shape == edges.shape, "its sorter has another shape than its sequence")


def _unfolded(named: Arguments) -> None:
    """The gradient of `unfold` has its windows and their size."""
    shape, size, step = list(named["input_sizes"]), named["size"], named["step"]
    if not shape:
        require(named["grad_in"].numel() == 1 == size, "its gradient has another shape than its windows")
        return
    dim = named["dim"] % len(shape)
    require(step > 0 and 0 < size <= shape[dim], "its windows are larger than its input")
    shape[dim] = (shape[dim] - size) // step + 1
    require(tuple(named["grad_in"].shape) == (*shape, size), "its gradient has another shape than its windows")


def _places(named: Arguments) -> None:
    x = named["self"]
    require(x.numel() * x.dim() <= MOST_ELEMENTS, f"it may give more than {MOST_ELEMENTS} numbers")


def _selected(named: Arguments) -> None:
    sizes = named["sizes"]
    within(named["indices"], 0, sizes[named["dim"]] if sizes else 1, "its indices")


ROWS: dict[str, Callable[[Arguments], None]] = {
    **dict.fromkeys(("gather", "index_select", "index_add", "index_copy", "index_reduce"), _along),
    **dict.fromkeys(("scatter", "scatter_add", "scatter_reduce"), _along),
    "index_fill": partial(_along, wraps=True),
    **dict.fromkeys(("take", "put"), _flat),
    **dict.fromkeys(("index", "_unsafe_index", "index_put", "_index_put_impl"), _several),
    **dict.fromkeys(("_unsafe_masked_index", "_unsafe_masked_index_put_accumulate"), _nothing),  # they clamp
    "value_selecting_reduction_backward": _selected,
    "nonzero": _places,
    "embedding": partial(_rows_of, source="weight"),
    "embedding_dense_backward": partial(_rows_of, source="num_weights"),
    "embedding_renorm": partial(_rows_of, source="self"),
    **{f"_embedding_bag{kind}": _bags for kind in ("", "_forward_only")},
    **{f"_embedding_bag{kind}_backward": _bags for kind in ("", "_dense", "_per_sample_weights")},
    **dict.fromkeys(("segment_reduce", "_segment_reduce_backward"), _segments),
    **{
        f"{name}{axes}d{suffix}_backward": partial(_pooled, axes=axes)
        for name, suffix in (("max_pool", "_with_indices"), ("adaptive_max_pool", ""), ("fractional_max_pool", ""))
        for axes in (2, 3)
    },
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpooled),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), _samples),
    "unfold_backward": _unfolded,
    "searchsorted": _sorter,
}
