"""What kernels are made of most, in few of LLVM's instructions: indices, slices, ranges and the loops over them.

Numba's own does the same with three to ten times as many, most of which copy a struct to memory and read it again. LLVM takes
those out; but making, writing, reading and simplifying them is a good part of the time in which a kernel compiles.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fpsim.backend.numba import indexing
from fpsim.backend.numba.indexing import part, struct

#: What generates a call, given (context, builder, signature, arguments); NotImplemented where that is left to Numba.
Generator = Callable[[Any, Any, Any, Any], Any]

_INDEX_LIMIT = 2**63 - 1  # the bound that stands for a slice's missing one


def _range(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    kind = signature.return_type
    if not isinstance(kind, types.RangeType):
        return NotImplemented
    number = context.get_value_type(kind.dtype)
    start, stop, step = [number(0), *arguments, number(1)] if len(arguments) == 1 else [*arguments, number(1)][:3]
    return struct(builder, context.get_value_type(kind), (start, stop, step))


def _slice(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    if signature.return_type != types.slice2_type or len(arguments) != 2:
        return NotImplemented
    number = context.get_value_type(types.intp)
    given = zip(arguments, signature.args, (number(0), number(_INDEX_LIMIT)), strict=True)
    start, stop = (missing if isinstance(kind, types.NoneType) else value for value, kind, missing in given)
    return struct(builder, context.get_value_type(types.slice2_type), (start, stop, number(1)))


def _begin(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """An iterator: where its next number and how many are left lie, which are variables; its end; its step."""
    if not isinstance(signature.args[0], types.RangeType):
        return NotImplemented
    start, stop, step = (part(builder, arguments[0], place) for place in range(3))
    if not isinstance(step, ir.Constant) or step.constant <= 0:  # which may be zero, an error
        return NotImplemented
    difference, none = builder.sub(stop, start), start.type(0)
    count = difference
    if step.constant > 1:
        count = builder.udiv(builder.add(difference, step.type(step.constant - 1)), step)
    count = builder.select(builder.icmp_signed(">", difference, none), count, none)
    following, left = (cgutils.alloca_once_value(builder, value) for value in (start, count))
    return struct(builder, context.get_value_type(signature.return_type), (following, stop, step, left))


def _next(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The next number, and whether there is one."""
    if not isinstance(signature.args[0], types.RangeIteratorType):
        return NotImplemented
    following, step, left = (part(builder, arguments[0], place) for place in (0, 2, 3))
    number, count = builder.load(following), builder.load(left)
    builder.store(builder.add(number, step), following)
    builder.store(builder.sub(count, count.type(1), flags=["nsw"]), left)
    valid = builder.icmp_signed(">", count, count.type(0))
    return struct(builder, context.get_value_type(signature.return_type), (number, valid))


_OWN: dict[Any, Generator] = {
    range: _range,
    slice: _slice,
    "getiter": _begin,
    "iternext": _next,
    operator.getitem: indexing.get,
    operator.setitem: indexing.set_element,
}


def lower_in_few_instructions(context: Any) -> None:
    """Let the context of a compilation take what is generated here before what Numba would."""
    get_function, get_getattr = context.get_function, context.get_getattr

    def get_own_or_numba(function: Any, signature: Any, _firstcall: bool = True) -> Any:
        own = _OWN.get(getattr(function, "typing_key", function))
        if own is None:
            return get_function(function, signature, _firstcall)

        def generate(builder: Any, arguments: Any, loc: Any = None) -> Any:
            result = own(context, builder, signature, arguments)
            return get_function(function, signature)(builder, arguments) if result is NotImplemented else result

        return generate

    def get_size_or_numba(kind: Any, name: str) -> Any:
        if name != "size" or not isinstance(kind, types.Array):
            return get_getattr(kind, name)
        return lambda context, builder, kind, array, name: context.data_model_manager[kind].get(builder, array, "nitems")

    context.get_function, context.get_getattr = get_own_or_numba, get_size_or_numba
    context.pair_first = lambda builder, pair, kind: part(builder, pair, 0)
    context.pair_second = lambda builder, pair, kind: part(builder, pair, 1)
