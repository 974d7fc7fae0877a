"""Settings by role and by module: a mapping, parsed once into entries, and what it gives each module of a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Generic, TypeVar

from fpsim.emulation.machine.settings import ROLES, Setting

T = TypeVar("T")


@dataclass(frozen=True)
class MappingEntry(Generic[T]):
    """One entry: a role (of all modules), a pattern of module paths or a class of modules, and values for roles.

    One value for all roles of modules leaves the role `product` none of its own.
    """

    key: str | type
    values: tuple[tuple[str, T | None], ...]

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
        if self.is_role or self.values[-1] == ("product", None):
            return f"{key}: {self.values[0][1]}"
        return f"{key}: {{{', '.join(f'{role}: {value}' for role, value in self.values)}}}"


@dataclass(frozen=True)
class RoleMapping(Generic[T]):
    """The entries of a mapping in order: where several give a role of a module a value, the last one holds."""

    setting: Setting[T]
    entries: tuple[MappingEntry[T], ...]

    @property
    def values(self) -> tuple[T, ...]:
        """Every value that is named, once, in order."""
        all_values = (value for entry in self.entries for _, value in entry.values)
        return tuple(dict.fromkeys(value for value in all_values if value is not None))

    def __str__(self) -> str:
        if len(self.entries) == 1 and self.entries[0].values[-1] == ("product", None) and self.entries[0].key == "*":
            return str(self.values[0])
        return f"{{{', '.join(map(str, self.entries))}}}"

    def resolve(self, modules: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What every module has, by path: `setting.of_module`; without modules that of everything, under the path "".

        An entry holds for the modules that it names and for all that is inside them.

        Raises
        ------
        ValueError : an entry that names no module, or that later ones take everything from; a role that a module
            gets no value for; a role that is also the name of a module; a module under two names that give it two values.
        """
        argument, noun = self.setting.argument, self.setting.noun
        if modules is None:
            for entry in self.entries:
                if not entry.is_role and entry.key != "*":
                    raise ValueError(
                        f"{argument}: {entry.key!r} names modules, and there is no model here; use run, a role or '*'"
                    )
            modules = {"": None}
        named = [{path for path, module in modules.items() if entry.matches(path, module)} for entry in self.entries]
        self._check_names(modules, named)
        used: set[int] = set()
        by_path = {}
        for path in modules:
            around = set(_enclosing(path))
            chosen: dict[str, T | None] = {}
            holder: dict[str, int] = {}
            for index, entry in enumerate(self.entries):
                if not around.isdisjoint(named[index]):
                    chosen.update(entry.values)
                    holder.update((role, index) for role, _ in entry.values)
            for role in self.setting.needed:
                if role not in chosen:
                    where = f"the module {path!r}" if path else "what is outside all other entries' modules"
                    raise ValueError(
                        f"{argument}: no {noun} for the role {role!r} of {where}; give one to all modules first: '*' or "
                        f"{role!r}"
                    )
            used.update(index for role, index in holder.items() if chosen[role] is not None)
            by_path[path] = self.setting.of_module(**chosen)
        for index, entry in enumerate(self.entries):
            if index not in used:
                raise ValueError(
                    f"{argument}: the entry {entry} has no effect, because later entries hold for all that it names"
                )
        self._check_shared(modules, by_path)
        return by_path

    def _check_names(self, modules: Mapping[str, Any], named: list[set[str]]) -> None:
        argument, roles = self.setting.argument, self.setting.roles
        for entry, paths in zip(self.entries, named, strict=True):
            if entry.is_role and entry.key in modules:
                raise ValueError(
                    f"{argument}: {entry.key!r} is a role and the name of a module; write {{'*': {{{entry.key!r}: ...}}}} for "
                    f"the role, '[{entry.key[0]}]{entry.key[1:]}' for the module"  # type: ignore[index]
                )
            if not paths:
                close = get_close_matches(str(entry.key), [*roles, *modules], 3)
                hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
                raise ValueError(
                    f"{argument}: {entry.key!r} is no role ({', '.join(roles)}) and names no module of the model{hint}"
                )

    def _check_shared(self, modules: Mapping[str, Any], chosen: dict[str, Any]) -> None:
        first: dict[int, str] = {}
        for path, module in modules.items():
            other = first.setdefault(id(module), path)
            if chosen[other] != chosen[path]:
                raise ValueError(
                    f"{self.setting.argument}: {other!r} and {path!r} are one module and would have two sets of "
                    f"{self.setting.noun}s"
                )


def _enclosing(path: str) -> Iterator[str]:
    """The paths of a module and of all that it is inside of."""
    yield ""
    parts = path.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def parse_mapping(setting: Setting[T], argument: Any) -> RoleMapping[T]:
    """The entries of a mapping whose keys are roles, patterns of module paths or classes of modules.

    A value is what `setting.read` takes, for a module of all roles, or a mapping from roles to such. Anything but a mapping
    is one value for everything.

    Raises
    ------
    ValueError : nothing in it, unknown values, a role of that name that there is none of, a role of a role.
    TypeError : a key that is neither text nor a class, a value of a kind that `setting.read` does not take.
    """
    if not isinstance(argument, Mapping):
        return RoleMapping(setting, (_for_all_roles(setting, "*", setting.read(argument)),))
    if not argument:
        raise ValueError(f"{setting.argument}: the mapping is empty")
    return RoleMapping(setting, tuple(_parse_entry(setting, key, value) for key, value in argument.items()))


def _for_all_roles(setting: Setting[T], key: Any, value: T) -> MappingEntry[T]:
    return MappingEntry(key, (*((role, value) for role in setting.needed), ("product", None)))


def _parse_entry(setting: Setting[T], key: Any, value: Any) -> MappingEntry[T]:
    argument, roles = setting.argument, setting.roles
    if not isinstance(key, (str, type)):
        raise TypeError(f"{argument}: a key is a role, a pattern of module paths or a class of modules, got {key!r}")
    if key in ROLES:
        _check_role(setting, argument, key)
        if isinstance(value, Mapping):
            raise ValueError(f"{argument}: {key!r} is a role and takes one {setting.noun}, not a mapping")
        return MappingEntry(key, ((str(key), _read(setting, key, value)),))
    if not isinstance(value, Mapping):
        return _for_all_roles(setting, key, _read(setting, key, value))
    for role in value:
        _check_role(setting, f"{argument}[{key!r}]", role)
    if not value:
        raise ValueError(f"{argument}[{key!r}]: the mapping is empty")
    return MappingEntry(key, tuple((role, _read(setting, key, value[role])) for role in roles if role in value))


def _check_role(setting: Setting[Any], where: str, role: Any) -> None:
    if role not in setting.roles:
        close = get_close_matches(str(role), setting.roles, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{where}: there is no role {role!r}, there are {', '.join(setting.roles)}{hint}")


def _read(setting: Setting[T], key: Any, value: Any) -> T:
    if value is None:
        raise ValueError(f"{setting.argument}[{key!r}]: None is no {setting.noun}")
    try:
        return setting.read(value)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{setting.argument}[{key!r}]: {str(error).removeprefix(f'{setting.argument}: ')}") from None
