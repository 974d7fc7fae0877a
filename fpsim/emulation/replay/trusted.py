"""Arguments that torch's kernels trust: indices, lengths and offsets in tensors, sizes of windows, how often to iterate.

Torch finds the shapes of results from the shapes of operands and checks them. What stands *in* a tensor is checked by some
kernels and by others not, nor is every pair of shapes; so each operation with such an argument has a row here, and one that
gets integers without having a row is not called.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch

Arguments = dict[str, Any]

_MOST_ELEMENTS = 1 << 28  # of a padded operand
_MOST_ITERATIONS = 1 << 16
_POLYNOMIALS = ("chebyshev_polynomial", "hermite_polynomial", "laguerre_polynomial", "legendre_polynomial")


class Untrusted(Exception):
    """What in the arguments a kernel must not be given."""


def check_arguments(name: str, family: str, given: Arguments) -> None:
    """Raises Untrusted for arguments of the operation `aten::<name>` that its kernels would follow out of their operands.

    `given` has every argument by its name, and shapes that torch accepts.
    """
    base = name.removesuffix("_")
    if base in _ROWS:
        _ROWS[base](given)
    elif family not in _BY_VALUE and base not in _BY_VALUE and _has_integers(given.values()):
        raise Untrusted("it is given integers that are not checked before")
    if "padding" in given and "_pad" not in base:
        _check_windows(given)
    if base.startswith(("_foreach_", "_fused_")):
        _check_lists(base, given)
    if any(kind in base for kind in _POLYNOMIALS):
        _require_at_most(given["n"], _MOST_ITERATIONS, "the degree")
    for key in ("scales", "scales_d", "scales_h", "scales_w"):
        if given.get(key) is not None:
            _check_scale(given, key)


def within(values: torch.Tensor, low: int, high: int, what: str) -> None:
    """Raises Untrusted unless they are integers from low up to but without high."""
    if values.dtype not in _INTEGERS:
        raise Untrusted(f"{what} are of {values.dtype}")
    if values.numel() == 0:
        return
    least, most = (int(value) for value in torch.aminmax(values.to(torch.int64)))
    if least < low or most >= high:
        raise Untrusted(f"{what} go from {least} to {most}, and only {low} to {high - 1} exist")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Untrusted(otherwise)


def _require_at_most(value: Any, most: int, what: str) -> None:
    largest = value.abs().amax().item() if isinstance(value, torch.Tensor) and value.numel() else value
    _require(isinstance(largest, torch.Tensor) or abs(largest) <= most, f"{what} is beyond {most}")  # NaN is refused as well


def _has_integers(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, (list, tuple)) and _has_integers(value):
            return True
        if isinstance(value, torch.Tensor) and value.dtype in _INTEGERS:
            return True
    return False


def _size(x: torch.Tensor, dim: int) -> int:
    return x.shape[dim] if x.dim() else 1


def _along(source: str = "self", wraps: bool = False) -> Callable[[Arguments], None]:
    """Indices into one dimension; where it wraps, negative ones count from its end."""

    def check(given: Arguments) -> None:
        size = _size(given[source], given["dim"])
        within(given["index"], -size if wraps else 0, size, "its indices")

    return check


def _flat(given: Arguments) -> None:
    many = given["self"].numel()
    within(given["index"], -many, many, "its indices")


def _several(given: Arguments) -> None:
    """Indices or masks, one for each dimension from the first; a mask of several dimensions stands for them."""
    shape, place, chosen, kept = given["self"].shape, 0, [], 1
    for index in given["indices"]:
        if index is None:
            kept *= shape[place] if place < len(shape) else 1
            place += 1
        elif index.dtype in (torch.bool, torch.uint8):
            _require(index.shape == shape[place : place + index.dim()], "a mask has another shape than what it selects from")
            place += index.dim()
            chosen.append((int(index.count_nonzero()),))
        else:
            _require(place < len(shape), "it has more indices than dimensions")
            within(index, -shape[place], shape[place], "its indices")
            place += 1
            chosen.append(tuple(index.shape))
    many = math.prod(torch.broadcast_shapes(*chosen)) * kept * math.prod(shape[place:])
    _require(many <= _MOST_ELEMENTS, f"it selects more than {_MOST_ELEMENTS} elements")


def _nothing(given: Arguments) -> None:
    """Torch's kernel checks, clamps or compares them."""


