"""Lines of a model's source that look at dtypes, which a named format gives another meaning, or none."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import lru_cache
from types import FunctionType
from typing import Any

from torch import nn

from fpsim.report.records import DtypeLine, Place

_HALVES = frozenset(("float16", "half", "bfloat16"))
_SINGLES = frozenset(("float32", "float"))
_CASTS = frozenset(("to", "type", "softmax", "log_softmax"))
_AUTOCAST = frozenset(("is_autocast_enabled", "is_autocast_cpu_enabled"))


def dtype_lines_of(classes: Iterable[type]) -> tuple[DtypeLine, ...]:
    """Those in the forward passes of classes of modules, and in the methods and functions of the same file that they call.

    Each line once, in the order of the classes. torch's own modules, and what has no source, have none.
    """
    return tuple(dict.fromkeys(line for kind in dict.fromkeys(classes) for line in _of_class(kind)))


@lru_cache(maxsize=4096)
def _of_class(kind: type) -> tuple[DtypeLine, ...]:
    forward = _function(getattr(kind, "forward", None))
    if not issubclass(kind, nn.Module) or forward is None or str(forward.__module__).partition(".")[0] == "torch":
        return ()
    found: list[DtypeLine] = []
    seen, waiting = {forward}, [forward]
    while waiting:
        function = waiting.pop(0)
        parsed = _parsed(function)
        if parsed is None:
            continue
        tree, first = parsed
        expressions = (node for node in ast.walk(tree) if isinstance(node, ast.expr))
        lines = {node.lineno: meaning for node in expressions if (meaning := _meaning(node)) is not None}
        found += [DtypeLine(_place(function, first + number - 1), lines[number]) for number in sorted(lines)]
        for called in _called(tree, function, kind):
            if called not in seen and called.__code__.co_filename == function.__code__.co_filename:
                seen.add(called)
                waiting.append(called)
    return tuple(found)


def _function(value: Any) -> FunctionType | None:
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, FunctionType) else None


def _parsed(function: FunctionType) -> tuple[ast.AST, int] | None:
    """A function's tree, and the number of its first line; None without a source."""
    try:
        lines, first = inspect.getsourcelines(function)
        return ast.parse(textwrap.dedent("".join(lines))), max(first, 1)
    except (OSError, TypeError, SyntaxError):  # made by other code, or in the middle of an expression
        return None


def _place(function: FunctionType, number: int) -> Place:
    lines, first = inspect.getsourcelines(function)
    return Place(function.__code__.co_filename, number, function.__qualname__, lines[number - max(first, 1)].strip())


def _called(tree: ast.AST, function: FunctionType, kind: type) -> Iterator[FunctionType]:
    """The methods of `self`, and the global functions, that are called."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        target: Any = None
        if isinstance(node.func, ast.Name):
            target = function.__globals__.get(node.func.id)
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "self":
            target = inspect.getattr_static(kind, node.func.attr, None)
        found = None if isinstance(target, type) else _function(target)
        if found is not None:
            yield found


def _meaning(node: ast.AST) -> str | None:
    """Which of `DTYPE_LINES` an expression is."""
    if isinstance(node, ast.Compare):
        return "guard" if any(_last(part) in _HALVES for part in ast.walk(node)) else None
    if not isinstance(node, ast.Call):
        return None
    name = _last(node.func)
    if name in _AUTOCAST:
        return "guard"
    if name == "float" and isinstance(node.func, ast.Attribute) and not node.args:
        return "upcast"
    if name in _CASTS:
        given = [*node.args, *(word.value for word in node.keywords if word.arg == "dtype")]
        return "upcast" if any(isinstance(item, ast.Attribute) and item.attr in _SINGLES for item in given) else None
    return None


def _last(node: ast.AST) -> str:
    """`float16` of `torch.float16`, `f` of `f`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
