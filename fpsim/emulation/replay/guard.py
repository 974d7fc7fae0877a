"""What a bundle may have computed: operations with a rule, whose arguments torch accepts and no kernel follows astray.

Nothing in a file is trusted. An operation is called only after torch, on tensors that have shapes and no memory, has given
the shapes of its results, which must be the recorded ones: so no call allocates more than the file holds. What kernels take on
trust beyond shapes is checked by `trusted`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from numba.core.errors import NumbaError

from fpsim.emulation.registry import TABLE
from fpsim.emulation.replay.tensors import arguments_of, numbers_in, operands_and_results, results_of
from fpsim.emulation.replay.trusted import Untrusted, check_arguments
from fpsim.emulation.schemas import tensors_in
from fpsim.recorder.bundle import Bundle
from fpsim.recorder.calls import may_compute

#: What operations, emulated or not, raise for arguments that they do not take.
REFUSALS = (
    NotImplementedError, ValueError, RuntimeError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError,
    MemoryError, NumbaError,
)  # fmt: skip

_MOST_BYTES = 1 << 28  # of the operands of one call, and of its results
#: How a bundle encodes what torch's operators also take as a bare number, by the type in an operation's schema.
_KINDS = {"ScalarType": "dtype", "Layout": "layout", "MemoryFormat": "layout", "Device": "device"}
_UNRECORDED = "no recorder writes such a call"

#: Operations whose results' shapes depend on numbers, or that torch cannot shape: `trusted` or their kernels check all.
_UNSHAPED = frozenset((
    "masked_select", "equal", "allclose", "nonzero", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "index", "index_put", "_ctc_loss", "_ctc_loss_backward", "multi_margin_loss_backward", "multilabel_margin_loss_backward",
    "fractional_max_pool3d_backward", "histogram", "_histogramdd_bin_edges", "_histogramdd_from_bin_cts",
    "_histogramdd_from_bin_tensors", "geqrf", "linalg_lstsq", "_fused_sgd", "_fused_adagrad",
))  # fmt: skip
#: Operations that make a list of as many tensors as a number or a size says.
_PIECES = frozenset(("unsafe_split", "unsafe_chunk", "unbind_copy", "split_copy", "split_with_sizes_copy"))


class NotReplayed(Exception):
    """Why a call cannot be computed again."""


def check_call(op: torch._ops.OpOverload, bundle: Bundle, record: dict[str, Any]) -> None:
    """Raises NotReplayed, saying why, for a call that no recorder writes or whose arguments lead out of its operands."""
    if not may_compute(op):
        raise NotReplayed(_UNRECORDED)
    if torch.Tag.nondeterministic_seeded in op.tags:
        raise NotReplayed("draws random numbers")
    recorded = _recorded(bundle, record)
    _check_encoding(op, record)
    _check_pieces(op, bundle, record, len(recorded))
    shaped = _shaped(op, bundle, record)
    if shaped is not None:
        _check_shapes(shaped, recorded)
    arguments = _by_name(op, *arguments_of(bundle, record))
    if not any(tensor.is_floating_point() for tensor in tensors_in(arguments.values())):
        raise NotReplayed(_UNRECORDED)
    try:
        check_arguments(_base(op), TABLE[op].family, arguments)
    except Untrusted as reason:
        raise NotReplayed(str(reason)) from None
    except REFUSALS as error:  # an argument of another kind, of an operation that torch did not shape before
        raise NotReplayed(f"its arguments are not what torch takes ({first_line(error)})") from None


def first_line(error: BaseException) -> str:
    """What an exception says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _base(op: torch._ops.OpOverload) -> str:
    return op._schema.name.removeprefix("aten::")