def _pivots(rows: str, name: str) -> Callable[[Arguments], None]:
    def check(given: Arguments) -> None:
        within(given[name], 1, given[rows].shape[-2] + 1, "its pivots")

    return check


def _block_pivots(given: Arguments) -> None:
    """Of LAPACK's sytrf: numbers of rows, those of a block of two negative and alike."""
    pivots, n = given["pivots"], given["LD"].shape[-1]
    within(pivots.abs(), 1, n + 1, "its pivots")
    for line in pivots.reshape(-1, n).tolist() if n else ():
        place = 0
        while place < n:
            if line[place] < 0:
                _require(line[place + 1 : place + 2] == [line[place]], "a pivot of a block stands alone")
                place += 1
            place += 1


def _classes(low: int = 0) -> Callable[[Arguments], None]:
    def check(given: Arguments) -> None:
        x = given["self"]
        within(given["target"], low, _size(x, -1), "its targets")
        if "is_target" in given:
            _require(given["is_target"].shape == given["target"].shape == x.shape, "its targets have another shape than its input")
        if "grad_output" in given:
            rows = x.shape[0] if x.dim() > 1 else 1
            _require(given["grad_output"].numel() in (1, rows), "its gradient has another shape than its result")
            _require(low < 0 or given["target"].numel() == rows, "it has another number of targets than of rows")
        if given.get("weight") is not None:
            _require(given["weight"].numel() == _size(x, -1), "it has another number of weights than of classes")

    return check


def _labels(given: Arguments) -> None:
    """Targets of the negative log likelihood, but for the one that is ignored."""
    x, target = given["self"], given["target"]
    classes = x.shape[1] if x.dim() > 1 else _size(x, 0)
    counted = target[target != given["ignore_index"]]
    within(counted, 0, classes, "its targets")
    if given.get("weight") is not None:
        _require(given["weight"].numel() == classes, "it has another number of weights than of classes")
    if "total_weight" in given:
        _require(given["total_weight"].numel() == 1, "its total weight is no number")


def _pooled(given: Arguments, axes: int) -> None:
    """Where in each plane of the input a maximum was."""
    x, indices = given["self"], given["indices"]
    gradient = given["grad_output"]
    within(indices, 0, math.prod(x.shape[-axes:]), "its indices")
    _require(indices.shape == gradient.shape, "its indices have another shape than its gradient")
    same = x.dim() == gradient.dim() and x.shape[:-axes] == gradient.shape[:-axes]
    _require(same and x.dim() > axes, "its gradient has other planes than its input")


def _unpooled(given: Arguments) -> None:
    within(given["indices"], 0, math.prod(given["output_size"]), "its indices")
    _require(given["indices"].shape == given["self"].shape, "its indices have another shape than its input")


def _samples(given: Arguments) -> None:
    """Where fractional windows begin."""
    samples = given["random_samples"]
    _require(bool(((samples >= 0) & (samples < 1)).all()), "its random samples are not in [0, 1)")
    x, axes = given["self"], len(given["output_size"])
    rows = x.shape[0] if x.dim() == axes + 2 else 1
    _require(samples.dim() == 3 and samples.shape[0] >= rows and samples.shape[1] >= x.shape[-axes - 1] and samples.shape[2] == axes, "it has other samples than planes")


