"""The tensors that operations of an emulation made: a backward pass that reaches one of them outside the emulation raises.

Operations are seen below autograd, before their results have an autograd node. So results are remembered, weakly, and those
that are still there when the context is left get a hook on their nodes: no other tensor leads into the graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch

_reference = weakref.ref
_Tensor = torch.Tensor
_KEPT = 1 << 12  # references, before those whose tensors are gone are dropped


class Results:
    """Results since the context was entered."""

    __slots__ = ("_most", "_references")

    def __init__(self) -> None:
        self._references: list[Any] = []
        self._most = _KEPT

    def note(self, result: Any) -> None:
        """Remember what an operation returned."""
        if isinstance(result, _Tensor):
            if result.requires_grad and not torch.is_grad_enabled():  # written to in place: its node is an older one
                return
            self._references.append(_reference(result))
            if len(self._references) > self._most:
                self._references = [item for item in self._references if item() is not None]
                self._most = max(_KEPT, 2 * len(self._references))
        elif isinstance(result, (list, tuple)):
            for item in result:
                self.note(item)

    def guard(self, guard: Callable[[Any], None] | None) -> Callable[[], Any]:
        """Let the guard know of gradients that arrive at what was remembered; forget it.

        Returns a function of no arguments whose value is None once nothing leads into the graphs of this time any more.
        """
        references, self._references, self._most = self._references, [], _KEPT
        hook = _Hook(guard)
        for node in {_node_of(reference()) for reference in references} - {None}:
            node.register_prehook(hook)
        return _reference(hook)


class Time:
    """One time in the context, from entering to leaving it."""

    __slots__ = ("leads_into",)

    def __init__(self) -> None:
        self.leads_into: Callable[[], Any] = Time  # not over yet

    @property
    def is_over(self) -> bool:
        """Whether it was left, and nothing leads into its graphs any more."""
        return self.leads_into() is None


class _Hook:
    """What stands on the nodes of one time in the context, and lives as long as they do."""

    __slots__ = ("__weakref__", "_guard")

    def __init__(self, guard: Callable[[Any], None] | None):
        self._guard = guard

    def __call__(self, gradients: Any) -> None:
        if self._guard is not None:
            self._guard(gradients)


def _node_of(tensor: torch.Tensor | None) -> Any:
    """The autograd node that made the tensor, if any."""
    if tensor is None or not tensor.requires_grad:
        return None
    try:
        return tensor.grad_fn
    except RuntimeError:  # a view whose base was changed beside it: torch refuses its gradient
        return None
