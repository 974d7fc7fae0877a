"""Recorded calls as no honest recorder writes them: one thing in the arguments of a call changed, the rest as it was."""

import collections
import contextlib
import copy
import itertools
import warnings

import numpy as np
import torch
import torch.nn.functional as F

from fpsim.emulation.replay.calls import Call, NotReplayed
from fpsim.recorder.bundle import SIZES, Bundle, BundleError
from fpsim.recorder.calls import CallRecorder
from fpsim.recorder.environment import environment
from fpsim.recorder.records import check_records

INTEGERS = (-1, 0, 1, 2, 40_000, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 2**64)
INDICES = (-1, -(2**31), 2**20, 2**31 - 1, 2**40, 2**62, -(2**62))
NUMBERS = (float("nan"), float("inf"), 1e30, -1.0)
_FLOATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


def changed_calls(bundle, record):
    """(what was changed, the record) for every change; tensors that it needs are added to the bundle."""
    for part in ("args", "kwargs"):
        for path, value in _places(record[part], ()):
            for what, new in _replacements(bundle, value):
                other = copy.deepcopy(record)
                holder = other[part]
                for step in path[:-1]:
                    holder = holder[step]
                holder[path[-1]] = new
                yield f"{part}{list(path)}: {what}", other
    if record["args"]:
        yield "the last argument is missing", {**record, "args": record["args"][:-1]}
    yield "an argument more", {**record, "args": [*record["args"], 3]}
    yield "a name more", {**record, "kwargs": {**record["kwargs"], "dim": 2**40}}


def _places(value, path):
    if path:
        yield path, value
    if isinstance(value, list):
        for index, item in enumerate(value[:4]):
            yield from _places(item, (*path, index))
    elif isinstance(value, dict) and not (path and value.keys() & {"tensor", "float", "dtype", "device", "layout"}):
        for key, item in value.items():
            yield from _places(item, (*path, key))


def _replacements(bundle, value):
    if isinstance(value, bool) or value is None or isinstance(value, str):
        for new in (None, 1, "other", [2**40]):
            yield repr(new), new
    elif isinstance(value, int):
        for new in INTEGERS:
            yield repr(new), new
        yield "None", None
        yield "a list", [value] * 3
    elif isinstance(value, list):
        yield "empty", []
        yield "shorter", value[:-1]
        yield "twice as long", value * 2
        yield "very long", value * 10_000
        yield "None", None
    elif isinstance(value, dict) and "tensor" in value:
        for what, number in _tensors(bundle, value["tensor"]):
            yield what, {"tensor": number}
        yield "a number", 2**40
        yield "None", None
        yield "a list", [value, value, value]
    elif isinstance(value, dict) and "float" in value:
        for number in NUMBERS:
            yield repr(number), {"float": number.hex()}
    elif isinstance(value, dict) and "dtype" in value:
        for name in ("float64", "int64", "float8_e5m2", "complex64", "quint8", "load"):
            yield name, {"dtype": name}
    elif isinstance(value, dict):
        yield "an unknown kind", {"object": "x"}


def _tensors(bundle, number):
    dtype, shape, _, bits = bundle.tensors[number]
    for other in ("int64", "int32", "uint8", "bool", "float64", "float16", "bfloat16", "float8_e5m2"):
        if other != dtype:
            yield f"as {other}", _add(bundle, other, shape, np.ones(bits.size, f"u{SIZES[other]}"))
    size = bits.size
    yield "empty", _add(bundle, dtype, (0,), bits[:0])
    yield "flat", _add(bundle, dtype, (size,), bits)
    yield "a number", _add(bundle, dtype, (), np.ones(1, bits.dtype))
    yield "one dimension more", _add(bundle, dtype, (1, *shape), bits)
    if shape:
        yield "without its last dimension", _add(bundle, dtype, shape[:-1], np.resize(bits, int(np.prod(shape[:-1]))))
        yield "dimensions turned", _add(bundle, dtype, shape[::-1], bits)
        for axis in (0, -1):
            for step in (-1, 1):
                other = list(shape)
                other[axis] += step
                if other[axis] >= 0:
                    yield f"axis {axis} by {step:+d}", _add(bundle, dtype, other, np.resize(bits, int(np.prod(other))))
    if size and dtype in ("int64", "int32"):
        for value in INDICES:
            if abs(value) < 2 ** (8 * bits.itemsize - 1):
                for place in (0, size - 1):
                    yield f"{value} at {place}", _add(bundle, dtype, shape, _with(bits.view(dtype), place, value))
    if size and dtype in _FLOATS:
        for value in NUMBERS:
            filled = np.full(size, value, np.float64)
            with np.errstate(over="ignore"):
                yield f"all {value}", _add(bundle, dtype, shape, filled.astype(_FLOATS[dtype]))