def _rows_of(source: str, index: str) -> Callable[[Arguments], None]:
    def check(given: Arguments) -> None:
        rows = given[source]
        within(given[index], 0, rows if isinstance(rows, int) else _size(rows, 0), "its indices")

    return check


def _ascending(offsets: torch.Tensor, last: int, what: str) -> None:
    within(offsets, 0, last + 1, what)
    _require(bool((offsets.diff() >= 0).all()), f"{what} do not ascend")


def _bags(given: Arguments) -> None:
    """Embeddings summed in bags that begin at offsets."""
    indices, offsets = given["indices"], given.get("offsets")
    weight = given.get("weight")
    rows = given["num_weights"] if weight is None else weight.shape[0]
    within(indices, 0, rows, "its indices")
    _require(indices.dim() == 1, "its indices are no vector")
    if offsets is not None:
        _require(offsets.dim() == 1, "its offsets are no vector")
        _ascending(offsets, indices.numel(), "its offsets")
    samples = given.get("per_sample_weights")
    _require(samples is None or samples.shape == indices.shape, "it has another number of weights than of indices")
    _require(given["mode"] in (0, 1, 2), "its mode is none")
    gradient = given.get("grad")
    if gradient is None:
        _require(weight is not None and weight.dim() == 2, "its weight is no matrix")
        _require(not given.get("include_last_offset") or given["offsets"].numel() > 0, "it has no last offset")
        return
    _require(gradient.dim() == 2 and (weight is None or gradient.shape[1:] == weight.shape[1:]), "its gradient is no matrix")
    bags = gradient.shape[0]
    _require(offsets is None or offsets.numel() in (bags, bags + 1), "it has another number of offsets than of bags")
    owners = given["offset2bag"]
    within(owners, 0, bags, "the numbers of its bags")
    _require(owners.numel() in (0, indices.numel()), "it has another number of indices than of their bags")
    for name, low, high, shape in (("bag_size", 0, 1 << 40, (bags,)), ("maximum_indices", -1, rows, tuple(gradient.shape))):
        item = given.get(name)
        if item is not None:
            within(item, low, high, f"its {name}")
            _require(item.shape == shape or (given["mode"] != 2 and item.numel() in (0, bags)), f"its {name} has another shape")


def _segments(given: Arguments) -> None:
    x = given["data"]
    axis = given["axis"] % max(x.dim(), 1)
    size = _size(x, axis)
    lengths, offsets = given["lengths"], given["offsets"]
    _require((lengths is None) != (offsets is None), "it needs lengths or offsets")
    _require(given.get("indices") is None, "indices of segments are not in use")
    if lengths is not None:
        within(lengths, 0, size + 1, "its lengths")
        _require(lengths.dim() == axis + 1 and lengths.shape[:axis] == x.shape[:axis], "its lengths have another shape")
        _require(bool((lengths.sum(-1) <= size).all()), "its lengths add up to more than the size")
    else:
        _require(offsets.dim() == axis + 1 and offsets.shape[:axis] == x.shape[:axis] and offsets.shape[-1] > 0, "its offsets have another shape")
        _ascending(offsets, size, "its offsets")
    if "grad" in given:
        count = (lengths.shape if lengths is not None else (*offsets.shape[:-1], offsets.shape[-1] - 1))[-1]
        wanted = (*x.shape[:axis], count, *x.shape[axis + 1 :])
        _require(given["grad"].shape == given["output"].shape == wanted, "its gradient has another shape than its result")


