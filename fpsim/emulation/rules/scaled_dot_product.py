"""`scaled_dot_product_attention` arrives as one operation, with derivatives of its own.

torch takes it apart above autograd, so a dispatch mode never sees it. Here it gets a kernel for autograd's key, which hands it
whole to a thread that emulates; every other thread, and what is not emulated (float64, float32 under "native"), gets torch's
own. Function transforms come by a key of theirs, from which the `Function`s of `attention_functions` go down level by level.

How probabilities are read is the caller's choice by torch's own switches:

    wide, in fp32       `sdpa_kernel(SDPBackend.MATH)`: neither flash, memory-efficient nor cuDNN attention is enabled
    everything rounds   `torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)`, and granularity="primitive"
    rounded             otherwise
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.dispatch.context import current
from fpsim.emulation.machine.protocol import Machine, MaybeTensor
from fpsim.emulation.registry import register
from fpsim.emulation.rules.attention import default_scale
from fpsim.emulation.rules.attention_functions import Attention
from fpsim.emulation.rules.steps.attention import attention_in_steps

_aten = torch.ops.aten
_WHOLE = _aten.scaled_dot_product_attention.default
_MATH = _aten._scaled_dot_product_attention_math.default


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
    out, _, read = Attention.apply(*inputs, kept, dropout_p, is_causal, scale, math or _is_wide(), keep)
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
