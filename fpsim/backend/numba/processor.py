"""What the processor has that kernels are compiled for: this one, unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another.

FPSIM_PORTABLE=1 in the environment forbids the instructions that x86 alone has, so that kernels take the ways of every other
processor; it is there to be tested with. A fused multiply-add is used as before, unless NUMBA_CPU_FEATURES lacks `fma`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import llvmlite.binding
from numba.core import codegen, config

_X86 = ("x86_64", "amd64")
_ALWAYS_FUSES = ("aarch64", "arm64", "powerpc64", "ppc64")  # a fused multiply-add belongs to these architectures
_FUSES = frozenset(("fma", "fma4", "avx512f"))  # features of x86 that bring one


@dataclass(frozen=True)
class Instructions:
    """What kernels may use: x86's own instructions, which of its features, and a fused multiply-add."""

    is_x86: bool
    features: frozenset[str]
    has_fma: bool


def instructions(triple: str, features: frozenset[str], portable: bool = False) -> Instructions:
    """What a processor has, by LLVM's names of its target and features; `portable` leaves out what x86 alone has."""
    is_x86 = triple.startswith(_X86)
    has_fma = triple.startswith(_ALWAYS_FUSES) or (is_x86 and not features.isdisjoint(_FUSES))
    uses_x86 = is_x86 and not portable
    return Instructions(uses_x86, features if uses_x86 else frozenset(), has_fma)


def _features() -> frozenset[str]:
    text = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(name[1:] for name in text.split(",") if name.startswith("+"))


def _portable() -> bool:
    text = os.environ.get("FPSIM_PORTABLE", "0")
    if text not in ("0", "1"):
        raise ValueError(f"FPSIM_PORTABLE must be 0 or 1, got {text!r}")
    return text == "1"


_chosen = instructions(llvmlite.binding.get_process_triple(), _features(), _portable())
FEATURES, IS_X86, HAS_FMA = _chosen.features, _chosen.is_x86, _chosen.has_fma
