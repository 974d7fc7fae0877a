"""`scaled_dot_product_attention` arrives as one operation, with derivatives of its own.

torch takes it apart above autograd, so a dispatch mode never sees it. Here it gets a kernel for autograd's key, which hands it
whole to a thread that emulates; every other thread, and what is not emulated (float64, float32 under "native"), gets torch's
own. Function transforms come by a key of theirs, from which the `Function`s below go down level by level.

How probabilities are read is the caller's choice by torch's own switches:

    wide, in fp32       `sdpa_kernel(SDPBackend.MATH)`: neither flash, memory-efficient nor cuDNN attention is enabled
    everything rounds   `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)`, and granularity="primitive"
    rounded             otherwise
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.dispatch.context import current
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.operations import ATTENTION, ATTENTION_BACKWARD
from fpsim.emulation.registry import register
from fpsim.emulation.rules.attention import default_scale
from fpsim.emulation.rules.steps.attention import attention_in_steps

_aten = torch.ops.aten
_WHOLE = _aten.scaled_dot_product_attention.default
_MATH = _aten._scaled_dot_product_attention_math.default


def _batched(info: Any, in_dims: Any, args: Any) -> list[Any]:
    """The arguments with the mapped dimension first in every tensor."""
    batched = []
    for value, dim in zip(args, in_dims, strict=True):
        if isinstance(value, Tensor):
            value = value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)
        batched.append(value)
    return batched


class _Attention(torch.autograd.Function):
    """Inputs: those of the operation; all leading dimensions are those of the query, the mask's dimensions as many."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return ATTENTION(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        query, key, value, mask, kept, *ctx.rest = inputs
        _, probabilities, read = output
        ctx.mark_non_differentiable(probabilities, read)
        ctx.set_materialize_grads(False)
        saved = query, key, value, mask, kept, probabilities, read
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        nothing = (None,) * 5
        if gradients[0] is None:
            return *nothing, *nothing
        query, key, value, mask, kept, probabilities, read = ctx.saved_tensors
        dropout_p, is_causal, scale, wide, _ = ctx.rest
        of_mask = mask is not None and ctx.needs_input_grad[3]
        of_inputs = _AttentionBackward.apply(
            gradients[0], query, key, value, mask, kept, probabilities, read, dropout_p, is_causal, scale, wide, of_mask
        )
        return *of_inputs[:3], of_inputs[3].sum_to_size(mask.shape) if of_mask else None, None, *nothing

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _Attention.apply(*_batched(info, in_dims, args)), 0

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        """In steps, each of which rounds."""
        query, key, value, mask, kept, *_ = ctx.saved_tensors
        dropout_p, is_causal, scale, _, _ = ctx.rest
        groups = query.shape[-3] // key.shape[-3] if query.dim() > 2 and key.shape[-3] else 1
        _, plain = attention_in_steps(query, key, value, mask, None, 0.0, is_causal, scale)
        noise = None if kept is None else kept.to(query.dtype) / (1 - dropout_p if dropout_p < 1 else 1)
        of_query, of_key, of_value, of_mask = tangents[:4]

        def shared(item: Any) -> Any:
            return item if groups == 1 else item.repeat_interleave(groups, -3)

        change: Any = 0.0
        if of_query is not None:
            change = change + (of_query @ shared(key).transpose(-2, -1)) * scale
        if of_key is not None:
            change = change + (query @ shared(of_key).transpose(-2, -1)) * scale
        if of_mask is not None:
            change = change + of_mask
        result = torch.zeros_like(query @ shared(value).new_zeros(*shared(value).shape[:-2], query.shape[-1], value.shape[-1]))
        if isinstance(change, Tensor):
            moved = plain * change
            moved = moved - plain * moved.sum(-1, keepdim=True)
            result = result + (moved if noise is None else moved * noise) @ shared(value)
        if of_value is not None:
            result = result + (plain if noise is None else plain * noise) @ shared(of_value)
        return result, None, None


