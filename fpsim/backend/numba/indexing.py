"""Elements and views of C-contiguous arrays at integers and slices without a step; see `lowering`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.np.arrayobj import load_item, store_item


def struct(builder: Any, kind: Any, parts: Iterable[Any]) -> Any:
    """A value of LLVM's type, of its parts."""
    result = ir.Constant(kind, ir.Undefined)
    for place, value in enumerate(parts):
        result = builder.insert_value(result, value, place)
    return result


def part(builder: Any, value: Any, place: int) -> Any:
    """A part of a value: that which was put there whole, where this is known."""
    made = value
    while isinstance(made, ir.instructions.InsertValue):
        first, *others = made.indices
        if first == place:
            return builder.extract_value(value, place) if others else made.operands[1]
        made = made.operands[0]
    return builder.extract_value(value, place)


def _kinds(index: Any) -> Sequence[Any]:
    return index.types if isinstance(index, types.BaseTuple) else (index,)


def _is_simple(array: Any, index: Any) -> bool:
    if not isinstance(array, types.Array) or array.layout != "C" or not 1 <= len(_kinds(index)) <= array.ndim:
        return False
    return all(isinstance(kind, types.Integer) or kind == types.slice2_type for kind in _kinds(index))


def _wrapped(builder: Any, position: Any, size: Any) -> Any:
    """A position counted from the end where it is negative."""
    if isinstance(position, ir.Constant) and position.constant >= 0:
        return position
    return builder.select(builder.icmp_signed("<", position, position.type(0)), builder.add(position, size), position)


def _bound(builder: Any, position: Any, size: Any) -> Any:
    """A slice's bound, inside the array as Python has it."""
    if isinstance(position, ir.Constant) and position.constant == 0:
        return position
    position = _wrapped(builder, position, size)
    position = builder.select(builder.icmp_signed("<", position, position.type(0)), position.type(0), position)
    return builder.select(builder.icmp_signed(">=", position, size), size, position)


class _Place:
    """Where an index points to: the address, and the lengths of the axes that remain, by axis."""

    def __init__(self, context: Any, builder: Any, array_type: Any, array: Any, index_type: Any, index: Any):
        self.fields = context.data_model_manager[array_type]
        shape = self.fields.get(builder, array, "shape")
        sizes = [builder.extract_value(shape, axis) for axis in range(array_type.ndim)]
        self.lengths = dict(enumerate(sizes))
        indices = cgutils.unpack_tuple(builder, index) if isinstance(index_type, types.BaseTuple) else [index]
        offset = None
        for axis, (kind, position) in enumerate(zip(_kinds(index_type), indices, strict=True)):
            if isinstance(kind, types.Integer):
                position = context.cast(builder, position, kind, types.intp)
                start = _wrapped(builder, position, sizes[axis]) if kind.signed else position
                del self.lengths[axis]
            else:
                start, stop = (_bound(builder, part(builder, position, side), sizes[axis]) for side in (0, 1))
                length = builder.sub(stop, start)
                none = length.type(0)
                self.lengths[axis] = builder.select(builder.icmp_signed("<=", length, none), none, length)
            for size in sizes[axis + 1 :]:
                start = builder.mul(start, size)
            offset = start if offset is None else builder.add(offset, start)
        self.address = builder.gep(self.fields.get(builder, array, "data"), [offset])


def get(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """The element that all axes' integers name, or a view; NotImplemented for other arrays and indices."""
    if not _is_simple(*signature.args):
        return NotImplemented
    array_type, index_type = signature.args
    array, index = arguments
    place = _Place(context, builder, array_type, array, index_type, index)
    if not place.lengths:
        return load_item(context, builder, array_type, place.address)
    result_type = signature.return_type
    fields = context.data_model_manager[result_type]
    strides = place.fields.get(builder, array, "strides")
    result = ir.Constant(fields.get_value_type(), ir.Undefined)
    items = None
    for place_of_axis, (axis, length) in enumerate(place.lengths.items()):
        items = length if items is None else builder.mul(items, length)
        result = builder.insert_value(result, length, (fields.get_field_position("shape"), place_of_axis))
        stride = builder.extract_value(strides, axis)
        result = builder.insert_value(result, stride, (fields.get_field_position("strides"), place_of_axis))
    for name in ("meminfo", "parent", "itemsize"):
        result = fields.set(builder, result, place.fields.get(builder, array, name), name)
    result = fields.set(builder, fields.set(builder, result, items, "nitems"), place.address, "data")
    return impl_ret_borrowed(context, builder, result_type, result)


def set_element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Store a number in the element that all axes' integers name; NotImplemented for anything else."""
    array_type, index_type, value_type = signature.args
    kinds = _kinds(index_type)
    names_element = all(isinstance(kind, types.Integer) for kind in kinds)
    if not _is_simple(array_type, index_type) or not names_element or len(kinds) != array_type.ndim:
        return NotImplemented
    array, index, value = arguments
    place = _Place(context, builder, array_type, array, index_type, index)
    store_item(context, builder, array_type, context.cast(builder, value, value_type, array_type.dtype), place.address)
    return None
