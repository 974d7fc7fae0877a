"""Tensors and arguments of a bundle as torch's, and back to bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fpsim.emulation.schemas import tensors_in
from fpsim.recorder.bundle import SIZES, Bundle

SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}
#: The dtypes of a bundle's tensors that this torch has.
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in SIZES if hasattr(torch, name)}
_LAYOUTS = {
    str(item): item
    for item in (torch.strided, torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d)
}


def tensor_of(bundle: Bundle, number: int, without_memory: bool = False) -> torch.Tensor:
    """A recorded tensor, contiguous, on the CPU; a new one every time. Without memory it has a dtype and a shape alone.

    Raises ValueError for a dtype that this torch has not.
    """
    dtype, shape, _, bits = bundle.tensors[number]
    if dtype not in DTYPES:
        raise ValueError(f"this torch has no {dtype}")
    kind = DTYPES[dtype]
    if without_memory:
        return torch.empty(shape, dtype=kind, device="meta")
    flat = torch.from_numpy(bits.view(SIGNED[bits.itemsize]).copy())
    return (flat != 0 if kind is torch.bool else flat.view(kind)).reshape(shape)


def value_of(bundle: Bundle, encoded: Any, without_memory: bool = False) -> Any:
    """An argument as it was given. Raises ValueError for what no bundle holds, or for a dtype that this torch has not."""
    if isinstance(encoded, list):
        return [value_of(bundle, item, without_memory) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    if len(encoded) == 1:
        ((kind, value),) = encoded.items()
        match kind:
            case "tensor":
                return tensor_of(bundle, value, without_memory)
            case "float":
                return float.fromhex(value)
            case "dtype" if value in DTYPES:
                return DTYPES[value]
            case "device":
                return torch.device("meta" if without_memory else "cpu")
            case "layout" if value in _LAYOUTS:
                return _LAYOUTS[value]
    raise ValueError(f"an argument is {encoded!r:.60}, which means nothing here")


def numbers_in(encoded: Any) -> list[int]:
    """The numbers of the tensors in a recorded value, in order."""
    if isinstance(encoded, list):
        return [number for item in encoded for number in numbers_in(item)]
    return [encoded["tensor"]] if isinstance(encoded, dict) and "tensor" in encoded else []


def operands_and_results(record: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The numbers of the tensors that a recorded call had, and of those that it gave or wrote to."""
    given, made = [record["args"], *record["kwargs"].values()], [record["result"], *record["written"].values()]
    return numbers_in(given), numbers_in(made)


def arguments_of(bundle: Bundle, record: dict[str, Any], without_memory: bool = False) -> tuple[list[Any], dict[str, Any]]:
    """What a recorded call was given; raises as `value_of` does."""
    args = value_of(bundle, record["args"], without_memory)
    return args, {key: value_of(bundle, value, without_memory) for key, value in record["kwargs"].items()}


def results_of(record: dict[str, Any], result: Any, args: list[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors of a call's result, then those that the record says it wrote to."""
    named = {str(place): value for place, value in (*enumerate(args), *kwargs.items())}
    return tensors_in([result, *(named[place] for place in record["written"])])
