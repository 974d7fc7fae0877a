"""The program that `fpsim run` runs: a script or a module, as Python itself runs it."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType

import click

from fpsim.cli.parameters import InputError


class ScriptCommand(click.Command):
    """Reads its own options before the script's name and directly after it; all further words are the script's.

    The name is the first word that is no option, or what follows `-m`, a module then.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        command_words, ctx.meta["script_words"] = self._split(ctx, args)
        return super().parse_args(ctx, command_words)

    def _split(self, ctx: click.Context, words: list[str]) -> tuple[list[str], list[str]]:
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        takes_value = {name: not option.is_flag for option in options for name in option.opts}
        takes_value |= {"-h": False, "--help": False}
        words, script_seen = list(words), False
        position = 0
        while position < len(words):
            word = words[position]
            name, equals, _ = word.partition("=")
            if word.startswith("-m") and not script_seen:  # as of Python's own options, `-mmodule` is `-m module`
                words[position : position + 1] = [word[2:]] if word != "-m" else []
                ctx.meta["is_module"] = script_seen = True
                position += 1
            elif word == "--":
                rest = words[position + 1 :]
                command_words = words[:position]
                return (command_words, rest) if script_seen else (command_words + rest[:1], rest[1:])
            elif name in takes_value:
                position += 2 if takes_value[name] and not equals else 1
            elif script_seen:
                break
            else:
                script_seen = not word.startswith("-")
                position += 1
        return words[:position], words[position:]


@dataclass
class Program:
    """A script by its path, or a module by its name.

    Raises
    ------
    InputError : there is no such script, or no package or module of the name's first part.
    """

    name: str
    is_module: bool
    file: str = field(init=False)

    def __post_init__(self) -> None:
        self.file = self.name
        if not self.is_module and not os.path.isfile(self.name):
            raise InputError(f"there is no script {self.name!r}")
        if self.is_module:
            with self.as_main([]):
                if not self.name or find_spec(self.name.partition(".")[0]) is None:
                    raise InputError(f"there is no module {self.name!r}")

    @contextmanager
    def as_main(self, words: list[str]) -> Iterator[None]:
        """`sys.argv` and the first entry of `sys.path` as `python script words...` or `python -m module words...` sets them."""
        argv, path = sys.argv, list(sys.path)
        sys.argv = [self.name, *words]
        if not sys.flags.safe_path:
            sys.path[:1] = [os.getcwd() if self.is_module else os.path.dirname(os.path.realpath(self.name))]
        try:
            yield
        finally:
            sys.argv, sys.path[:] = argv, path

    def run(self) -> None:
        """Run it as `__main__`; what it raises passes."""
        if not self.is_module:
            runpy.run_path(self.name, run_name="__main__")
            return
        spec = find_spec(self.name)
        if spec is not None and spec.submodule_search_locations is not None:
            spec = find_spec(f"{self.name}.__main__")
        if spec is not None and spec.origin is not None:
            self.file = spec.origin
        runpy.run_module(self.name, run_name="__main__", alter_sys=True)

    def own_part(self, traceback: TracebackType | None) -> TracebackType | None:
        """The part of a traceback that begins in the program, as running it with python would show it."""
        while traceback is not None and traceback.tb_frame.f_code.co_filename != self.file:
            traceback = traceback.tb_next
        return traceback
