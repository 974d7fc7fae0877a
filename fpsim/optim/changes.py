"""What an optimizer's step means to do to its parameters, before anything is stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map

#: Operations that add to what they write to: of zeros they make the change itself, however small.
_ADDITIONS = frozenset(f"{prefix}{name}_" for prefix in ("", "_foreach_") for name in ("add", "sub", "addcmul", "addcdiv"))


class Changes(TorchDispatchMode):
    """Inside, every write to one of the parameters is made to a change in float64 as well, which nothing rounds.

    `of` gives the sum of what a parameter's writes mean, in float64, as long as none of its partial sums needs more than 53
    bits. Scalars are exact, where a kernel of 16 bits casts them to float32 first. What the step computes beside its writes
    (moments, directions) is rounded as always. Where a step reads a parameter after a write, it reads the stored one.

    Raises NotImplementedError where a parameter is written through a view that is not the parameter.
    """

    def __init__(self, parameters: Iterable[torch.Tensor]):
        super().__init__()
        self._start = {id(item): (item, item.detach().clone()) for item in parameters}
        self._storages = {item.untyped_storage().data_ptr() for item, _ in self._start.values() if item.numel()}
        self._change: dict[int, torch.Tensor] = {}

    def of(self, parameter: torch.Tensor) -> torch.Tensor | None:
        """The change in float64, of the parameter's shape; None for a parameter that nothing was written to."""
        return self._change.get(id(parameter))

    def start(self, parameter: torch.Tensor) -> torch.Tensor:
        """What the parameter held before the step."""
        return self._start[id(parameter)][1]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        schema = func._schema
        if schema.is_mutable and any(map(self._is_written, self._targets(schema, args, kwargs))):
            with _disable_current_modes(), torch.no_grad():
                self._repeat(func, args, kwargs)
        return func(*args, **kwargs)

    @staticmethod
    def _targets(schema: Any, args: Any, kwargs: Any) -> Iterable[Any]:
        for index, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = kwargs.get(argument.name) if index >= len(args) else args[index]
                yield from value if isinstance(value, (list, tuple)) else (value,)

    def _is_written(self, tensor: Any) -> bool:
        if not isinstance(tensor, torch.Tensor):
            return False
        if id(tensor) in self._start:
            return True
        if tensor.numel() and tensor.untyped_storage().data_ptr() in self._storages:
            raise NotImplementedError(
                "this optimizer writes to a view of a parameter, whose change cannot be told; use one that writes to the "
                "parameter itself (foreach=False helps where there is a choice)"
            )
        return False

    def _repeat(self, func: Any, args: Any, kwargs: Any) -> None:
        """The same operation in float64, on changes or on what they lead to."""
        adds = func._schema.name.removeprefix("aten::") in _ADDITIONS
        written: list[tuple[int, torch.Tensor]] = []

        def widened(value: Any) -> Any:
            if not isinstance(value, torch.Tensor) or not value.is_floating_point():
                return value.clone() if isinstance(value, torch.Tensor) else value
            key = id(value)
            if key not in self._start:
                return value.detach().to(torch.float64, copy=True)
            change = self._change.get(key)
            if change is None:
                change = torch.zeros_like(value, dtype=torch.float64)
            target = change.clone() if adds else self._start[key][1].double() + change
            written.append((key, target))
            return target

        func(*tree_map(widened, args), **tree_map(widened, kwargs))
        for key, target in written:
            self._change[key] = target if adds else target - self._start[key][1].double()
