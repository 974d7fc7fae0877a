"""Calls of the operator database with a Python number that is no value of the dtype wherever an operation takes one.

What each call gives under fmt="native" is compared with torch bit for bit, signs of zeros included.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import fpsim
from fpsim.emulation import UnsupportedOp
from fpsim.emulation.numbers import places
from tests.number_exceptions import Key
from tests.operators import evaluate, fresh, op_db, same_bits, samples_of

#: For each dtype: one number above and one below the nearest value, and those beyond the range.
NUMBERS = {torch.float16: (0.1, 0.7, 1e5, -1e9), torch.bfloat16: (0.1, 0.7, 1e39)}


@dataclass(frozen=True)
class Call:
    """A function, and its arguments for a number that stands at a place; tensors hold that number's neighbours."""

    name: str
    place: str
    dtype: torch.dtype
    number: float
    function: Callable[..., Any]
    arguments: Callable[[float], tuple[tuple[Any, ...], dict[str, Any]]]

    @property
    def key(self) -> Key:
        return Key(self.name, self.place, self.dtype, abs(self.number) > 1)

    def result(self, context: Any, number: float | None = None) -> Any:
        """What the call gives on copies: its tensors and numbers, or the exception that it raises."""
        args, kwargs = self.arguments(self.number if number is None else number)
        args, kwargs = tree_map(near(self.number, self.dtype), _copy((args, kwargs)))
        torch.default_generator.manual_seed(0)
        try:
            with context:
                result = self.function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - what is raised is the result
            return error
        return [item for item in tree_leaves(result) if isinstance(item, (torch.Tensor, bool, int, float))]

    def by_torch(self) -> Any:
        return self.result(contextlib.nullcontext())

    def by_fpsim(self, number: float | None = None) -> Any:
        return self.result(fpsim.emulate("native", "fp32"), number)

    @property
    def rounded(self) -> float:
        """The number as the dtype has it."""
        return torch.tensor(self.number, dtype=torch.float64).to(self.dtype).item()


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


def _places(sample, dtype):
    """(label, arguments for a number): it stands for numbers, or for one operand, or is a tensor of no dimensions."""
    args, kwargs = (sample.input, *sample.args), sample.kwargs
    if not all(map(_is_dense, tree_leaves((args, kwargs)))):
        return
    if any(type(item) is float for item in tree_leaves((args, kwargs))):
        yield "numbers", lambda number: tree_map(lambda item: number if type(item) is float else item, (args, kwargs))
    for index, value in enumerate(args):
        if not isinstance(value, torch.Tensor) or value.dtype is not dtype or len(args) < 2:
            continue
        yield f"operand {index}", lambda number, index=index: ((*args[:index], number, *args[index + 1 :]), kwargs)
        if index:
            yield f"operand {index} as a tensor", lambda number, index=index: (
                (*args[:index], torch.tensor(number, dtype=torch.float64), *args[index + 1 :]), kwargs
            )  # fmt: skip


def database_calls(index, dtype, most):
    """Calls of an operation of the database, and of its in-place form."""
    op = op_db[index]
    forms = [("", op.op)] + ([("in place, ", op.inplace_variant)] if op.inplace_variant else [])
    for sample in samples_of(index, dtype, most):
        for place, arguments in _places(sample, dtype):
            for number in NUMBERS[dtype]:
                for form, function in forms:
                    yield Call(op.formatted_name, form + place, dtype, number, function, arguments)


class _Record(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.setdefault(func, (_copy(args), _copy(kwargs or {})))
        return func(*args, **(kwargs or {}))


def operation_calls(index, dtype, most):
    """Calls of what an operation of the database calls, forward and backward."""
    record = _Record()
    for sample in samples_of(index, dtype, most):
        with contextlib.suppress(RuntimeError, ValueError, TypeError, IndexError):  # what torch itself refuses
            evaluate(op_db[index], sample, record, fresh, dtype)
    for op, (args, kwargs) in record.calls.items():
        leaves = tree_leaves((args, kwargs))
        takes = any(isinstance(item, torch.Tensor) and item.dtype is dtype for item in leaves)
        if not takes or not all(map(_is_dense, leaves)):
            continue
        for place, name in places(op):
            if "Tensor" in str(op._schema.arguments[place].type):
                continue

            def arguments(number, place=place, name=name, args=args, kwargs=kwargs):
                if place < len(args):
                    return (*args[:place], number, *args[place + 1 :]), kwargs
                return args, {**kwargs, name: number}

            for number in NUMBERS[dtype]:
                yield Call(str(op), name, dtype, number, op, arguments)


def differs(call):
    """Whether fpsim gives another result than torch, or takes what torch refuses, or refuses what torch takes."""
    expected, actual = call.by_torch(), call.by_fpsim()
    if isinstance(expected, Exception):
        if "without overflow" in str(expected):
            return type(actual) is not type(expected)
        return not isinstance(actual, (type(expected), UnsupportedOp))
    return isinstance(actual, Exception) or not same(actual, expected)


def rounds_first(call):
    """Whether torch gives what fpsim gives of the number rounded to the dtype."""
    expected, actual = call.by_torch(), call.by_fpsim(call.rounded)
    return not isinstance(expected, Exception) and not isinstance(actual, Exception) and same(actual, expected)


def same(actual, expected):
    """Whether two lists of results are one: dtypes, shapes, values, signs of zeros."""
    return len(actual) == len(expected) and all(map(_one, actual, expected))


def _one(a, b):
    if not isinstance(a, torch.Tensor):
        return a == b or (a != a and b != b)
    if (a.dtype, a.shape, a.layout) != (b.dtype, b.shape, b.layout):
        return False
    if a.layout is not torch.strided:
        return _one(a.to_dense(), b.to_dense())
    if a.is_complex():
        return same_bits(*([torch.view_as_real(item).double()] for item in (a, b)))
    return same_bits([a.double()], [b.double()]) if a.is_floating_point() else torch.equal(a, b)