def _alignments(given: Arguments) -> None:
    """Targets of each image, one after the other or a row each, and how many of the times and of the targets count."""
    x, targets = given["log_probs"], given["targets"]
    _require(x.dim() == 3 and 0 <= given["blank"] < x.shape[2], "its blank is none of its classes")
    times, images, classes = x.shape
    within(targets, 0, classes, "its targets")
    lengths = []
    for name in ("input_lengths", "target_lengths"):
        values = given[name]
        if isinstance(values, torch.Tensor):
            within(values, 0, 1 << 40, f"its {name}")
            values = values.tolist()
        _require(isinstance(values, list) and len(values) == images, f"it has other {name} than images")
        lengths.append(values)
    most = targets.shape[1] if targets.dim() == 2 else targets.numel()
    _require(all(0 <= length <= times for length in lengths[0]), "an input is longer than there are times")
    _require(all(0 <= length <= most for length in lengths[1]), "a target is longer than its row")
    if targets.dim() == 1:
        _require(sum(lengths[1]) == most, "its target lengths do not add up to its targets")
    else:
        _require(targets.dim() == 2 and targets.shape[0] == images, "it has another number of targets than of images")
    many = times * images * (2 * max(lengths[1], default=0) + 1)
    _require(many <= _MOST_ELEMENTS, f"it has more than {_MOST_ELEMENTS} states")
    if "log_alpha" in given:
        alpha = given["log_alpha"]
        _require(alpha.dim() == 3 and alpha.shape[:2] == (images, times) and alpha.shape[2] >= 2 * max(lengths[1], default=0) + 1, "its log_alpha has another shape")
        _require(given["neg_log_likelihood"].shape == given["grad"].shape == (images,), "its gradient has another shape than its result")
        _require(len({tensor.dtype for tensor in (x, alpha, given["neg_log_likelihood"], given["grad"])}) == 1, "its operands are of several dtypes")


def _counted(given: Arguments) -> None:
    """Bins of counts up to the largest number."""
    within(given["self"], 0, 1 << 24, "its numbers")
    _require(0 <= given["minlength"] < 1 << 24, "its least number of bins is beyond 2^24")


def _sorter(given: Arguments) -> None:
    if given.get("sorter") is not None:
        edges = given["sorted_sequence"]
        within(given["sorter"], 0, _size(edges, -1), "its sorter's indices")
        _require(given["sorter"].shape == edges.shape, "its sorter has another shape than its sequence")


def _unfolded(given: Arguments) -> None:
    """The gradient of `unfold` has its windows and their size."""
    shape, size, step = list(given["input_sizes"]), given["size"], given["step"]
    if not shape:
        _require(given["grad_in"].numel() == 1 == size, "its gradient has another shape than its windows")
        return
    dim = given["dim"] % len(shape)
    _require(step > 0 and 0 < size <= shape[dim], "its windows are larger than its input")
    shape[dim] = (shape[dim] - size) // step + 1
    _require(tuple(given["grad_in"].shape) == (*shape, size), "its gradient has another shape than its windows")


def _bins(given: Arguments) -> None:
    x, bins = given["self"], given["bins"]
    several = isinstance(bins, (list, tuple))
    counts = [item if isinstance(item, int) else item.numel() for item in (bins if several else [bins])]
    _require(not several or (x.dim() > 1 and len(bins) == x.shape[-1]), "it has another number of bins than of dimensions")
    _require(min(counts, default=1) > 0 and math.prod(counts) <= 1 << 24, "it has more than 2^24 bins, or none")
    weight = given.get("weight")
    _require(weight is None or weight.shape == x.shape[: x.dim() - several], "it has other weights than numbers")
    ends = given.get("range")
    _require(ends is None or len(ends) == 2 * len(counts), "its range has other ends than its bins")


def _places(given: Arguments) -> None:
    x = given["self"]
    _require(x.numel() * x.dim() <= _MOST_ELEMENTS, f"it may give more than {_MOST_ELEMENTS} numbers")


def _three(given: Arguments) -> None:
    """Products of three operands, of which some dimensions are summed away."""
    shapes = []
    for key in "123":
        x = given[f"i{key}"]
        for dim in sorted(given[f"expand{key}"]):
            x = x.unsqueeze(dim)
        shapes.append(x.shape)
    _require(math.prod(torch.broadcast_shapes(*shapes)) <= _MOST_ELEMENTS, f"it has more than {_MOST_ELEMENTS} products")


