"""The marks of a machine that has several settings: they say in which role values were made."""

from __future__ import annotations

from fpsim.emulation.machine import marks
from fpsim.emulation.machine.settings import ModuleSettings
from fpsim.numbers.system import NumberSystem


class RoleTag(marks.Tag):
    """Values of a format (None: of several, or from outside), made in a role, by a module with these settings."""

    __slots__ = ("era", "fmt", "module", "role")

    def __init__(self, fmt: NumberSystem | None, role: str, module: ModuleSettings, era: object):
        super().__init__(fmt.name if fmt is not None else "several")
        self.fmt, self.role, self.module, self.era = fmt, role, module, era

    @property
    def role_format(self) -> NumberSystem:
        """The format of the role in that module."""
        return getattr(self.module.formats, self.role)

    def of_anything(self) -> RoleTag:
        return self if self.fmt is None else RoleTag(None, self.role, self.module, self.era)
