"""A model of the zoo: how it is built, and what is asked of it."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

#: A family's module in `families`, and the package that it needs.
FAMILIES = {
    "torchvision": "torchvision",
    "timm": "timm",
    "transformers": "transformers",
    "diffusers": "diffusers",
    "graphs": "torch_geometric",
    "processes": "gpytorch",
    "equations": "torchdiffeq",
    "spikes": "snntorch",
    "geometry": "e3nn",
}


@dataclass(frozen=True)
class Entry:
    """One model.

    build     makes the module; called after `torch.manual_seed`
    inputs    its arguments: called with the module, after `torch.manual_seed`
    """

    family: str
    name: str
    build: Callable[[], torch.nn.Module]
    inputs: Callable[[torch.nn.Module], tuple[tuple[Any, ...], Mapping[str, Any]]]

    @property
    def key(self) -> str:
        return f"{self.family}/{self.name}"


def entries_of(family: str) -> list[Entry]:
    """The models of a family, in order.

    Raises
    ------
    ImportError : where the family's package is not there, or cannot be imported.
    """
    try:
        importlib.import_module(FAMILIES[family])
    except (ImportError, RuntimeError) as error:  # torchvision beside a torch that it was not built for
        raise ImportError(f"{FAMILIES[family]}: {error}; pip install 'fpsim-numerics[zoo]'") from error
    module = importlib.import_module(f"experiments.zoo.families.{family}")
    return list(module.entries())


def entry_of(key: str) -> Entry:
    """The model of this key, `FAMILY/NAME`. Raises KeyError where there is none."""
    return {entry.key: entry for entry in entries_of(key.partition("/")[0])}[key]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """The floating-point and complex tensors in what a model returns."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)
    elif hasattr(value, "__dict__"):
        yield from tensors_of(vars(value))


def loss_of(result: Any) -> torch.Tensor:
    """What a step descends on: the mean square of every result that has a gradient."""
    parts = [item.abs().square().mean() for item in tensors_of(result) if item.requires_grad]
    if not parts:
        raise ValueError("no result has a gradient")
    return torch.stack([part.float() for part in parts]).sum()
