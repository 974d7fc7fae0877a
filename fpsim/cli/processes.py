"""Processes that a script starts are not emulated, so under `fpsim run` starting one is an error, but for data loading."""

from __future__ import annotations

import multiprocessing.process
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_watching = False
_hooked = False
_allowed = threading.local()

_EVENTS = ("os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system", "subprocess.Popen")


def _refuse(what: str) -> None:
    raise RuntimeError(
        f"the script {what}, where nothing would be emulated; under `fpsim run` only the workers of a DataLoader may be "
        "other processes. Start processes that each run `fpsim run`, as the ranks of `torchrun --nproc-per-node N --no-python "
        "fpsim run SCRIPT ...` do, or use fpsim.run(model) inside them"
    )


def _runs_python(command: Any) -> bool:
    words = command if isinstance(command, list | tuple) else str(command).split()
    return any(Path(os.fsdecode(word)).name.startswith("python") for word in words[:1])


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching or event not in _EVENTS or getattr(_allowed, "now", False):
        return
    if event in ("os.fork", "os.forkpty"):
        _refuse("forks a process")
    command = arguments[0] if event == "os.system" else arguments[1] or [arguments[0]]
    if _runs_python(command):
        _refuse(f"starts another Python ({command!r})")


@contextmanager
def no_unseen_processes() -> Iterator[None]:
    """Inside, starting a process that could compute raises RuntimeError; other programs, such as git, may be started."""
    global _watching, _hooked
    if not _hooked:
        sys.addaudithook(_audit)  # there is no way to take one off again
        _hooked = True
    start = multiprocessing.process.BaseProcess.start

    def start_workers_only(process: Any) -> None:
        target = getattr(process, "_target", None)
        if getattr(target, "__module__", "") != "torch.utils.data._utils.worker":
            _refuse(f"starts the process {process.name!r}")
        _allowed.now = True
        try:
            start(process)
        finally:
            _allowed.now = False

    multiprocessing.process.BaseProcess.start = start_workers_only  # type: ignore[method-assign, assignment]
    _watching = True
    try:
        yield
    finally:
        _watching = False
        multiprocessing.process.BaseProcess.start = start  # type: ignore[method-assign]
