"""Calls of the operator database with a Python number that is no value of the dtype wherever an operation takes one."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from fpsim.emulation.numbers import places
from tests.operators import evaluate, fresh, op_db, samples_of

#: One above and one below the nearest float16 and bfloat16 number each.
NUMBERS = (0.1, 0.7)
#: Beyond float16's range.
BEYOND = (1e5, -1e9)
#: What sets a size, or what numbers are drawn from.
SIZES = ("arange", "repeat", "full", "nn.functional.interpolate", "nn.functional.upsample_bilinear", "randint", "randint_like")


def _is_dense(value):
    return not isinstance(value, torch.Tensor) or value.layout is torch.strided


def _copy(value):
    return tree_map(lambda item: item.detach().clone() if isinstance(item, torch.Tensor) else item, value)


def near(number, dtype):
    """A function that puts the number rounded, its neighbours and its multiples among a tensor's elements."""
    rounded = torch.tensor(number, dtype=torch.float64).to(dtype)
    up, down = (torch.nextafter(rounded, torch.tensor(end, dtype=dtype)) for end in (float("inf"), float("-inf")))
    special = torch.stack([rounded, up, down, 2 * rounded, 3 * rounded, -rounded, 10 * rounded, rounded / 2])

    def seeded(value):
        if not isinstance(value, torch.Tensor) or value.dtype is not dtype or not value.numel():
            return value
        flat = value.detach().clone().reshape(-1)
        flat[::2] = special.repeat(flat.numel() // 16 + 1)[: len(flat[::2])]
        return flat.reshape(value.shape)

    return seeded


def _with_number(sample, number, dtype):
    """(label, arguments) of a sample in which the number stands for numbers, or for one operand, or is a tensor's."""
    args, kwargs = (sample.input, *sample.args), sample.kwargs
    if any(type(item) is float for item in tree_leaves((args, kwargs))):
        yield "numbers", tree_map(lambda item: number if type(item) is float else item, (args, kwargs))
    for index, value in enumerate(args):
        if not isinstance(value, torch.Tensor) or value.dtype is not dtype or len(args) < 2:
            continue
        for label, given in (("", number), (" as a tensor", torch.tensor(number, dtype=torch.float64))):
            if index == 0 and label:
                continue
            yield f"operand {index}{label}", ((*args[:index], given, *args[index + 1 :]), kwargs)


def database_calls(index, dtype, numbers, most):
    """(label, function, args, kwargs) for an operation of the database, its in-place form too."""
    op = op_db[index]
    forms = [("", op.op)] + ([("in place, ", op.inplace_variant)] if op.inplace_variant else [])
    for sample in samples_of(index, dtype, most):
        for number in numbers:
            for label, call in _with_number(sample, number, dtype):
                if all(map(_is_dense, tree_leaves(call))):
                    args, kwargs = tree_map(near(number, dtype), call)
                    for form, function in forms:
                        yield f"{form}{label}: {number}", function, args, kwargs


class _Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.setdefault(func, (_copy(args), _copy(kwargs or {})))
        return func(*args, **(kwargs or {}))


def operation_calls(index, dtype, numbers, most):
    """(operation, label, args, kwargs) for what an operation of the database calls, forward and backward."""
    record = _Record()
    for sample in samples_of(index, dtype, most):
        try:
            evaluate(op_db[index], sample, record, fresh, dtype)
        except (RuntimeError, ValueError, TypeError, IndexError):
            continue
    for op, (args, kwargs) in record.calls.items():
        arguments = op._schema.arguments
        if not any(isinstance(item, torch.Tensor) and item.dtype is dtype for item in tree_leaves((args, kwargs))):
            continue
        for place, name in places(op):
            if "Tensor" in str(arguments[place].type) or not all(map(_is_dense, tree_leaves((args, kwargs)))):
                continue
            for number in numbers:
                given = list(args)
                named = dict(kwargs)
                if place < len(given):
                    given[place] = number
                else:
                    named[name] = number
                yield op, f"{name}={number}", *tree_map(near(number, dtype), (tuple(given), named))


def outcome(function, args, kwargs, context):
    """What a call on copies gives: its tensors and numbers, or the type of what it raises."""
    args, kwargs = _copy((args, kwargs))
    torch.manual_seed(0)
    try:
        with context:
            result = function(*args, **kwargs)
    except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        return error
    return [item for item in tree_leaves(result) if isinstance(item, (torch.Tensor, bool, float))]


def same(actual, expected):
    """Whether two outcomes are one: the same values of the same dtypes, or both an error."""
    if isinstance(expected, Exception) or isinstance(actual, Exception):
        overflow = "without overflow" in str(expected)
        return type(actual) is type(expected) if overflow else isinstance(expected, Exception) == isinstance(actual, Exception)
    return len(actual) == len(expected) and all(map(_one, actual, expected))


def _one(a, b):
    if not isinstance(a, torch.Tensor):
        return a == b or a != a
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.layout is not torch.strided or (torch.equal(torch.isnan(a), torch.isnan(b)) and torch.equal(_plain(a), _plain(b)))


def _plain(tensor):
    if not tensor.is_floating_point():
        return tensor
    return tensor.detach().nan_to_num(nan=0.5, posinf=float("inf"), neginf=float("-inf"))
