"""Operations that make no new numbers: views, copies, selections, comparisons, constants, conversions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.direct import direct
from fpsim.emulation.errors import BeingTraced
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.protocol import Machine, MaybeDtype
from fpsim.emulation.registry import Rule, register, register_functional
from fpsim.emulation.schemas import is_out, name_of, names, overloads

_aten = torch.ops.aten

VIEWS = names(
    """
    alias as_strided detach diagonal expand lift_fresh permute select slice split split_with_sizes squeeze t
    transpose unbind unfold unsqueeze view _reshape_alias _unsafe_view unsafe_split unsafe_split_with_sizes
    unsafe_chunk view_as_real view_as_complex _conj _neg_view set_ resize_ resize_as_ swapaxes swapdims
    """
)

#: Results are elements of the operands (or 0), as they are.
SELECTIONS = names(
    """
    clone flip roll rot90 repeat index_select gather take index _unsafe_index masked_select tril triu neg abs relu
    sign sgn positive expand_copy view_copy permute_copy amax amin max min sort topk kthvalue median nanmedian mode
    cummax cummin max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
    max_unpool2d max_unpool3d fractional_max_pool2d fractional_max_pool3d reflection_pad1d reflection_pad2d
    reflection_pad3d replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle
    channel_shuffle im2col embedding diag_embed diagonal_copy select_copy slice_copy unsqueeze_copy squeeze_copy
    t_copy transpose_copy alias_copy detach_copy threshold_backward slice_scatter select_scatter select_backward
    slice_backward value_selecting_reduction_backward aminmax as_strided_copy narrow_copy split_with_sizes_copy
    unbind_copy split_copy unfold_copy repeat_interleave frexp block_diag as_strided_scatter nonzero_static diagonal_scatter
    floor ceil trunc diagonal_backward _chunk_cat lu_unpack masked_scatter_backward _pack_padded_sequence
    _pack_padded_sequence_backward conj_physical _conj_physical _padded_dense_to_jagged_forward
    """
)

#: The same, but operands of several dtypes may meet, so that the result is rounded where they do.
MEETINGS = [
    "cat",
    "stack",
    "where",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "copysign",
    "index_fill",
    "masked_scatter",
    "index_copy",
    "scatter",
]

#: Results are integers, booleans or Python numbers.
JUDGEMENTS = names(
    """
    eq ne lt le gt ge isnan isinf isfinite isposinf isneginf signbit argmax argmin argsort nonzero count_nonzero
    logical_and logical_or logical_xor logical_not equal is_nonzero any all bucketize searchsorted
    unique_dim _unique _unique2 unique_consecutive isin
    bitwise_and bitwise_or bitwise_xor
    bitwise_not allclose bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ __lshift__ __rshift__
    hash_tensor _linalg_check_errors _is_any_true _is_all_true gcd lcm _int_mm tril_indices triu_indices
    """
)

#: What is asked of a tensor's shape and memory: operands as they lie there, no number is read.
GEOMETRY = names("is_same_size is_set_to is_pinned _has_same_storage_numel")


def view_rule(op: torch._ops.OpOverload) -> Rule:
    grows, compute = "resize" in op._schema.name, direct(op)

    def view(machine: Machine, tensor: Any, *args: Any, **kwargs: Any) -> Any:
        if type(tensor) is complex:  # a factor whose conjugate a gradient has
            return op(torch.tensor(tensor, dtype=torch.complex128), *args, **kwargs)
        if not isinstance(tensor, Tensor):  # a tracer makes a constant of a Python number
            raise BeingTraced(op)
        if marks.tag_on(tensor) is None:
            machine.check(tensor, computes=False)
        result = compute(tensor, *args, **kwargs)
        if grows:
            marks.unmark(result)  # what a storage grows by is not initialized
        return result

    return view


def _geometry_rule(op: torch._ops.OpOverload) -> Rule:
    return lambda machine, *args, **kwargs: op(*args, **kwargs)


def exact_rule(op: torch._ops.OpOverload) -> Rule:
    """Operands in, the operation as torch has it, its float results marked."""
    compute = direct(op)

    def select(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            kwargs = {key: machine.operands(value) for key, value in kwargs.items()}
        result = compute(*machine.operands(args), **kwargs)
        if isinstance(result, Tensor):
            return machine.exact(result)
        if isinstance(result, (tuple, list)):
            for item in result:
                if isinstance(item, Tensor):
                    machine.exact(item)
        return result

    return select


_BESIDE_OTHERS = frozenset((torch.float32, torch.bool))


def _meeting_rule(op: torch._ops.OpOverload) -> Rule:
    compute = direct(op)
    fills = op._schema.name in ("aten::where", "aten::index_fill", "aten::fill", "aten::scatter")

    def meet(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        dtypes = set()
        foreign = False
        for argument in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(argument, Tensor):
                dtypes.add(argument.dtype)
            elif isinstance(argument, (list, tuple)):
                dtypes.update(item.dtype for item in argument if isinstance(item, Tensor))
                foreign = foreign or any(isinstance(item, float) for item in argument)
            else:
                foreign = foreign or isinstance(argument, float)
        alike = not foreign and (dtypes <= _BESIDE_OTHERS or torch.float32 not in dtypes)
        as_they_are = (alike and not fills) or (foreign and torch.float64 in dtypes)  # numbers, beside what means itself
        read = machine.operands if as_they_are else machine.filling
        result = compute(*[read(value) for value in args], **{key: read(value) for key, value in kwargs.items()})
        if alike:
            return machine.exact(result) if isinstance(result, Tensor) else result  # the places where a condition holds
        return machine.finish(result) if result.dtype is torch.float32 else result

    return meet


def _register() -> None:
    for name in VIEWS:
        for suffix in ("", "_"):
            for op in overloads(name + suffix).values():
                if not is_out(op):
                    register(op, family="view")(view_rule(op))
    register_functional(SELECTIONS, "exact", lambda op: (_meeting_rule if "other" in op._overloadname else exact_rule)(op))
    register_functional(MEETINGS, "exact", lambda op: None if "reduce" in op._overloadname else _meeting_rule(op))
    register_functional(JUDGEMENTS, "comparison", exact_rule)
    register_functional(GEOMETRY, "comparison", _geometry_rule)


_register()


@register(_aten.copy_.default, family="exact")
def copy_(machine: Machine, target: Tensor, source: Any, non_blocking: bool = False) -> Tensor:
    machine.check(target)
    if not isinstance(source, Tensor):
        return fill_scalar_(machine, target, source)
    if source.is_floating_point() and not (target.is_floating_point() or target.is_complex()):
        return machine.write(target, machine.operand(source).to(target.dtype))
    if target.dtype is torch.float32 and source.dtype is not torch.float32:
        source = machine.floating(source)
    return machine.write(target, machine.filling(source) if source.dim() == 0 else machine.operand(source))


@register(_aten._to_copy.default, family="exact")
def to_copy(
    machine: Machine, source: Tensor, *, dtype: MaybeDtype = None, device: torch.device | None = None, **kwargs: Any
) -> Tensor:
    if device is not None and torch.device(device).type != "cpu":
        raise machine.refuse(f"a copy to {device}; emulation runs on the CPU")
    if not isinstance(source, Tensor):  # a number that vmap casts to what it meets
        return machine.operand(_aten._to_copy.default(source, dtype=dtype, **kwargs))
    if dtype is torch.float32 and source.dtype is not torch.float32:
        return (
            _aten._to_copy.default(machine.floating(source), **kwargs)
            if kwargs.get("memory_format")
            else machine.floating(source)
        )
    source = machine.operand(source)
    if kwargs or dtype is None:
        result = _aten._to_copy.default(source, dtype=dtype, device=device, **kwargs)
    else:
        result = source.to(dtype, copy=True)
    machine.check(result)
    return machine.exact(result)


@register(_aten._local_scalar_dense.default, family="comparison")
def number_of(machine: Machine, source: Tensor) -> Any:
    machine.check(source, computes=False)
    return _aten._local_scalar_dense.default(machine.operand(source))


@register(_aten.zero_.default, family="constant")
def zero_(machine: Machine, target: Tensor) -> Tensor:
    target.zero_()
    if target.dtype is torch.float32 and target.layout is torch.strided:
        machine.claim(target)
    return target


def _filler(op: torch._ops.OpOverload) -> Rule:
    """Constants saturate, so that a mask of finfo(float32).min stays finite."""
    compute = direct(op)

    def fill(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        is_float = isinstance(args[0], Tensor) and args[0].dtype is torch.float32
        if isinstance(args[0], Tensor) and args[0].dtype is torch.float64:  # it means itself, and so do numbers beside it
            return compute(*machine.operands(args), **kwargs)
        values = [
            machine.constant(value) if isinstance(value, float) or (is_float and isinstance(value, int) and index)
            else machine.filling(value)
            for index, value in enumerate(args)
        ]  # fmt: skip
        named = {key: machine.filling(value) for key, value in kwargs.items()}
        return machine.exact(compute(*values, **named))

    return fill


register_functional("masked_fill", "constant", _filler)
register(_aten.fill.Scalar, family="constant")(_filler(_aten.fill.Scalar))
register(_aten.fill.Tensor, family="constant")(_meeting_rule(_aten.fill.Tensor))


def nan_to_num(
    machine: Machine, x: Tensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None
) -> Tensor:
    """Infinities become the format's largest finite values where no others are given."""
    x = machine.operand(x)
    if x.dtype is not torch.float32:
        return _aten.nan_to_num.default(x, nan, posinf, neginf)
    largest = machine.arithmetic.fmt.max_finite
    high, low = largest if posinf is None else posinf, -largest if neginf is None else neginf
    constants = [machine.constant(float(value)) for value in (nan or 0.0, high, low)]
    return machine.exact(_aten.nan_to_num.default(x, *constants))


