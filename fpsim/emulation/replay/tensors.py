"""Tensors and arguments of a bundle as torch's, and back to bits."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from fpsim.recorder.bundle import Bundle, BundleError

_SIGNED = {1: np.int8, 2: np.int16, 4: np.int32, 8: np.int64}


def tensor_of(bundle: Bundle, number: int) -> torch.Tensor:
    """A recorded tensor, contiguous, on the CPU; a new one every time."""
    dtype, shape, _, bits = bundle.tensors[number]
    kind: torch.dtype = getattr(torch, dtype)
    flat = torch.from_numpy(bits.view(_SIGNED[bits.itemsize]).copy())
    return (flat != 0 if kind is torch.bool else flat.view(kind)).reshape(shape)


def value_of(bundle: Bundle, encoded: Any) -> Any:
    """An argument as it was given."""
    if isinstance(encoded, list):
        return [value_of(bundle, item) for item in encoded]
    if not isinstance(encoded, dict):
        return encoded
    (kind, value), *others = encoded.items()
    if others:
        raise BundleError(f"an argument is {encoded!r}, which no bundle holds")
    match kind:
        case "tensor":
            return tensor_of(bundle, value)
        case "float":
            return float.fromhex(value)
        case "dtype":
            return getattr(torch, value)
        case "device":
            return torch.device("cpu")
        case "layout":
            return getattr(torch, value.removeprefix("torch."))
    raise BundleError(f"an argument is {encoded!r}, which no bundle holds")


def numbers_in(encoded: Any) -> list[int]:
    """The numbers of the tensors in a recorded value, in order."""
    if isinstance(encoded, list):
        return [number for item in encoded for number in numbers_in(item)]
    return [encoded["tensor"]] if isinstance(encoded, dict) and "tensor" in encoded else []


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors in a value, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for item in value for tensor in tensors_in(item)] if isinstance(value, (list, tuple)) else []
