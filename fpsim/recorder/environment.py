"""What the machine at hand is: everything that its results may depend on."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

_INSTRUCTIONS = (
    "f16c", "fma", "avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_fp16", "asimd", "asimdhp", "bf16", "ebf16",
    "sve", "sme",
)  # fmt: skip


def environment(device: torch.device) -> dict[str, Any]:
    """Processor, GPU, libraries and the flags that choose kernels, as JSON holds them."""
    description: dict[str, Any] = {
        "device": device.type,
        "processor": _processor(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "torch_build": torch.__config__.show(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "flags": flags(),
    }
    if device.type == "cuda":
        description["gpu"] = _gpu(device)
    return description


def flags() -> dict[str, Any]:
    """The settings of torch that change which kernel runs, as they are now."""
    matmul = torch.backends.cuda.matmul
    return {
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "mkldnn": bool(torch._C._get_mkldnn_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "allow_tf32": matmul.allow_tf32,
        "allow_fp16_reduced_precision_reduction": matmul.allow_fp16_reduced_precision_reduction,
        "allow_bf16_reduced_precision_reduction": matmul.allow_bf16_reduced_precision_reduction,
        "allow_fp16_accumulation": getattr(matmul, "allow_fp16_accumulation", None),  # since torch 2.7
        "cudnn": torch.backends.cudnn.enabled,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }


def product_flags(device: torch.device) -> Iterator[tuple[str, Any]]:
    """The settings under which products are recorded, one at a time; ("", None) leaves all as they are."""
    yield "", None
    if device.type == "cuda":
        yield "allow_tf32", True
        if hasattr(torch.backends.cuda.matmul, "allow_fp16_accumulation"):
            yield "allow_fp16_accumulation", True
        yield "allow_fp16_reduced_precision_reduction", False
        yield "allow_bf16_reduced_precision_reduction", False


@contextmanager
def flag_set(name: str, value: Any) -> Iterator[None]:
    """Inside, a flag of `torch.backends.cuda.matmul` has that value; without a name nothing changes."""
    if not name:
        yield
        return
    matmul = torch.backends.cuda.matmul
    before = getattr(matmul, name)
    setattr(matmul, name, value)
    try:
        yield
    finally:
        setattr(matmul, name, before)


def _processor() -> dict[str, Any]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {"name": platform.processor()}
    fields: dict[str, str] = {}
    for line in path.read_text().splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    has = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "name": fields.get("model name", platform.processor()),
        "family": fields.get("cpu family"),
        "model": fields.get("model"),
        "instructions": [name for name in _INSTRUCTIONS if name in has],
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "multiprocessors": properties.multi_processor_count,
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    """The driver's version as its own tool tells it; None where the tool is not there."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip() if done.stdout else None