register_functional("nan_to_num", "constant", lambda op: nan_to_num)


@register(_aten.fill_.Scalar, family="constant")
def fill_scalar_(machine: Machine, target: Tensor, value: float) -> Tensor:
    machine.check(target)
    if target.dtype is not torch.float32:
        marks.unmark(target)
        return target.fill_(value)
    target.fill_(machine.constant(value))
    machine.claim(target)
    return target


@register(_aten.fill_.Tensor, family="constant")
def fill_tensor_(machine: Machine, target: Tensor, value: Tensor) -> Tensor:
    value = machine.filling(value)
    if target.dtype is torch.float32 and value.dtype is not torch.float32:
        value = torch.tensor(machine.constant(value.item()))
    return machine.write(target, value.to(target.dtype).expand(target.shape))


_pad = direct(_aten.constant_pad_nd.default)


@register(_aten.constant_pad_nd.default, family="constant")
def constant_pad_nd(machine: Machine, source: Tensor, pad: list[int], value: float = 0) -> Tensor:
    source = machine.operand(source)
    fill = machine.constant(value) if source.dtype is torch.float32 else value
    return machine.exact(_pad(source, pad, fill))


@register(_aten._jagged_to_padded_dense_forward.default, family="exact")
def padded(machine: Machine, values: Tensor, offsets: list[Tensor], lengths: list[int], padding: float = 0.0) -> Tensor:
    fill = machine.constant(padding) if values.dtype is torch.float32 else padding
    return machine.exact(_aten._jagged_to_padded_dense_forward.default(machine.operand(values), offsets, lengths, fill))