def _recorded(bundle: Bundle, record: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, shape) of the recorded results; raises NotReplayed for more bytes than a file holds."""
    operands, results = operands_and_results(record)
    for numbers in (operands, results):
        if sum(bundle.tensors[number][3].nbytes for number in numbers) > _MOST_BYTES:
            raise NotReplayed(f"its tensors have more than {_MOST_BYTES >> 20} MB")
    return [bundle.tensors[number][:2] for number in results]


def _check_encoding(op: torch._ops.OpOverload, record: dict[str, Any]) -> None:
    """Lists are as long as the operation says, and dtypes no numbers: what finds shapes follows both without looking."""
    for place, argument in enumerate(op._schema.arguments):
        value = record["args"][place] if place < len(record["args"]) else record["kwargs"].get(argument.name)
        wanted_kind = _KINDS.get(str(getattr(argument, "real_type", argument.type)).removeprefix("Optional[").removesuffix("]"))
        if wanted_kind is not None and value is not None and not (isinstance(value, dict) and value.keys() == {wanted_kind}):
            raise NotReplayed(f"its argument {argument.name!r} is no {wanted_kind}")
        wanted = getattr(argument, "N", None)
        if wanted is None or value is None or (wanted == 1 and argument.name == "dim"):
            continue
        left_out = argument.name == "stride" and value == []
        if not isinstance(value, list) or (len(value) != wanted and not left_out):
            raise NotReplayed(f"its argument {argument.name!r} is no list of {wanted}")


def _check_pieces(op: torch._ops.OpOverload, bundle: Bundle, record: dict[str, Any], count: int) -> None:
    """Before torch makes a list of the pieces, there are at most as many of them as were recorded."""
    if _base(op) not in _PIECES or not record["args"]:
        return
    source, *rest = record["args"]
    operands = numbers_in(source)
    size = max(bundle.tensors[operands[0]][1], default=1) if operands else 0
    number = next((item for item in rest if type(item) is int), 1)
    pieces = math.ceil(size / number) if _base(op) == "unsafe_split" and number > 0 else size
    if pieces > max(count, 1 << 12):
        raise NotReplayed("it has other results than torch gives here")


def _shaped(op: torch._ops.OpOverload, bundle: Bundle, record: dict[str, Any]) -> list[tuple[str, tuple[int, ...]]] | None:
    """(dtype, shape) of the results that torch finds without computing; None where it cannot, and need not."""
    try:
        args, kwargs = arguments_of(bundle, record, without_memory=True)
        with torch.no_grad():
            result = op(*args, **kwargs)
    except REFUSALS as error:
        if _base(op).removesuffix("_") in _UNSHAPED and isinstance(error, NotImplementedError):
            return None
        if _base(op) == "allclose":  # which reads its result
            return None
        raise NotReplayed(f"torch does not take its arguments ({first_line(error)})") from None
    if not record["written"].keys() <= {str(place) for place in (*range(len(args)), *kwargs)}:
        raise NotReplayed("it names an argument that it does not have")
    results = results_of(record, result, args, kwargs)
    return [(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in results]


def _check_shapes(shaped: list[tuple[str, tuple[int, ...]]], recorded: list[tuple[str, tuple[int, ...]]]) -> None:
    """The same shapes; after the first, which may be statistics that one side does not keep, one of the two may be empty."""
    alike = len(shaped) == len(recorded) and all(
        mine == other or (place > 0 and 0 in (math.prod(mine), math.prod(other)))
        for place, ((_, mine), (_, other)) in enumerate(zip(shaped, recorded, strict=True))
    )
    if not alike:
        raise NotReplayed("it has other results than torch gives here")


def _by_name(op: torch._ops.OpOverload, args: list[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Every argument by its name."""
    by_name: dict[str, Any] = {}
    for place, argument in enumerate(op._schema.arguments):
        if place < len(args):
            by_name[argument.name] = args[place]
        elif argument.name in kwargs or argument.has_default_value():
            by_name[argument.name] = kwargs.get(argument.name, argument.default_value)
        else:
            raise NotReplayed(f"its argument {argument.name!r} is missing")
    return by_name