def _pairs(given: Arguments) -> None:
    rows = given["self"].shape[0]
    many = rows * (rows - 1) // 2
    _require(given["grad"].shape == given["pdist"].shape == (many,), "its gradient has another shape than its distances")


def _distances(given: Arguments) -> None:
    left, right = given["x1"], given["x2"]
    _require(left.dim() >= 2 and right.dim() >= 2 and left.shape[-1] == right.shape[-1], "its points have several dimensions")
    batch = torch.broadcast_shapes(left.shape[:-2], right.shape[:-2])
    wanted = (*batch, left.shape[-2], right.shape[-2])
    _require(given["grad"].shape == given["cdist"].shape == wanted, "its gradient has another shape than its distances")


def _dropped(given: Arguments) -> None:
    _require(given["mask"].dtype is torch.bool, "its mask is none")


def _nothing_reserved(given: Arguments) -> None:
    _require(given["reserve"].numel() == 0, "what a GPU's library reserved means nothing on a CPU")


def _degree(key: str) -> Callable[[Arguments], None]:
    return lambda given: _require_at_most(given[key], _MOST_ITERATIONS if key == "n" else 64, "the order")


#: Families whose integers are numbers like others, and operations that read them so, or check every one themselves.
_BY_VALUE = frozenset(("elementwise", "formula", "elementary", "comparison", "constant", "foreach", "optimizer", "view")) | frozenset((
    "where", "maximum", "minimum", "fmax", "fmin", "cat", "stack", "copysign", "copy", "_to_copy", "nonzero_static", "_chunk_cat",
    "block_diag", "neg", "abs", "sign", "tril", "triu", "sum", "mean", "prod", "cumsum", "cumprod", "masked_scatter", "masked_select",
    "masked_scatter_backward", "threshold_backward", "max", "min", "amax", "amin", "sort", "topk", "median", "kthvalue",
))  # fmt: skip

_ROWS: dict[str, Callable[[Arguments], None]] = {
    **dict.fromkeys(
        ("gather", "index_select", "index_add", "index_copy", "index_reduce", "scatter", "scatter_add", "scatter_reduce"), _along()
    ),
    "index_fill": _along(wraps=True),
    **dict.fromkeys(("take", "put"), _flat),
    **dict.fromkeys(("index", "_unsafe_index", "index_put", "_index_put_impl"), _several),
    **dict.fromkeys(("_unsafe_masked_index", "_unsafe_masked_index_put_accumulate"), _nothing),  # they clamp
    "embedding": _rows_of("weight", "indices"),
    "embedding_dense_backward": _rows_of("num_weights", "indices"),
    "embedding_renorm": _rows_of("self", "indices"),
    **dict.fromkeys(
        (
            "_embedding_bag", "_embedding_bag_forward_only", "_embedding_bag_backward", "_embedding_bag_dense_backward",
            "_embedding_bag_per_sample_weights_backward",
        ),
        _bags,
    ),
    **dict.fromkeys(("segment_reduce", "_segment_reduce_backward"), _segments),
    **dict.fromkeys(("nll_loss_forward", "nll_loss_backward", "nll_loss2d_forward", "nll_loss2d_backward"), _labels),
    **dict.fromkeys(("multi_margin_loss", "multi_margin_loss_backward"), _classes()),
    **dict.fromkeys(("multilabel_margin_loss_forward", "multilabel_margin_loss_backward"), _classes(-1)),
    **dict.fromkeys(("_ctc_loss", "_ctc_loss_backward"), _alignments),
    **{
        f"{name}{axes}d{suffix}_backward": partial(_pooled, axes=axes)
        for name, suffix in (("max_pool", "_with_indices"), ("adaptive_max_pool", ""), ("fractional_max_pool", ""))
        for axes in (2, 3)
    },
    **dict.fromkeys(("max_unpool2d", "max_unpool3d"), _unpooled),
    **dict.fromkeys(("fractional_max_pool2d", "fractional_max_pool3d"), _samples),
    "linalg_lu_solve": _pivots("LU", "pivots"),
    "lu_unpack": _pivots("LU_data", "LU_pivots"),
    "linalg_ldl_solve": _block_pivots,
    "bincount": _counted,
    "searchsorted": _sorter,
    "value_selecting_reduction_backward": lambda given: within(
        given["indices"], 0, given["sizes"][given["dim"]] if given["sizes"] else 1, "its indices"
    ),
    "unfold_backward": _unfolded,
    **dict.fromkeys(("histogram", "_histogramdd_bin_edges", "_histogramdd_from_bin_cts", "_histogramdd_from_bin_tensors"), _bins),
    "nonzero": _places,
    "_trilinear": _three,
    "_pdist_backward": _pairs,
    "_cdist_backward": _distances,
    "batch_norm_backward": _nothing_reserved,
    "native_dropout_backward": _dropped,
    "polygamma": _degree("n"),
    "mvlgamma": _degree("p"),
}

