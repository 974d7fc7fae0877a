"""What makes a kernel the same one in another process: a text made of its code and of all that it closes over.

Pickles do not serve: those of compiled functions, and of whatever refers to them, hold numbers of this process alone, so a
kernel that closes over another would be stored anew by every process and never be found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import numpy as np
from numba import types
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic


def identity(value: Any) -> str:
    """A text that says what a value is, in any process; TypeError for a value of which nothing says that."""
    kind = type(value).__name__
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{kind} {value!r}"
    if isinstance(value, (tuple, list)):
        return f"{kind} ({', '.join(map(identity, value))})"
    if isinstance(value, (set, frozenset)):
        return f"{kind} ({', '.join(sorted(map(identity, value)))})"
    if isinstance(value, dict):
        return f"{kind} ({', '.join(sorted(map(identity, value.items())))})"
    if isinstance(value, (np.generic, np.ndarray)):
        return f"{kind} {value.dtype.str} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, (np.dtype, types.Type)):
        return f"{kind} {value}"
    if isinstance(value, type):
        return f"{kind} {value.__module__}.{value.__qualname__}"
    if isinstance(value, Dispatcher):
        return f"{kind} {identity_of_function(value.py_func)} {identity(value.targetoptions)}"
    if isinstance(value, _Intrinsic):
        return f"{kind} {identity_of_function(value._defn)}"
    if isinstance(value, FunctionType):
        return f"{kind} {identity_of_function(value)}"
    if isinstance(value, CodeType):
        return f"{kind} {_code(value)}"
    raise TypeError(f"a value of type {kind} is not known to be the same in another process")


def _code(code: CodeType) -> str:
    constants = [constant for constant in code.co_consts if constant is not Ellipsis]
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    return f"{hashlib.sha256(code.co_code).hexdigest()} {identity(names)} {identity(constants)}"


def identity_of_function(function: Callable[..., Any]) -> str:
    """The identity of a function and of what it closes over.

    TypeError, naming the variable, where it closes over something without one: make that an argument, or a number, a kernel
    or an intrinsic.
    """
    code = function.__code__
    parts = [f"{function.__module__}.{function.__qualname__}:{code.co_firstlineno}", _code(code)]
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            parts.append(f"{name} = {identity(cell.cell_contents)}")
        except ValueError:
            raise TypeError(f"{function.__qualname__} closes over {name!r}, which has no value yet") from None
        except TypeError as error:
            raise TypeError(f"{function.__qualname__} closes over {name!r}: {error}") from None
    return "; ".join(parts)