def _gradients_in_steps(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: MaybeTensor, kept: MaybeTensor, dropout_p: float,
    is_causal: bool, scale: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Gradients of query, key, value (and a mask of numbers) by autograd through the steps."""
    operands = [query, key, value] + ([mask] if mask is not None and mask.is_floating_point() else [])

    def attend(query: Tensor, key: Tensor, value: Tensor, added: MaybeTensor = mask) -> Tensor:
        return attention_in_steps(query, key, value, added, kept, dropout_p, is_causal, scale)[0]

    pull: Any = torch.func.vjp(attend, *operands)[1]
    return pull(gradient)


class _AttentionBackward(torch.autograd.Function):
    """The gradients; their own derivatives are taken in steps, each of which rounds."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        gradient, query, key, value, _, kept, probabilities, read, dropout_p, _, scale, wide, of_mask = inputs
        return ATTENTION_BACKWARD(
            gradient, query, key, value, kept, probabilities, read, dropout_p, scale, wide, of_mask
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.dropout_p, ctx.is_causal, ctx.scale, _, ctx.of_mask = inputs
        if not ctx.of_mask:
            ctx.mark_non_differentiable(output[3])
        ctx.save_for_backward(*tensors[:6])
        ctx.save_for_forward(*tensors[:6])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        *given, mask, kept = ctx.saved_tensors
        numbers = mask is not None and mask.is_floating_point()

        def steps(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, added: Any = mask) -> tuple[Tensor, ...]:
            return _gradients_in_steps(gradient, query, key, value, added, kept, ctx.dropout_p, ctx.is_causal, ctx.scale)

        results: Any
        pull: Any
        results, pull, *_ = torch.func.vjp(steps, *given, *([mask] if numbers else []))
        wanted = [*gradients[:3]]
        if numbers:
            of_mask = gradients[3] if ctx.of_mask and gradients[3] is not None else None
            wanted.append(torch.zeros_like(results[3]) if of_mask is None else of_mask.sum_to_size(mask.shape))
        found = pull(tuple(wanted))
        return *found[:4], found[4] if numbers else None, *(None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return _AttentionBackward.apply(*_batched(info, in_dims, args)), 0

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        *operands, mask, kept = ctx.saved_tensors
        moved = [torch.zeros_like(item) if tangent is None else tangent
                 for item, tangent in zip(operands, tangents, strict=False)]  # fmt: skip
        if tangents[4] is not None or ctx.of_mask:
            raise NotImplementedError("forward derivatives of the gradient of an attention mask have no rule")

        def steps(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
            return _gradients_in_steps(gradient, query, key, value, mask, kept, ctx.dropout_p, ctx.is_causal, ctx.scale)[:3]

        dense = (tuple(item.contiguous() for item in items) for items in (operands, moved))  # duals need the same strides
        return *torch.func.jvp(steps, *dense)[1], None


for _kind in (_Attention, _AttentionBackward):  # torch asks at every call
    _kind.forward.__signature__ = inspect.signature(_kind.forward)  # type: ignore[attr-defined]


# How torch's function becomes that one


def _is_wide() -> bool:
    """Whether of torch's backends only the math backend may be used."""
    cuda = torch.backends.cuda
    return cuda.math_sdp_enabled() and not (
        cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()
    )


def _broadcast(*shapes: torch.Size) -> torch.Size:
    """`torch.broadcast_shapes`, which takes 15 microseconds, where they differ."""
    return shapes[0] if all(shape == shapes[0] for shape in shapes) else torch.broadcast_shapes(*shapes)


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: MaybeTensor, dropout_p: float, gqa: bool) -> bool:
    """Whether torch takes these operands."""
    if min(query.dim(), key.dim(), value.dim()) < (3 if gqa else 2) or not query.dtype == key.dtype == value.dtype:
        return False
    if query.shape[-1] != key.shape[-1] or key.shape[-2] != value.shape[-2] or not 0 <= dropout_p <= 1:
        return False
    if mask is not None and mask.dtype not in (torch.bool, torch.float32, query.dtype):
        return False
    outer = [item.shape[:-3] if gqa else item.shape[:-2] for item in (query, key, value)]
    if gqa and any(item.shape[-3] == 0 or query.shape[-3] % item.shape[-3] for item in (key, value)):
        return False
    try:
        batch = _broadcast(*outer)
        if mask is not None:
            scores = (*batch, *query.shape[-3 if gqa else -2 : -1], key.shape[-2])
            return _broadcast(mask.shape, torch.Size(scores)) == scores
    except RuntimeError:
        return False
    return True


def _attend(
    machine: Machine, query: Tensor, key: Tensor, value: Tensor, mask: MaybeTensor, dropout_p: float, is_causal: bool,
    scale: float | None, gqa: bool, *, kept: MaybeTensor = None, math: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(attention, the probabilities that the second product reads where they are kept) in the caller's choice of arithmetic."""
    if gqa and key.shape[-3] != value.shape[-3]:
        key, value = (item.repeat_interleave(query.shape[-3] // item.shape[-3], -3) for item in (key, value))
    inner = 3 if gqa else 2
    batch = _broadcast(*(item.shape[:-inner] for item in (query, key, value)))
    query, key, value = (item.expand(*batch, *item.shape[-inner:]) for item in (query, key, value))
    shape = (*query.shape[:-1], key.shape[-2])
    if mask is not None:
        mask = mask[(None,) * (len(shape) - mask.dim())]
        if mask.dtype is torch.float32 and query.dtype is not torch.float32:
            mask = mask.double()  # means itself beside 16-bit operands
    if kept is None and dropout_p > 0:
        kept = query.new_empty(shape)
        kept = kept.bernoulli_(1 - dropout_p) if dropout_p < 1 else kept.zero_()
    scale = default_scale(query) if scale is None else float(scale)
    if machine.arithmetic.primitive or torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed():
        return attention_in_steps(query, key, value, mask, kept, dropout_p, is_causal, scale)
    inputs = (query, key, value, mask)
    followed = torch._C._are_functorch_transforms_active() or torch.autograd.forward_ad._current_level >= 0
    keep = math or followed or (torch.is_grad_enabled() and any(item is not None and item.requires_grad for item in inputs))
    out, _, read = _Attention.apply(*inputs, kept, dropout_p, is_causal, scale, math or _is_wide(), keep)
    return out, read


def _machine_for(query: Tensor, others: tuple[Any, ...]) -> Any:
    """The machine that emulates attention of these operands; None where it is torch's own."""
    emulation = current()
    if emulation is None or emulation._local.mode is None or not emulation.machine.emulates(query.dtype):
        return None
    plain = all(item is None or (item.device.type == "cpu" and item.layout is torch.strided) for item in (query, *others))
    return emulation.machine if plain else None


def _lowered(*tensors: Any) -> tuple[Any, ...]:
    """Operands as autocast has them, which a transform's key comes before."""
    if not torch.is_autocast_enabled("cpu"):
        return tensors
    dtype = torch.get_autocast_dtype("cpu")
    return tuple(
        item.to(dtype) if item is not None and item.is_floating_point() and item.dtype is not torch.float64 else item
        for item in tensors
    )


def _whole(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: MaybeTensor = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    machine = _machine_for(query, (key, value, attn_mask))
    if machine is None or not _fits(query, key, value, attn_mask, dropout_p, enable_gqa):
        return _WHOLE.decompose(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )  # torch's own, and its own errors
    return _attend(machine, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)[0]


def _transformed( query: Tensor, key: Tensor, value: Tensor, attn_mask: MaybeTensor = None, *rest: Any, **named: Any) -> Tensor:
    query, key, value, attn_mask = _lowered(query, key, value, attn_mask)
    return _whole(query, key, value, attn_mask, *rest, **named)


def _math(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: MaybeTensor = None, dropout_p: float = 0.0,
    is_causal: bool = False, dropout_mask: MaybeTensor = None, *, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """torch's math backend by its name: (attention with wide probabilities, these, rounded, for looking at)."""
    machine = _machine_for(query, (key, value, attn_mask))
    if machine is None or not _fits(query, key, value, attn_mask, dropout_p, enable_gqa):
        return _MATH.decompose(
            query, key, value, attn_mask, dropout_p, is_causal, dropout_mask, scale=scale, enable_gqa=enable_gqa
        )
    out, read = _attend(
        machine, query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, kept=dropout_mask, math=True
    )
    if read.requires_grad:
        return out, read
    read = read.to(query.dtype, copy=True)
    if out.requires_grad:
        message = "the probabilities that _scaled_dot_product_attention_math returns have no gradient in emulation"
        read = torch._C._functions.DelayedError(message, 1)(read.requires_grad_())
    return out, read


_library = torch.library.Library("aten", "IMPL")
for _key, _function in (("AutogradCPU", _whole), ("FuncTorchDynamicLayerFrontMode", _transformed)):
    _library.impl("scaled_dot_product_attention", _function, _key)
    _library.impl("_scaled_dot_product_attention_math", _math, _key)


# Without autograd's key, under `inference_mode`, it arrives at the mode


def _arrives(op: torch._ops.OpOverload, function: Any) -> None:
    def rule(machine: Machine, query: Tensor, *args: Any, **kwargs: Any) -> Any:
        if query.dtype is not torch.float32:
            return op(query, *args, **kwargs)
        with machine.dispatching():
            return function(query, *args, **kwargs)

    register(op, family="attention")(rule)


_arrives(_WHOLE, _whole)
_arrives(_MATH, _math)
