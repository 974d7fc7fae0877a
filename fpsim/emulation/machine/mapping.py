"""Different formats by role and by module: a mapping, parsed once into entries, and what they give each module of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from fpsim.numbers.formats import Format, get_format


@dataclass(frozen=True)
class ModuleFormats:
    """The formats of one module, by role.

    weight      what its parameters and float buffers hold
    activation  what its forward pass reads every operand in and rounds every result to
    gradient    what its part of the backward pass reads gradients in and rounds every result to
    optimizer   what an optimizer keeps for its parameters, and rounds intermediate results to
    """

    weight: Format
    activation: Format
    gradient: Format
    optimizer: Format


ROLES = tuple(field.name for field in fields(ModuleFormats))


@dataclass(frozen=True)
class MappingEntry:
    """One entry: a role (of all modules), a pattern of module paths or a class of modules, and formats for roles."""

    key: str | type
    formats: tuple[tuple[str, Format], ...]

    @property
    def is_role(self) -> bool:
        return self.key in ROLES

    def matches(self, path: str, module: Any) -> bool:
        """Whether the entry names this module itself."""
        if isinstance(self.key, type):
            return isinstance(module, self.key)
        return self.is_role or fnmatchcase(path, self.key)

    def __str__(self) -> str:
        key = self.key.__name__ if isinstance(self.key, type) else repr(self.key)
        kinds = {fmt for _, fmt in self.formats}
        if len(kinds) == 1 and (self.is_role or len(self.formats) == len(ROLES)):
            return f"{key}: {self.formats[0][1]}"
        return f"{key}: {{{', '.join(f'{role}: {fmt}' for role, fmt in self.formats)}}}"


@dataclass(frozen=True)
class FormatMapping:
    """The entries of a mapping in order: where several give a role of a module a format, the last one holds."""

    entries: tuple[MappingEntry, ...]

    @property
    def formats(self) -> tuple[Format, ...]:
        """Every format that is named, once, in order."""
        return tuple(dict.fromkeys(fmt for entry in self.entries for _, fmt in entry.formats))

    def __str__(self) -> str:
        return f"{{{', '.join(map(str, self.entries))}}}"

    def resolve(self, modules: Mapping[str, Any] | None = None) -> dict[str, ModuleFormats]:
        """The formats of every module, by path; without modules those of everything, under the path "".

        An entry holds for the modules that it names and for all that is inside them.

        Raises
        ------
        ValueError : an entry that names no module, or that later ones take everything from; a role that a module
            gets no format for; a role that is also the name of a module; a module under two names that give it two formats.
        """
        if modules is None:
            for entry in self.entries:
                if not entry.is_role and entry.key != "*":
                    raise ValueError(f"fmt: {entry.key!r} names modules, and there is no model here; use run, a role or '*'")
            modules = {"": None}
        named = [{path for path, module in modules.items() if entry.matches(path, module)} for entry in self.entries]
        self._check_names(modules, named)
        used: set[int] = set()
        found = {}
        for path in modules:
            around = set(_enclosing(path))
            chosen: dict[str, Format] = {}
            holder: dict[str, int] = {}
            for index, entry in enumerate(self.entries):
                if not around.isdisjoint(named[index]):
                    chosen.update(entry.formats)
                    holder.update((role, index) for role, _ in entry.formats)
            for role in ROLES:
                if role not in chosen:
                    where = f"the module {path!r}" if path else "what is outside all other entries' modules"
                    raise ValueError(
                        f"fmt: no format for the role {role!r} of {where}; give one to all modules first: '*' or {role!r}"
                    )
            used.update(holder.values())
            found[path] = ModuleFormats(**chosen)
        for index, entry in enumerate(self.entries):
            if index not in used:
                raise ValueError(f"fmt: the entry {entry} has no effect, because later entries hold for all that it names")
        _check_shared(modules, found)
        return found

    def _check_names(self, modules: Mapping[str, Any], named: list[set[str]]) -> None:
        for entry, paths in zip(self.entries, named, strict=True):
            if entry.is_role and entry.key in modules:
                raise ValueError(
                    f"fmt: {entry.key!r} is a role and the name of a module; write {{'*': {{{entry.key!r}: ...}}}} for the "
                    f"role, '[{entry.key[0]}]{entry.key[1:]}' for the module"  # type: ignore[index]
                )
            if not paths:
                close = get_close_matches(str(entry.key), [*ROLES, *modules], 3)
                hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
                raise ValueError(f"fmt: {entry.key!r} is no role ({', '.join(ROLES)}) and names no module of the model{hint}")


def _enclosing(path: str) -> Iterator[str]:
    """The paths of a module and of all that it is inside of."""
    yield ""
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _check_shared(modules: Mapping[str, Any], found: dict[str, ModuleFormats]) -> None:
    first: dict[int, str] = {}
    for path, module in modules.items():
        other = first.setdefault(id(module), path)
        if found[other] != found[path]:
            raise ValueError(f"fmt: {other!r} and {path!r} are one module and would have two sets of formats")


def parse_mapping(given: Mapping[Any, Any]) -> FormatMapping:
    """The entries of a mapping whose keys are roles, patterns of module paths or classes of modules.

    A value is a format (what `get_format` takes), for a module all four roles, or a mapping from roles to formats.

    Raises
    ------
    ValueError : nothing in it, unknown formats, a role of that name that there is none of, a role of a role.
    TypeError : a key that is neither text nor a class.
    """
    if not given:
        raise ValueError("fmt: the mapping is empty")
    return FormatMapping(tuple(_parse_entry(key, value) for key, value in given.items()))


def _parse_entry(key: Any, value: Any) -> MappingEntry:
    if not isinstance(key, (str, type)):
        raise TypeError(f"fmt: a key is a role, a pattern of module paths or a class of modules, got {key!r}")
    if key in ROLES:
        if isinstance(value, Mapping):
            raise ValueError(f"fmt: {key!r} is a role and takes one format, not a mapping")
        return MappingEntry(key, ((key, _format_of(key, value)),))
    if not isinstance(value, Mapping):
        fmt = _format_of(key, value)
        return MappingEntry(key, tuple((role, fmt) for role in ROLES))
    for role in value:
        if role not in ROLES:
            close = get_close_matches(str(role), ROLES, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"fmt[{key!r}]: there is no role {role!r}, there are {', '.join(ROLES)}{hint}")
    if not value:
        raise ValueError(f"fmt[{key!r}]: the mapping is empty")
    return MappingEntry(key, tuple((role, _format_of(key, value[role])) for role in ROLES if role in value))


def _format_of(key: Any, value: Any) -> Format:
    if isinstance(value, str) and value.strip().lower() == "native":
        raise ValueError(f'fmt[{key!r}]: "native" stands alone: there each dtype means itself')
    try:
        return get_format(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"fmt[{key!r}]: {error}") from None
