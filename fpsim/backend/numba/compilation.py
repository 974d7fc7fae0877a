"""How Numba is made to compile kernels cheaply.

What a kernel computes is the same to the bit. Its instructions need not be: a part that was never machine code reaches LLVM's
optimization of the kernel in another form, so that speed is measured again where something here changes.
"""

from __future__ import annotations

import functools
import gc
import itertools
import secrets
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
from numba import types
from numba.core import typed_passes, untyped_passes
from numba.core.bytecode import FunctionIdentity
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase
from numba.core.compiler_machinery import PassManager

from fpsim.backend.numba.lowering import lower_in_few_instructions

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


@contextmanager
def _names_of_its_own() -> Iterator[None]:
    """Symbols that no other process's code has.

    Numba numbers the functions of a process, and symbols are called after the function, its types and that number. Where
    two kernels of one name, compiled by two processes, are loaded by a third, one would be called in the place of the other.
    """
    numbers = FunctionIdentity._unique_ids
    token = secrets.token_hex(8)
    FunctionIdentity._unique_ids = (f"{token}n{count}" for count in itertools.count())
    try:
        yield
    finally:
        FunctionIdentity._unique_ids = numbers


#: What a call of one of Numba's functions with arguments of these types is, by context of typing, function and types.
_calls: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


@contextmanager
def _calls_known(context: Any) -> Iterator[None]:
    """Whatever is asked again is answered from memory: an operator has up to ten signatures to try, each in several ways."""
    if "resolve_function_type" in vars(context):  # this is the compilation of a part
        yield
        return
    signatures = _calls.setdefault(context, {})
    resolve = context.resolve_function_type

    def resolve_once(function: Any, arguments: Any, keywords: Any) -> Any:
        if types.unicode_type in arguments:  # Numba's own message of shapes that do not match, for one
            raise TypeError("a kernel makes text, which takes seconds to compile: assign arrays element by element")
        if keywords or not isinstance(function, types.Function):
            return resolve(function, arguments, keywords)
        key = function, tuple(arguments)
        signature = signatures.get(key)
        if signature is None:
            signature = signatures[key] = resolve(function, arguments, keywords)
        return signature

    context.resolve_function_type = resolve_once
    try:
        yield
    finally:
        del context.resolve_function_type


#: Numba's passes in its order, without those for what no kernel has (closures, generators, `with` blocks, what is inlined as
#: Numba's own representation, `literal_unroll`, expressions of whole arrays, parallel loops): these change nothing and take a
#: tenth of the time, since after most of them the uses of every variable are looked for anew. A kernel that had such a thing
#: would not compile.
_PASSES = (
    untyped_passes.TranslateByteCode,
    untyped_passes.FixupArgs,
    untyped_passes.IRProcessing,
    untyped_passes.RewriteSemanticConstants,
    untyped_passes.DeadBranchPrune,
    untyped_passes.GenericRewrites,
    untyped_passes.ReconstructSSA,
    typed_passes.NopythonTypeInference,
    typed_passes.PreLowerStripPhis,
    typed_passes.NoPythonSupportedFeatureValidation,
    typed_passes.IRLegalization,
    typed_passes.AnnotateTypes,
    typed_passes.NativeLowering,
    typed_passes.NoPythonBackend,
)


@functools.cache
def _linear_algebra_is_there() -> None:
    """Numba imports SciPy's at its first compilation, to see whether it is there: it is, and what uses it imports it."""
    from numba.np import linalg

    ensure = linalg.ensure_blas
    linalg.ensure_blas = bool
    from numba.np import arraymath

    arraymath.ensure_blas = linalg.ensure_blas = ensure


class KernelCompiler(CompilerBase):
    """Numba's compiler, for kernels."""

    def __init__(self, *arguments: Any) -> None:
        with _no_garbage_collection():  # the first one loads all that Numba can compile calls of
            _linear_algebra_is_there()
            super().__init__(*arguments)

    def define_pipelines(self) -> list[PassManager]:
        passes = PassManager("kernels")
        for compiler_pass in _PASSES:
            passes.add_pass(compiler_pass, compiler_pass._name)
        passes.finalize()
        return [passes]

    def compile_extra(self, func: Callable[..., Any]) -> Any:
        context = self.state.targetctx  # of this compilation alone
        context.get_abi_sizeof = functools.cache(context.get_abi_sizeof)  # each of hundreds of calls parses a module
        lower_in_few_instructions(context)
        with _no_garbage_collection(), _names_of_its_own(), _calls_known(self.state.typingctx):
            return super().compile_extra(func)


class _Part(JITCodeLibrary):
    """Code that is there to be inlined alone: optimized, and never made machine code of."""

    def _optimize_final_module(self) -> None:
        """Left to the kernels that it is inlined into."""

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
