"""What the commands take: formats, accumulators, rounding modes and numbers, parsed once, refused in one sentence."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any

import click

from fpsim.report.plain import plain


class InputError(click.ClickException):
    """Input that makes no sense: one sentence on standard error and exit code 2, without the usage text."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"Error: {plain(self.format_message())}", err=True, file=file)


class Parsed(click.ParamType):
    """A parameter that `parse` turns into an object; its ValueError becomes an `InputError` naming the option."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            where = f"{param.opts[0]}: " if param is not None else ""
            raise InputError(f"{where}{error}") from None


def _format(text: str) -> Any:
    from fpsim.numbers.formats import get_format

    return get_format(text)


def _system(text: str) -> Any:
    from fpsim.numbers.names import get_system

    return get_system(text)


def _policy_format(text: str) -> Any:
    return "native" if text == "native" else _system(text)


def _rounding(text: str) -> Any:
    from fpsim.numbers.rounding import get_rounding

    return get_rounding(text)


def _accumulator(text: str) -> str:
    from fpsim.accumulation import get_accumulator

    get_accumulator(text)  # refuses here what the emulation would refuse later
    return text


def _or_mapping(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """What reads one value for everything, or a mapping from roles, modules and "*" to values: a JSON object, or a file."""

    def parse(text: str) -> Any:
        if text.lstrip().startswith("{"):
            return _json(text, repr(text))
        return _file(Path(text)) if text.endswith((".json", ".toml")) else read(text)

    return parse


def _json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repetition)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} is no JSON object: {error}") from None


def _file(path: Path) -> dict[str, Any]:
    """The mapping that a file holds."""
    try:
        text = path.read_text(encoding="utf-8")
        values = _json(text, repr(str(path))) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no TOML: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{str(path)!r} holds no mapping")
    return values


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"{key!r} stands twice in one mapping")
        values[key] = value
    return values


def _writable(text: str) -> Path:
    path = Path(text).absolute()  # whatever folder a script goes to
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"{text!r} cannot be written")
    return path


def _report(text: str) -> Path:
    path = _writable(text)
    if path.suffix not in (".html", ".json"):
        raise ValueError(f"{text!r}: a report is written as .html or as .json")
    if path.suffix == ".html" and find_spec("jinja2") is None:
        raise ValueError("a page needs jinja2: install the extra, pip install -c constraints.txt '.[report]'")
    return path


FORMAT = Parsed("format", _format)
SYSTEM = Parsed("format", _system)
ROUNDING = Parsed("mode", _rounding)
ACCUMULATOR = Parsed("accumulator", _accumulator)
POLICY_FORMAT = Parsed("format", _or_mapping(_policy_format))
POLICY_ROUNDING = Parsed("mode", _or_mapping(_rounding))
POLICY_ACCUMULATOR = Parsed("accumulator", _or_mapping(_accumulator))
REPORT = Parsed("path", _report)
