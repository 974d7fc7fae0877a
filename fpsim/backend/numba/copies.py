"""Copies of a vector under a mask: short lines cost two instructions, whatever their length."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fpsim.backend.numba.tiles import data_of, splat, vector_pointer

LANES = 16


@intrinsic
def copy_lanes(
    typing_context: Any, source: Any, index: Any, target: Any, place: Any, low: Any, high: Any, stop: Any
) -> Any:
    """target[place + i] = source[index + i] where low <= i < high, else 0, for every i < min(stop, LANES).

    Nothing else is read or written: the index may lie outside where no lane reads.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element = context.get_data_type(signature.args[0].dtype)
        vector, word = ir.VectorType(element, LANES), ir.IntType(32)
        mask_type = ir.VectorType(ir.IntType(1), LANES)
        numbers = ir.Constant(ir.VectorType(word, LANES), list(range(LANES)))

        def lanes_below(limit: Any) -> Any:
            return builder.icmp_signed("<", numbers, splat(builder, builder.trunc(limit, word), LANES).value)

        def address(array_type: Any, array: Any, position: Any) -> Any:
            return vector_pointer(builder, data_of(context, builder, array_type, array), position, LANES)

        def declared(name: str, result: Any, parameters: list[Any]) -> Any:
            full = f"llvm.masked.{name}.v{LANES}f{signature.args[0].dtype.bitwidth}.p0"
            return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, parameters), full)

        align = word(signature.args[0].dtype.bitwidth // 8)
        reading = builder.and_(lanes_below(arguments[5]), builder.not_(lanes_below(arguments[4])))
        load = declared("load", vector, [vector.as_pointer(), word, mask_type, vector])
        store = declared("store", ir.VoidType(), [vector, vector.as_pointer(), word, mask_type])
        zeros = ir.Constant(vector, [0.0] * LANES)
        value = builder.call(load, [address(signature.args[0], arguments[0], arguments[1]), align, reading, zeros])
        builder.call(store, [value, address(signature.args[2], arguments[2], arguments[3]), align, lanes_below(arguments[6])])
        return context.get_dummy_value()

    return types.none(source, index, target, place, low, high, stop), generate
