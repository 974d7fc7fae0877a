"""Lines of a user's own source: those that run outside torch, fpsim and Python's library."""

from __future__ import annotations

import linecache
import os
import sys
import sysconfig
from functools import lru_cache
from types import CodeType

import torch

from fpsim.report.records import Place

Line = tuple[CodeType, int]

_LIBRARIES = tuple(
    os.path.dirname(os.path.abspath(path)) + os.sep for path in (torch.__file__, sys.modules["fpsim"].__file__ or "")
)
_ENGINE = torch.autograd.graph._engine_run_backward.__code__
_PYTHON = tuple(os.path.abspath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib"))


@lru_cache(maxsize=4096)
def _is_users(file: str) -> bool:
    path = os.path.abspath(file)
    if path.startswith(_LIBRARIES) or file.startswith("<frozen "):
        return False
    return not path.startswith(_PYTHON) or f"{os.sep}site-packages{os.sep}" in path


def running_line() -> Line | None:
    """The innermost line of the user's that is running in this thread; None where all is a library's."""
    frame = sys._getframe(1)
    while frame is not None:
        if _is_users(frame.f_code.co_filename):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def line_in_backward() -> Line | None:
    """The innermost line of the user's that autograd itself runs in this thread: of a function's `backward`, or of a hook."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _ENGINE:
        if _is_users(frame.f_code.co_filename):
            return frame.f_code, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]
    return None


def place_of(line: Line | None) -> Place | None:
    """A line as a report has it; its text is read now."""
    if line is None:
        return None
    code, number = line
    return Place(code.co_filename, number, code.co_qualname, linecache.getline(code.co_filename, number).strip())
