"""Methods of a model, and functions that it calls, anew: a product's scale before the product, a mask of finite numbers."""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

from fpsim.emulation.advising.recipe import Rewrite
from fpsim.report.records import Place

_PRODUCTS = ("matmul", "bmm", "mm")
_SCALINGS = {"div": ast.Div, "div_": ast.Div, "true_divide": ast.Div, "mul": ast.Mult, "mul_": ast.Mult, "multiply": ast.Mult}


class CannotTry(Exception):
    """A remedy cannot be tried in this script; the message is the reason."""


def scale_before_product(model: nn.Module, path: str, place: Place | None) -> Rewrite:
    """The method or function with a scale of a product's result moved to the product's first factor. Raises CannotTry."""
    return _rewritten(model, path, place, _scale_first)


def finite_mask(model: nn.Module, path: str, place: Place | None) -> Rewrite:
    """The method or function with the lowest finite number for -infinity, so that a row of them is no NaN. Raises CannotTry."""
    return _rewritten(model, path, place, _make_finite)


def _rewritten(
    model: nn.Module, path: str, place: Place | None, change: Callable[[ast.FunctionDef, int], None]
) -> Rewrite:
    module = dict(model.named_modules()).get(path)
    if module is None or place is None:
        raise CannotTry("the line is in no module of the model")
    method = _method_at(type(module), place) or _function_at(place)
    if method is None:
        raise CannotTry(f"{place} is in no method of {type(module).__name__}, and in no function of a file")
    if method.__code__.co_freevars:
        raise CannotTry(f"{method.__qualname__} reads names of what is around it, or super()")
    lines, first = inspect.getsourcelines(method)
    tree = ast.parse(textwrap.dedent("".join(lines)))
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef) or function.decorator_list:
        raise CannotTry(f"{method.__qualname__} is decorated")
    change(function, place.line - max(first, 1) + 1)
    source = ast.unparse(ast.fix_missing_locations(tree))
    is_function = method.__qualname__ == method.__name__
    owner = method.__module__ if is_function else type(module).__name__
    return Rewrite(owner, method.__name__, source, is_function, tuple(_imports(method, _names([tree], ast.Load))))


def _imports(method: FunctionType, names: set[str]) -> Iterable[str]:
    """Of those of the names that are its file's; a script has its own."""
    file = sys.modules.get(method.__module__)
    if method.__module__ == "__main__" or file is None:
        return
    for name in sorted(names & vars(file).keys() - {"torch", "fpsim"}):
        value = getattr(file, name)
        if isinstance(value, ModuleType):
            yield f"import {value.__name__}{'' if value.__name__ == name else f' as {name}'}"
        else:
            yield f"from {file.__name__} import {name}"


def _method_at(kind: type, place: Place) -> FunctionType | None:
    found = (_at(place, vars(base)) for base in kind.__mro__)
    return next(filter(None, found), None)


def _function_at(place: Place) -> FunctionType | None:
    """That of a file that Python has imported."""
    files = [file for file in list(sys.modules.values()) if getattr(file, "__file__", None) == place.file]
    found = (_at(place, vars(file)) for file in files)
    return next(filter(None, found), None)


def _at(place: Place, names: Mapping[str, Any]) -> FunctionType | None:
    """What is defined around a line, and has its name among these."""
    for name, value in names.items():
        if isinstance(value, FunctionType) and value.__code__.co_filename == place.file and value.__name__ == name:
            try:
                lines, first = inspect.getsourcelines(value)
            except OSError:  # as of what was typed, or executed from a text
                raise CannotTry(f"the source of {value.__qualname__} cannot be read") from None
            if first <= place.line < first + len(lines):
                return value
    return None


def _scale_first(function: ast.FunctionDef, line: int) -> None:
    product: Any = next((node for node in ast.walk(function) if _is_product(node) and _covers(node, line)), None)
    if product is None:
        raise CannotTry("there is no product of two factors in that line of the source")
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    user, held, between = _scaled(function, product, parents)
    operation, factor = _scaling(user, held)
    if _names(between, ast.Store) & _names([factor], ast.Load):
        raise CannotTry("what the product is scaled by is computed after it")
    if isinstance(user, ast.AugAssign):
        _replace(parents[user], user, ast.Pass())
    else:
        _replace(parents[user], user, held)
    if isinstance(product, ast.BinOp):
        product.left = ast.BinOp(product.left, operation(), factor)
    elif len(product.args) == 2:  # torch.matmul(q, k)
        product.args[0] = ast.BinOp(product.args[0], operation(), factor)
    else:  # q.matmul(k)
        product.func.value = ast.BinOp(product.func.value, operation(), factor)