def _with(values, place, value):
    values = values.copy()
    values[place] = value
    return values


def _add(bundle, dtype, shape, values):
    bits = np.ascontiguousarray(values).reshape(-1)
    return bundle.add_tensor(dtype, tuple(shape), (), bits.view(f"u{bits.itemsize}"))


def honest_calls(dtype):
    """Functions that call every operation with indices, lengths or offsets, and others that once led out of their operands."""
    aten, generator = torch.ops.aten, torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)

    index, offsets, pair = torch.tensor([0, 2, 1, 3, 3]), torch.tensor([0, 2, 4]), torch.tensor([0, 1])
    owners = torch.tensor([0, 0, 1, 1, 2])
    image, volume = draw(2, 3, 6, 6), draw(1, 2, 4, 4, 4)
    yield lambda: torch.gather(draw(4, 4), 1, torch.tensor([[0, 1]]))
    yield lambda: draw(5, 3).index_select(0, index)
    yield lambda: draw(5, 3).scatter(0, index.reshape(5, 1), draw(5, 3))
    yield lambda: draw(5, 3).scatter_add_(0, index.reshape(5, 1), draw(5, 3))
    yield lambda: draw(5, 3).scatter_reduce_(0, index.reshape(5, 1), draw(5, 3), "amax", include_self=False)
    yield lambda: draw(5, 3).index_add(0, index, draw(5, 3))
    yield lambda: draw(5, 3).index_copy_(0, pair, draw(2, 3))
    yield lambda: draw(5, 3).index_fill_(0, pair, 2.0)
    yield lambda: draw(5, 3).index_reduce_(0, index, draw(5, 3), "prod")
    yield lambda: draw(5, 3).index_put_([index], draw(5, 3), accumulate=True)
    yield lambda: aten._index_put_impl_(draw(5, 3), [index], draw(5, 3), False, True)
    yield lambda: aten._unsafe_index(draw(5, 3), [index])
    yield lambda: draw(5, 3)[torch.tensor([True, False, True, True, False])]
    yield lambda: torch.take(draw(4, 4), pair)
    yield lambda: draw(5, 3).put_(index, draw(5), accumulate=True)
    yield lambda: aten.value_selecting_reduction_backward(draw(3), 1, torch.tensor([0, 1, 0]), [3, 2], False)
    yield lambda: aten.unfold_backward(draw(2, 2), [5], 0, 2, 3)
    yield lambda: F.embedding(index, draw(5, 3))
    yield lambda: aten.embedding_dense_backward(draw(5, 3), index, 5, -1, False)
    yield lambda: aten.embedding_renorm(draw(5, 3), index, 1.0, 2.0)
    for mode in (0, 1, 2):

        def bags(mode=mode):
            out = aten._embedding_bag(draw(5, 3), index, offsets, False, mode)
            aten._embedding_bag_dense_backward(torch.ones_like(out[0]), index, owners, *out[2:], 5, False, mode, None, -1)
            aten._embedding_bag_backward(torch.ones_like(out[0]), index, offsets, *out[1:], 5, False, mode, False, None)

        yield bags
    yield lambda: aten._embedding_bag_forward_only(draw(5, 3), index, offsets)
    yield lambda: aten._embedding_bag_per_sample_weights_backward(draw(3, 3), draw(5, 3), index, offsets, index.clamp(max=2), 0)
    yield lambda: F.max_pool2d(image.clone().requires_grad_(), 2).sum().backward()
    yield lambda: F.max_pool3d(volume.clone().requires_grad_(), 2).sum().backward()
    yield lambda: F.adaptive_max_pool2d(image.clone().requires_grad_(), 2).sum().backward()
    yield lambda: F.adaptive_max_pool3d(volume.clone().requires_grad_(), 2).sum().backward()
    samples = torch.rand(2, 3, 2, generator=generator).to(dtype)
    yield lambda: F.fractional_max_pool2d(image.clone().requires_grad_(), 2, 3, _random_samples=samples).sum().backward()
    yield lambda: F.max_unpool2d(*F.max_pool2d(image, 2, return_indices=True), 2)
    yield lambda: F.avg_pool2d(image, 3, padding=1)
    yield lambda: F.unfold(image, 2)
    yield lambda: F.conv2d(image, draw(2, 3, 3, 3), padding=1, stride=2)
    yield lambda: F.interpolate(image.clone().requires_grad_(), scale_factor=2, mode="bilinear").sum().backward()
    yield lambda: F.interpolate(image.clone().requires_grad_(), scale_factor=2, mode="nearest").sum().backward()
    yield lambda: F.grid_sample(image, draw(2, 3, 3, 2), align_corners=False)
    labels, batch = torch.tensor([1, 0, 2, 1]), draw(4, 3)
    yield lambda: F.nll_loss(batch.clone().requires_grad_(), labels).sum().backward()
    yield lambda: F.nll_loss(draw(2, 3, 2, 2).requires_grad_(), torch.ones(2, 2, 2, dtype=torch.int64)).sum().backward()
    yield lambda: F.multi_margin_loss(batch.clone().requires_grad_(), labels).backward()
    yield lambda: F.multilabel_margin_loss(batch.clone().requires_grad_(), labels.reshape(4, 1).expand(4, 3) % 3).backward()
    for targets in (torch.tensor([[1, 2], [2, 1]]), torch.tensor([1, 2, 2, 1])):
        yield lambda targets=targets: F.ctc_loss(
            draw(5, 2, 3).log_softmax(-1).requires_grad_(), targets, torch.tensor([5, 4]), torch.tensor([2, 2])
        ).backward()
    lengths = torch.tensor([2, 3])
    yield lambda: torch.segment_reduce(draw(5, 3).requires_grad_(), "sum", lengths=lengths, axis=0).sum().backward()
    yield lambda: torch.segment_reduce(draw(5, 3).requires_grad_(), "max", offsets=torch.tensor([0, 2, 5])).sum().backward()
    yield lambda: torch.bincount(pair, torch.ones(2))
    yield lambda: torch.histogram(draw(9), 4)
    ordered = draw(6).sort()
    yield lambda: torch.searchsorted(ordered.values, draw(4), sorter=torch.arange(6))
    factors = torch.linalg.lu_factor(torch.eye(3) + 0.5)
    yield lambda: torch.lu_unpack(*factors)
    yield lambda: torch.linalg.lu_solve(*factors, torch.ones(3, 2))
    yield lambda: torch.linalg.ldl_solve(*torch.linalg.ldl_factor(torch.eye(3) + 0.5), torch.ones(3, 2))
    yield lambda: aten.batch_norm_backward(
        image, image, draw(3), None, None, draw(3), draw(3), True, 1e-5, [True] * 3, torch.empty(0, dtype=torch.uint8)
    )
    yield lambda: torch.special.hermite_polynomial_h(draw(3), 4)
    for kind, options in ((torch.optim.AdamW, {}), (torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adagrad, {})):

        def step(kind=kind, options=options):
            parameters = [torch.nn.Parameter(draw(4, 3)), torch.nn.Parameter(draw(2))]
            optimizer = kind(parameters, lr=0.1, fused=True, **options)
            for parameter in parameters:
                parameter.grad = draw(*parameter.shape)
            optimizer.step()

        yield step


