"""The folder of compiled kernels: where it is, who may write there, and what other versions of fpsim left beside it.

What is stored there is machine code, and is executed. So the folder is used only where nobody but its owner can write to it:
it belongs to the user, is no symbolic link, and neither group nor others may write to it. The folder around it may be the
system's (sticky, as /tmp is) or the user's own, and a link there must be one that the user or the system made. Access control
lists are not looked at. Whatever is refused is said, and the next place is taken.

The folder is named after a digest of every source file here, because Numba does not notice when a helper in another file has
changed. In it are a file `key` (see `storage`) and a file for each specialization of a kernel.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

KEY_NAME = "key"
SUFFIX = ".kernel"
LARGEST = 1 << 30  # bytes that all versions' folders may take; beyond, those of other versions go, least recently used first
_DAY = 86400.0
UNUSED = 30 * _DAY  # after which another version's folder goes
_UNFINISHED = _DAY  # after which a file that a process was writing is left over from one that died
_NAME = re.compile("[0-9a-f]{16}")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


def user() -> int | None:
    """The user's number, where files belong to users that have one."""
    return os.getuid() if hasattr(os, "getuid") else None


def why_untrusted(status: os.stat_result, private: bool = False) -> str | None:
    """What lets others write (`private`: or read) what has this status; None if nothing does."""
    if user() is None:
        return None
    if status.st_uid != user():
        return f"it belongs to another user ({status.st_uid})"
    if status.st_mode & (0o077 if private else _OTHERS_WRITE):
        return "others can read it" if private else "others can write to it (chmod go-w)"
    return None


@lru_cache
def source_digest() -> str:
    """The name of the folder: 16 hexadecimal digits that say which sources the kernels in it were made from."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _roots() -> Iterator[Path]:
    for variable in ("FPSIM_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "fpsim"
    if os.environ.get("HOME"):
        yield Path(os.environ["HOME"]) / ".cache" / "fpsim"
    owner = os.environ.get("USERNAME", "user") if user() is None else user()
    yield Path(tempfile.gettempdir()) / f"fpsim-{owner}"


def _why_not_in(root: Path) -> str | None:
    """Why no folder is kept there; it exists."""
    if user() is None:
        return None
    trusted = (user(), 0)
    if root.is_symlink() and root.lstat().st_uid not in trusted:
        return f"it is a link that another user made ({root.lstat().st_uid})"
    status = root.stat()
    if status.st_uid not in trusted:
        return f"it belongs to another user ({status.st_uid})"
    if status.st_mode & _OTHERS_WRITE and not status.st_mode & stat.S_ISVTX:
        return "others can write to it (chmod go-w)"
    return None


def _why_not(folder: Path) -> str | None:
    """Why the folder, which exists, is not used."""
    status = folder.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    return why_untrusted(status)


def make(folder: Path) -> None:
    """The folder, its owner's alone; OSError where it cannot be."""
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)


def _usable(root: Path) -> Path | None:
    folder = root / source_digest()
    try:
        make(folder)
        for place, reason in ((root, _why_not_in(root)), (folder, _why_not(folder))):
            if reason is not None:
                warnings.warn(f"fpsim keeps no compiled kernels in {place}: {reason}.", RuntimeWarning, stacklevel=4)
                return None
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


def choose() -> Path | None:
    """This version's folder, made where it was not there; None, with a warning, where there can be none."""
    for root in _roots():
        folder = _usable(root)
        if folder is not None:
            return folder
    warnings.warn(
        "fpsim found no folder to keep compiled kernels in, so each process compiles them anew (seconds). "
        "Set FPSIM_CACHE_DIR to a writable folder.",
        RuntimeWarning,
        stacklevel=3,
    )
    return None


@dataclass(frozen=True)
class Stored:
    """What one version of fpsim keeps: its folder, how many kernels, bytes, and when a process last used it."""

    folder: Path
    kernels: int
    size: int
    used: float  # seconds since the epoch


def _own_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    files = []
    for path in folder.rglob("*"):
        if path.name == KEY_NAME or SUFFIX in path.suffixes:
            with suppress(FileNotFoundError):  # another process cleans up
                files.append((path, path.lstat()))
    return files


def stored(root: Path) -> list[Stored]:
    """What the user's processes keep under `root`, of every version, most recently used first."""
    entries = []
    for folder in root.iterdir() if root.is_dir() else ():
        with suppress(FileNotFoundError):  # another process cleans up
            entry = _stored_in(folder)
            if entry is not None:
                entries.append(entry)
    return sorted(entries, key=lambda entry: entry.used, reverse=True)


def _stored_in(folder: Path) -> Stored | None:
    """What is in the folder; None unless it is a version's, and the user's."""
    status = folder.lstat()
    if not _NAME.fullmatch(folder.name) or not stat.S_ISDIR(status.st_mode) or user() not in (None, status.st_uid):
        return None
    files = _own_files(folder)
    kernels = sum(path.suffix == SUFFIX for path, _ in files)
    used = max([status.st_mtime, *(file.st_mtime for _, file in files)])
    return Stored(folder, kernels, sum(file.st_size for _, file in files), used)


def remove(folder: Path) -> None:
    """Delete a version's files, and its folder unless something is in it that is not fpsim's."""
    for path, _ in _own_files(folder):
        path.unlink(missing_ok=True)
    for inner in sorted(path for path in [folder, *folder.rglob("*")] if path.is_dir() and not path.is_symlink())[::-1]:
        with suppress(FileNotFoundError):  # another process cleans up
            if not any(inner.iterdir()):
                inner.rmdir()


def mark_used(folder: Path) -> None:
    """Note, once a day, that a process uses the folder."""
    key = folder / KEY_NAME
    with suppress(FileNotFoundError):  # nothing is stored yet
        if time.time() - key.stat().st_mtime > _DAY:
            os.utime(key)


def tidy(folder: Path) -> None:
    """Delete what processes that died left unfinished, and other versions' folders that are unused or exceed `LARGEST`."""
    now = time.time()
    for path, status in _own_files(folder):
        if path.name != KEY_NAME and path.suffix != SUFFIX and now - status.st_mtime > _UNFINISHED:
            path.unlink(missing_ok=True)
    total = 0
    for entry in stored(folder.parent):
        total += entry.size
        if entry.folder != folder and (total > LARGEST or now - entry.used > UNUSED):
            remove(entry.folder)
            total -= entry.size
