"""Which settings each parameter and buffer of a model has, where modules have several."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fpsim.emulation.machine.settings import ACCUMULATORS, FORMATS, ROUNDINGS, ModuleSettings, Setting


def settings_of_tensors(
    model: torch.nn.Module, settings: dict[str, ModuleSettings]
) -> Iterator[tuple[torch.Tensor, ModuleSettings]]:
    """Every parameter and buffer, with the settings of the module that holds it.

    Raises ValueError for one that several modules hold, with several settings.
    """
    seen: dict[int, tuple[str, ModuleSettings]] = {}
    for name, tensor in (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ):
        module_settings = settings[name.rpartition(".")[0]]
        if id(tensor) not in seen:
            seen[id(tensor)] = name, module_settings
            yield tensor, module_settings
            continue
        other, first = seen[id(tensor)]
        for setting, part, roles in _OF_A_TENSOR:
            for role in roles:
                values = [getattr(getattr(each, part), role) for each in (first, module_settings)]
                if values[0] != values[1]:
                    raise ValueError(
                        f"{setting.argument}: {other} and {name} are one tensor and would have two {role} {setting.noun}s, "
                        f"{values[0]} and {values[1]}"
                    )


#: What a tensor has one of, whatever modules hold it.
_OF_A_TENSOR: tuple[tuple[Setting[Any], str, tuple[str, ...]], ...] = (
    (FORMATS, "formats", ("weight", "gradient", "optimizer")),
    (ACCUMULATORS, "accumulators", ("optimizer",)),
    (ROUNDINGS, "roundings", ("weight", "gradient", "optimizer")),
)
