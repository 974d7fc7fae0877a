"""How kernels are compiled: `kernel` is `numba.njit` with the project's options, `inlined` what is part of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core.dispatcher import Dispatcher

from fpsim.backend.numba.compilation import KernelCompiler, PartCompiler, call_from_kernels_only
from fpsim.backend.numba.storage import StoredCode

if numba.config.DISABLE_JIT:
    raise ImportError("fpsim's kernels are compiled by Numba, which NUMBA_DISABLE_JIT forbids: unset it")

_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}
_MAKE_ARRAYS = frozenset(("uninitialized", "zeroed", "empty", "zeros"))


def _options(function: Callable[..., Any]) -> dict[str, Any]:
    """Those of Numba; arrays' references are counted only where a function, or one that it calls, makes arrays.

    One that made arrays otherwise than by these names would not compile.
    """
    code = function.__code__
    used = [function.__globals__.get(name) for name in code.co_names]
    used += [cell.cell_contents for cell in function.__closure__ or ()]
    calls_such = any(value.targetoptions["_nrt"] for value in used if isinstance(value, Dispatcher))
    return {**_OPTIONS, "_nrt": calls_such or not _MAKE_ARRAYS.isdisjoint(code.co_names)}


def kernel(function: Callable[..., Any] | None = None, **options: Any) -> Any:
    """Compile a function without the GIL, cached on disk where a folder can be written.

    TypeError for one that closes over what another process would not know for the same (see `identity`).
    """
    if function is None:
        return lambda inner: kernel(inner, **options)
    stored = StoredCode(function, options)
    compiled = numba.njit(**_options(function), **options, pipeline_class=KernelCompiler)(function)
    compiled._cache = stored
    return compiled


def inlined(function: Callable[..., Any]) -> Any:
    """A function that LLVM always inlines into the kernels that call it; a call from Python raises TypeError."""
    options = {**_options(function), "forceinline": True, "no_cpython_wrapper": True}
    compiled = numba.njit(**options, pipeline_class=PartCompiler)(function)
    call_from_kernels_only(compiled)
    return compiled
