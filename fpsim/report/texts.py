"""Frozen dataclasses as JSON text and back; infinities and NaN, for which JSON has no numbers, are strings."""

from __future__ import annotations

import json
import math
import types
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

_VERSION = 1
_T = TypeVar("_T")


def encode(value: Any) -> str:
    """The JSON text of a dataclass, whose fields are dataclasses, tuples, numbers, texts, truth values and None."""
    return json.dumps({"fpsim": type(value).__name__, "version": _VERSION, **_plain(value)}, allow_nan=False)


def decode(kind: type[_T], text: str) -> _T:
    """The dataclass that `encode` wrote. Raises ValueError for any other text."""
    name = f"fpsim {kind.__name__.lower()}"
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"this is no {name}: {error}") from None
    if not isinstance(record, dict) or record.pop("fpsim", None) != kind.__name__:
        raise ValueError(f"this is no {name}")
    if (version := record.pop("version", None)) != _VERSION:
        raise ValueError(f"this {name} has version {version}, and this fpsim reads version {_VERSION}")
    try:
        return _made(kind, record)
    except (TypeError, KeyError) as error:
        raise ValueError(f"this {name} is damaged: {error}") from None


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


@lru_cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _made(kind: Any, plain: Any) -> Any:
    if is_dataclass(kind):
        if not isinstance(plain, dict):
            raise TypeError(f"{plain!r} where a {kind.__name__} belongs")  # type: ignore[union-attr]
        hints = _hints(kind)  # type: ignore[arg-type]
        return kind(**{name: _made(hints[name], item) for name, item in plain.items()})  # type: ignore[operator]
    if get_origin(kind) in (Union, types.UnionType):
        alternatives = [item for item in get_args(kind) if item is not type(None)]
        return None if plain is None else _made(alternatives[0], plain)
    if get_origin(kind) is tuple:
        items = get_args(kind)
        if not isinstance(plain, list):
            raise TypeError(f"{plain!r} where a list belongs")
        if items[-1] is Ellipsis:
            return tuple(_made(items[0], item) for item in plain)
        return tuple(_made(item, part) for item, part in zip(items, plain, strict=True))
    if kind is float and isinstance(plain, str):
        return float(plain)
    if not isinstance(plain, (int, float) if kind is float else kind):
        raise TypeError(f"{plain!r} where a {kind.__name__} belongs")
    return plain
