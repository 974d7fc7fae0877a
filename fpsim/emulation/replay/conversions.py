"""Conversions between dtypes by one rounding, whatever the dtypes."""

from __future__ import annotations

import torch

from fpsim.arrays.encoding import encode
from fpsim.arrays.rounding import round as round_to
from fpsim.emulation.replay.tensors import SIGNED
from fpsim.numbers.formats import Format, get_format

#: fpsim's name of the format that a dtype holds.
FORMATS = {
    "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64", "float8_e4m3fn": "e4m3fn",
    "float8_e5m2": "e5m2", "float8_e4m3fnuz": "e4m3fnuz", "float8_e5m2fnuz": "e5m2fnuz",
}  # fmt: skip


def format_of(dtype: torch.dtype) -> Format:
    """The format whose values a dtype holds. Raises ValueError for a dtype without one here."""
    name = str(dtype).removeprefix("torch.")
    if name not in FORMATS:
        raise ValueError(f"no format for {name}")
    return get_format(FORMATS[name])


def converted(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """x in another dtype, every element rounded once to nearest even; NaN stays NaN."""
    if dtype is torch.float64 or not x.is_floating_point():
        return x.to(dtype)  # exact, or integers, which torch converts as it does
    target = format_of(dtype)
    codes = encode(round_to(x.double().numpy(), target), target)
    size = dtype.itemsize
    return torch.from_numpy(codes.astype(f"u{size}").view(SIGNED[size])).view(dtype).reshape(x.shape)