_UNINITIALIZED = names("empty empty_like empty_strided new_empty new_empty_strided empty_permuted")
_SATURATING = names("full full_like new_full scalar_tensor")


def _maker(op: torch._ops.OpOverload) -> Rule:
    """Tensors made from nothing: float32 results are rounded (`full` saturates), uninitialized ones are not read."""
    uninitialized, saturating = name_of(op) in _UNINITIALIZED, name_of(op) in _SATURATING
    compute = direct(op)

    def make(machine: Machine, *args: Any, **kwargs: Any) -> Tensor:
        if saturating and not _asks_for_float64(args, kwargs):
            args = tuple(machine.constant(value) if isinstance(value, float) else value for value in args)
        result = compute(*args, **kwargs)
        if result.is_meta:
            return result
        machine.check(result)
        if result.dtype is not torch.float32 or uninitialized:
            return result
        if saturating:  # an integer fill value of a float tensor was not a float above
            return _saturated(machine, result, args)
        return machine.finish(result)

    return make


def _asks_for_float64(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what is made like a tensor, or of a dtype, or of the default one, is of float64, which means itself."""
    given = kwargs.get("dtype") or (args[0].dtype if isinstance(args[0], Tensor) else torch.get_default_dtype())
    return given is torch.float64


def _maker_into(op: torch._ops.OpOverload) -> Rule:
    """The same with `out=`: what is made in a fresh tensor is written there."""
    make = _maker(op)

    def make_into(machine: Machine, *args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        fresh = make(machine, *args, out=torch.empty(0, dtype=out.dtype), **kwargs)
        if out.shape != fresh.shape:
            out.resize_(fresh.shape)
        return machine.write(out, fresh)

    return make_into


def _saturated(machine: Machine, result: Tensor, args: tuple[Any, ...]) -> Tensor:
    value = args[-1] if len(args) > 0 else None
    if isinstance(value, int) and not isinstance(value, bool):
        result.fill_(machine.constant(float(value)))
    return machine.exact(result)


MAKERS = names(
    """
    empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros ones
    ones_like new_ones full full_like new_full scalar_tensor arange linspace logspace eye range
    """
)
for _name in MAKERS:
    for _op in overloads(_name).values():
        if not is_out(_op):
            register(_op, family="constant")(_maker(_op))
        elif _name not in _UNINITIALIZED:
            register(_op, family="constant")(_maker_into(_op))
