"""A simulation as a module of a plain network: what it computes is emulated in both passes, wherever they are called."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.utils._pytree import tree_flatten, tree_unflatten

from fpsim.emulation.dispatch.mode import run_as_written

_call_of_module = torch.nn.Module._call_impl.__code__


def inside_another_module(module: torch.nn.Module) -> bool:
    """Whether the call of another module is running in this thread."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code is _call_of_module and frame.f_locals.get("self") is not module:
            return True
        frame = frame.f_back
    return False


class _Border(torch.autograd.Function):
    """One operation of the plain network: inside lie a forward pass and a graph of its own, which is differentiated inside."""

    @staticmethod
    def forward(ctx: Any, compute: Callable[..., Any], context: AbstractContextManager[Any], *tensors: torch.Tensor) -> Any:
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in tensors]
        with torch.enable_grad():
            outputs = compute(inputs[:-1])
        ctx.context, ctx.inputs, ctx.outputs = context, inputs, outputs
        results = tuple(item.detach() for item in outputs)
        ctx.mark_non_differentiable(*(own for own, item in zip(results, outputs, strict=True) if not item.requires_grad))
        ctx.set_materialize_grads(False)
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        pairs = zip(ctx.outputs, gradients, strict=True)
        ends = [(item, gradient) for item, gradient in pairs if gradient is not None and item.requires_grad]
        for item in ctx.inputs:
            item.grad = None
        with ctx.context, torch.enable_grad():
            torch.autograd.backward([item for item, _ in ends], [gradient for _, gradient in ends], retain_graph=True)
        return None, None, *(item.grad for item in ctx.inputs)


def call_inside(compute: Callable[..., Any], context: AbstractContextManager[Any], args: Any, kwargs: Any) -> Any:
    """`compute(*args, **kwargs)`, which enters `context` by itself, as one operation of a plain graph.

    Its backward pass runs inside `context` and adds the gradients of parameters to their `.grad`, as `backward()` does;
    `torch.autograd.grad` of the plain network finds none of those. Raises RuntimeError for the gradient of a gradient.
    """
    leaves, structure = tree_flatten((args, kwargs))
    places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
    found: dict[str, Any] = {}

    def on(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        arguments, named = tree_unflatten(given, structure)
        found["leaves"], found["structure"] = tree_flatten(compute(*arguments, **named))
        return [leaf for leaf in found["leaves"] if isinstance(leaf, torch.Tensor)]

    reached = torch.zeros((), requires_grad=True)  # so that parameters alone make the result one that has a gradient
    results = iter(_Border.apply(on, context, *(leaves[place] for place in places), reached))
    values = [next(results) if isinstance(leaf, torch.Tensor) else leaf for leaf in found["leaves"]]
    return tree_unflatten(values, found["structure"])


run_as_written(call_inside)