def recorded(functions):
    """A bundle of what functions call; one that this dtype does not have is left out."""
    bundle = Bundle(environment(torch.device("cpu")))
    recorder = CallRecorder(bundle, 1 << 30)
    for function in functions:
        with contextlib.suppress(NotImplementedError, RuntimeError), recorder:
            function()
    bundle.records = [record for record in bundle.records if "skipped" not in record]
    return bundle


def alone(bundle, record):
    """A bundle of one record of another, with its tensors, and that record."""
    small = Bundle(bundle.environment)

    def moved(value):
        if isinstance(value, list):
            return [moved(item) for item in value]
        if not isinstance(value, dict):
            return value
        if value.keys() == {"tensor"}:
            return {"tensor": small.add_tensor(*bundle.tensors[value["tensor"]])}
        return {key: moved(item) for key, item in value.items()}

    small.records = [{key: moved(item) for key, item in record.items()}]
    return small, small.records[0]


def replay_changed(bundle, policies, most=None):
    """Replay every change of every record; how many were replayed and refused. What is neither is raised."""
    counts = collections.Counter()
    for record in bundle.records:
        small, own = alone(bundle, record)
        for what, changed in itertools.islice(changed_calls(small, own), most):
            small.records = [changed]
            try:
                check_records(small)
            except BundleError:
                counts["malformed"] += 1
                continue
            for policy in policies:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    try:
                        Call(small, changed).replay(policy)
                    except NotReplayed:
                        counts["refused"] += 1
                    except Exception as error:
                        raise AssertionError(f"{own['op']}, {what}") from error
                    else:
                        counts["replayed"] += 1
    return dict(counts)