_INTEGERS = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))


def _check_windows(given: Arguments) -> None:
    """No padded operand is larger than what a bundle can hold, whatever kernels make of padding, steps and holes."""
    extents = [given[key].shape for key in ("self", "input", "weight", "grad_output") if isinstance(given.get(key), torch.Tensor)]
    numbers = [given[key] for key in ("padding", "dilation", "kernel_size", "stride", "output_padding", "output_size") if key in given]
    values = [number for item in numbers for number in (item if isinstance(item, (list, tuple)) else [item])]
    _require(all(type(number) is int and 0 <= number < 1 << 24 for number in values), "its windows are out of all proportion")
    axes = max((len(item) for item in numbers if isinstance(item, (list, tuple))), default=1)

    def of(key: str, axis: int) -> int:
        item = given.get(key, 0)
        return item if isinstance(item, int) else item[axis] if axis < len(item) else item[-1] if item else 0

    total = max((math.prod(shape[:-axes]) for shape in extents), default=1)
    for axis in range(axes):
        side = max((shape[axis - axes] for shape in extents if len(shape) >= axes), default=1)
        window = max(of("kernel_size", axis), 1) * max(of("dilation", axis), 1) if "kernel_size" in given else 0
        total *= side + 2 * of("padding", axis) + window + (of("dilation", axis) * _kernel(given, axis - axes))
    _require(total <= _MOST_ELEMENTS, f"its windows take more than {_MOST_ELEMENTS} elements")


def _kernel(given: Arguments, axis: int) -> int:
    weight = given.get("weight")
    return weight.shape[axis] if isinstance(weight, torch.Tensor) and weight.dim() >= -axis else 0


def _check_lists(base: str, given: Arguments) -> None:
    lists = [value for value in given.values() if isinstance(value, (list, tuple)) and value]
    _require(len({len(value) for value in lists}) <= 1, "its lists have several lengths")
    if not base.startswith("_fused_"):
        return
    for name, value in given.items():
        single = name in ("state_steps", "grad_scale", "found_inf", "lr")
        for place, item in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            if isinstance(item, torch.Tensor):
                fits = item.numel() == 1 if single else item.shape == given["self"][place].shape
                _require(fits, f"an entry of {name!r} has another shape than its parameter")


def _check_scale(given: Arguments, key: str) -> None:
    """A scale is what its sizes say: kernels compute from it where to read."""
    axis = {"scales": -1, "scales_w": -1, "scales_h": -2, "scales_d": -3}[key]
    if "input_size" in given:
        before = given["input_size"][axis]
    else:
        before = given["self"].shape[axis]
    after, scale = given["output_size"][axis], given[key]
    _require(math.isfinite(scale) and scale > 0 and abs(before * scale - after) <= 1, "its scale is not that of its sizes")
