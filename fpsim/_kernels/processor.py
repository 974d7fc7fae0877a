"""What the processor has that kernels are compiled for: this one, unless NUMBA_CPU_FEATURES names another."""

from __future__ import annotations

import llvmlite.binding
from numba.core import codegen, config


def _features() -> frozenset[str]:
    text = codegen.get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    return frozenset(name[1:] for name in text.split(",") if name.startswith("+"))


FEATURES = _features()
IS_X86 = llvmlite.binding.get_process_triple().startswith("x86_64")
HAS_FMA = "fma" in FEATURES or "aarch64" in llvmlite.binding.get_process_triple()
