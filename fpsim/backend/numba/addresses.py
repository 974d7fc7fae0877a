"""Calls of a kernel by its address, from one that does not know which it is and so need not be compiled for each."""

from __future__ import annotations

from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


class MachineCode:
    """A kernel's, for arguments of these types: it is at `address` as long as this is kept."""

    def __init__(self, compiled: Any, arguments: tuple[Any, ...]):
        compiled.compile(arguments)
        self._result = compiled.overloads[arguments]
        self.address = int(self._result.library.get_pointer_to_function(self._result.fndesc.llvm_func_name))


def caller(arguments: tuple[Any, ...]) -> Any:
    """An intrinsic `(address, given) -> None`: a call of the kernel whose code for arguments of these types begins there.

    What is given, a tuple, is converted to these types; where that cannot be, the kernel that calls does not compile.
    """
    wanted = types.Tuple(arguments)

    @intrinsic
    def call(typing_context: Any, address: Any, given: Any) -> Any:
        if typing_context.can_convert(given, wanted) is None:
            return None

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = context.call_conv.get_function_type(types.none, arguments)
            function = builder.inttoptr(values[0], kind.as_pointer())
            parts = cgutils.unpack_tuple(builder, context.cast(builder, values[1], given, wanted))
            context.call_conv.call_function(builder, function, types.none, arguments, parts)
            return context.get_dummy_value()

        return types.none(types.intp, given), generate

    return call
