"""Rows of operations that make no new numbers: views, copies, selections, joins; and of those that add without factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fpsim.emulation.certification.slopes import EPSILON, Operand, Slope, linear, upwards
from fpsim.emulation.certification.table import TABLE, Call, LibraryArithmetic, Products, free, multiplied, register
from fpsim.emulation.schemas import is_out, names, overloads

_aten = torch.ops.aten


def one_at_a_time(call: Call) -> list[Slope]:
    """The slopes of a linear operation with coefficients >= 0: the operation itself with zeros in the other places."""

    def put(place: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def apply(t: torch.Tensor) -> torch.Tensor:
            return call.run([t if i == place else torch.zeros_like(item.value) for i, item in enumerate(call.operands)])

        return apply

    return [linear(put(place)) for place in range(len(call.operands))]


COPIES = names(
    """
    alias diagonal expand lift_fresh permute select slice split split_with_sizes squeeze t transpose unbind unfold
    unsqueeze view _reshape_alias _unsafe_view unsafe_split unsafe_split_with_sizes unsafe_chunk swapaxes swapdims clone flip
    roll rot90 repeat index_select gather index _unsafe_index pixel_shuffle pixel_unshuffle channel_shuffle im2col tril triu
    embedding cat stack expand_copy view_copy permute_copy select_copy slice_copy unsqueeze_copy squeeze_copy t_copy
    transpose_copy alias_copy reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d upsample_nearest1d upsample_nearest2d chunk
    """
)
for _name in COPIES:
    for _op in overloads(_name).values():
        if not is_out(_op) and not _op._schema.is_mutable:
            register(_op, "structure", one_at_a_time, kind="exact", cost=free, outputs=None)


for _name in ("detach", "detach_copy"):  # as they are, autograd would carry nothing back through them
    register(getattr(_aten, _name).default, "structure", lambda call: [linear(lambda t: t.clone())], kind="exact", cost=free)


def _converted(call: Call) -> Sequence[Slope]:
    if call.kwargs.get("dtype") not in (None, torch.float32):
        raise call.refuse(f"a conversion to {call.kwargs['dtype']}; certification takes models in float32")
    return [linear(lambda t: t.clone())]


register(_aten._to_copy.default, "structure", _converted, kind="exact", cost=free)


def _copied(call: Call) -> Sequence[Slope]:
    """A whole tensor overwritten: what was there counts no more."""
    shape = call.operands[0].value.shape
    nothing = linear(lambda t: t * 0)
    return [nothing, linear(lambda t: t.expand(shape))]


register(_aten.copy.default, "structure", _copied, kind="exact", cost=free)


# Constants in chosen places


def _fill_known(call: Call) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What the constant's own rounding (or saturation) changes."""
    mask, value = call.args[1], call.args[2]
    if isinstance(value, (Operand, torch.Tensor)):
        raise call.refuse("filled from a tensor; fill with a number")
    if call.emulated is None:
        return None, None
    changed = torch.where(call.emulated == float(value), 0.0, call.emulated - float(value))
    signed_part = torch.where(mask, changed, 0.0)
    return signed_part, upwards(signed_part.abs() * EPSILON)


register(
    _aten.masked_fill.Scalar, "structure", lambda call: [linear(lambda t: t.masked_fill(call.args[1], 0.0))], kind="exact",
    cost=free, known=_fill_known,
)  # fmt: skip


def _padded(call: Call) -> Sequence[Slope]:
    if call.argument(2, "value", 0):
        raise call.refuse("padding with a number other than 0")
    return one_at_a_time(call)


register(_aten.constant_pad_nd.default, "structure", _padded, kind="exact", cost=free)


def _chosen(call: Call) -> Sequence[Slope]:
    if isinstance(call.args[0], Operand):
        raise call.refuse("a condition in floating point")
    return one_at_a_time(call)


register(_aten.where.self, "structure", _chosen, kind="exact", cost=free)


# Sums and means without factors


def _sums(call: Call) -> Products:
    operand = call.operands[0]
    count = max(1, operand.value.numel() // max(1, call.run([operand.value]).numel()))
    ones = Operand(torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64))
    divisor = count if "mean" in call.step.op._schema.name else 1

    def lines(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dim = call.argument(1, "dim")
        axes = [axis % a.dim() for axis in ([dim] if isinstance(dim, int) else dim or range(a.dim()))]
        kept = [axis for axis in range(a.dim()) if axis not in axes]
        matrix = a.permute([*kept, *sorted(axes)]).reshape(-1, count)
        return matrix, b.expand(count, 1)

    return Products(lambda a, b: call.run([a * b]) * divisor, (operand, ones), count, divisor=divisor, matrices=lines)


def _averages(call: Call) -> list[Slope]:
    count = max(1, call.operands[0].value.numel() // max(1, call.result.numel() if call.result is not None else 1))
    return [linear(lambda t: call.run([t]), count)]


def _averaged(call: Call, unit: LibraryArithmetic) -> torch.Tensor:
    """The cost of a mean over a window, divided last or first."""
    operand = call.operands[0]
    terms = operand.value.numel()
    terms = min(terms, 1 << 16)
    return call.run([operand.magnitude]) * ((terms + 4) * unit.roundoff * 1.01) + (terms + 4) * unit.underflow


for _op in (_aten.sum.default, _aten.sum.dim_IntList, _aten.mean.default, _aten.mean.dim):
    register(_op, "sum", _averages, kind="accumulated", cost=multiplied, products=_sums)
for _name in names("avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d avg_pool1d adaptive_avg_pool2d"):
    for _op in overloads(_name).values():
        if not is_out(_op) and _op not in TABLE:
            register(_op, "pooling", _averages, cost=_averaged)
