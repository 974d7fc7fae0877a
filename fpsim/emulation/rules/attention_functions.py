"""Attention and its gradients as functions of autograd, which transforms of functions follow too."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from fpsim.emulation.machine.protocol import MaybeTensor
from fpsim.emulation.operations import ATTENTION, ATTENTION_BACKWARD
from fpsim.emulation.rules.steps.attention import attention_in_steps


def _batched(info: Any, in_dims: Any, args: Any) -> list[Any]:
    """The arguments with the mapped dimension first in every tensor."""
    batched = []
    for value, dim in zip(args, in_dims, strict=True):
        if isinstance(value, Tensor):
            value = value.movedim(dim, 0) if dim is not None else value.expand(info.batch_size, *value.shape)
        batched.append(value)
    return batched


class Attention(torch.autograd.Function):
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
        return Attention.apply(*_batched(info, in_dims, args)), 0

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


for _kind in (Attention, _AttentionBackward):  # torch asks at every call
    _kind.forward.__signature__ = inspect.signature(_kind.forward)  # type: ignore[attr-defined]
