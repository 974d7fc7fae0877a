"""How Numba is made to compile kernels cheaply; what code comes out is the same."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

_ENVIRONMENT = "_ZN08NumbaEnv"  # what the names of a function's environment, a global variable, begin with


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Compilation makes many objects and keeps them: looking for garbage among those, and torch's, takes a tenth of it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class KernelCompiler(Compiler):
    """Numba's compiler, for kernels."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        with _no_garbage_collection():
            return super().compile_extra(func)


class _Part(JITCodeLibrary):
    """Code that is there to be inlined alone: optimized, and never made machine code of."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        names = [variable.name for variable in self._final_module.global_variables]
        lines = [f'@"{name}" = common global i64 0' for name in names if name.startswith(_ENVIRONMENT)]
        self._environments = llvmlite.binding.parse_assembly("\n".join(lines))  # which Numba sets whether or not it is read
        cleanup = self._codegen._add_module(self._environments)
        if cleanup:
            weakref.finalize(self, cleanup)
        self._codegen._engine.finalize_object()
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """0, as for every function that is not there."""
        self._ensure_finalized()
        return 0


class PartCompiler(KernelCompiler):
    """Numba's compiler, for what is inlined into kernels and never called by itself."""

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        self.state.library = _Part(self.state.targetctx.codegen(), func.__qualname__)
        return super().compile_extra(func)


def call_from_kernels_only(compiled: Any) -> None:
    """Make a call of this function from Python raise: there is no machine code to run."""

    def add_overload(result: Any) -> None:
        compiled.overloads[tuple(result.signature.args)] = result

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise TypeError(f"{compiled.py_func.__qualname__} is inlined into kernels, and cannot be called by itself")

    compiled.add_overload = add_overload  # without telling what finds code for the types that Python passes
    compiled._compile_for_args = refuse