def _is_product(node: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.MatMult)
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _PRODUCTS


def _covers(node: Any, line: int) -> bool:
    return node.lineno <= line <= node.end_lineno


def _names(nodes: Iterable[ast.AST], context: type) -> set[str]:
    """The names that are read, or written, in any of them."""
    parts = (part for node in nodes for part in ast.walk(node))
    return {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, context)}


def _scaled(
    function: ast.FunctionDef, product: Any, parents: dict[ast.AST, ast.AST]
) -> tuple[Any, Any, list[ast.stmt]]:
    """What scales the product, the expression that it scales, and the statements that run before it and after the product."""
    parent = parents[product]
    if isinstance(parent, ast.Attribute):
        parent = parents[parent]
    if _is_scaling(parent, product):
        return parent, product, []
    body = next((body for body in _bodies(function) if parent in body), [])
    if isinstance(parent, ast.Assign) and len(parent.targets) == 1 and isinstance(parent.targets[0], ast.Name):
        name, after = parent.targets[0].id, body[body.index(parent) + 1 :]
        for number, statement in enumerate(after):
            uses = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id == name]
            scalings = [node for node in ast.walk(statement) if any(_is_scaling(node, use) for use in uses)]
            reads = [use for use in uses if isinstance(use.ctx, ast.Load)]
            if len(scalings) == 1 and len(reads) == (not isinstance(scalings[0], ast.AugAssign)):
                held = next(use for use in uses if _is_scaling(scalings[0], use))
                return scalings[0], held, after[:number]
            if uses:
                break
    raise CannotTry("the source does not scale that product")


def _bodies(function: ast.FunctionDef) -> list[list[Any]]:
    return [value for node in ast.walk(function) for _, value in ast.iter_fields(node) if isinstance(value, list)]


def _is_scaling(node: ast.AST, of: ast.AST) -> bool:
    if isinstance(node, ast.BinOp):
        return (node.left is of and isinstance(node.op, (ast.Div, ast.Mult))) or (
            node.right is of and isinstance(node.op, ast.Mult)
        )
    if isinstance(node, ast.AugAssign):
        return node.target is of and isinstance(node.op, (ast.Div, ast.Mult))
    is_method = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _SCALINGS
    return is_method and node.func.value is of and len(node.args) == 1  # type: ignore[union-attr, attr-defined]


def _scaling(user: Any, held: Any) -> tuple[type, ast.expr]:
    """The operation, and what it scales by."""
    if isinstance(user, ast.BinOp):
        return type(user.op), user.right if user.left is held else user.left
    if isinstance(user, ast.AugAssign):
        return type(user.op), user.value
    return _SCALINGS[user.func.attr], user.args[0]


def _replace(parent: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for name, value in ast.iter_fields(parent):
        if value is old:
            setattr(parent, name, new)
        elif isinstance(value, list) and old in value:
            value[value.index(old)] = new  # type: ignore[call-overload]


def _make_finite(function: ast.FunctionDef, line: int) -> None:
    infinities = [node for node in ast.walk(function) if _is_infinite(node)]
    if not infinities:
        raise CannotTry("the mask's infinity is not written in that method")
    parents = {child: node for node in ast.walk(function) for child in ast.iter_child_nodes(node)}
    for node in infinities:
        _replace(parents[node], node, ast.parse("torch.finfo(torch.float32).min", mode="eval").body)


def _is_infinite(node: ast.AST) -> bool:
    """-torch.inf, -math.inf, float("-inf"), -float("inf")."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return (isinstance(node.operand, ast.Attribute) and node.operand.attr == "inf") or _is_float_of(node.operand, "inf")
    return _is_float_of(node, "-inf")


def _is_float_of(node: ast.AST, text: str) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "float" and node.args):
        return False
    return isinstance(node.args[0], ast.Constant) and str(node.args[0].value).lower() == text
