"""Machine code of kernels, kept between processes in the folder that `folders` chooses.

Each specialization has a file of its own, named after its key. Numba's own files are numbered through an index: of two
processes that add to one index at the same time, one can be left with the other's number, and every later process would be
given the wrong kernel.

A file is a tag, then the pickle of the code. The tag is an HMAC with SHA-256 of the file's name and the pickle, under a key
of 32 random bytes that the folder's owner alone can read. It is checked before anything is unpickled or executed, so a file
that is damaged, cut short, another kernel's, or from another folder is compiled anew and replaced. Whoever can read the key,
that is the user, root and every program that runs as them, can make files that pass: against them nothing here helps, as
nothing helps against them in Python's own compiled files. The folder and each file must also be the user's own, and not
writable by others.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import secrets
import stat
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core.caching import _Cache
from numba.core.compiler import CompileResult
from numba.core.runtime import rtsys
from numba.core.serialize import dumps

from fpsim.backend.numba import folders, processor
from fpsim.backend.numba.identity import identity, identity_of_function

CACHE_FOLDER = folders.choose()
if CACHE_FOLDER is not None:
    folders.mark_used(CACHE_FOLDER)

_KEY_BYTES = 32
_TAG_BYTES = 32
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_VERSIONS = (numba.__version__, llvmlite.__version__)
_PROCESSOR = identity({name: value for name, value in vars(processor).items() if name.isupper()})


class Untrusted(Exception):
    """What is stored is not what this user's fpsim stored there."""


def _read(path: Path, private: bool = False) -> bytes:
    """A file that nobody else can have written (`private`: or read); `Untrusted` otherwise."""
    try:
        descriptor = os.open(path, _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:  # a symbolic link, a folder, a file that cannot be read
        raise Untrusted(str(error.strerror)) from error
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        reason = folders.why_untrusted(status, private) if stat.S_ISREG(status.st_mode) else "it is no ordinary file"
        if reason is not None:
            raise Untrusted(reason)
        return file.read()


def _write(path: Path, data: bytes, place: Callable[[Path, Path], None] = os.replace) -> None:
    """A file with these bytes, whole or not at all, that its owner alone can read."""
    temporary = path.with_name(f"{path.name}{folders.SUFFIX}.{secrets.token_hex(16)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb") as file:
            file.write(data)
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _put_if_new(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:  # another process was first: its key holds
        return
    except OSError:  # a file system without links
        os.replace(temporary, path)


class Files:
    """The files of a folder, each with its tag."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._tidy = False

    def _key(self) -> bytes:
        key = _read(self._folder / folders.KEY_NAME, private=True)
        if len(key) != _KEY_BYTES:
            raise Untrusted("the key is cut short")
        return key

    def _key_to_write(self) -> bytes:
        """The folder's key, made where there is none or it could be another's."""
        path = self._folder / folders.KEY_NAME
        try:
            return self._key()
        except FileNotFoundError:
            _write(path, secrets.token_bytes(_KEY_BYTES), _put_if_new)
        except Untrusted:
            _write(path, secrets.token_bytes(_KEY_BYTES))
        return self._key()

    def load(self, name: str) -> bytes | None:
        """What was stored; None if nothing was, or, with a warning, if that cannot be trusted."""
        path = self._folder / name
        try:
            data = _read(path)
            if not hmac.compare_digest(_tag(self._key(), name, data[_TAG_BYTES:]), data[:_TAG_BYTES]):
                raise Untrusted("its content is not what was stored")
        except FileNotFoundError:
            return None
        except Untrusted as error:
            warnings.warn(
                f"fpsim compiles a kernel anew, for its file in {self._folder} cannot be trusted: {error}.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return data[_TAG_BYTES:]

    def save(self, name: str, data: bytes) -> None:
        """Store, or say why that could not be done."""
        try:
            folders.make(self._folder)
            _write(self._folder / name, _tag(self._key_to_write(), name, data) + data)
            if not self._tidy:
                folders.tidy(self._folder)
                self._tidy = True
        except (OSError, Untrusted) as error:
            warnings.warn(f"fpsim could not keep a compiled kernel: {error}", RuntimeWarning, stacklevel=2)


def _tag(key: bytes, name: str, data: bytes) -> bytes:
    return hmac.digest(key, name.encode() + b"\0" + data, "sha256")


class StoredCode(_Cache):
    """A kernel's specializations on disk (nowhere where there is no folder), by signature, processor, versions, code and the
    values that it closes over.

    TypeError for a kernel that closes over something that is not the same in another process (see `identity`).
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any], folder: Path | None = CACHE_FOLDER):
        name = f"{function.__module__.rpartition('.')[2]}.{function.__qualname__}"
        self._name = name.replace("<locals>.", "").replace("<", "").replace(">", "")  # which not all systems take in names
        self._identity = identity_of_function(function), identity(options)
        self._folder, self._files = folder, None if folder is None else Files(folder)

    @property
    def cache_path(self) -> str | None:
        return None if self._folder is None else str(self._folder)

    def enable(self) -> None:
        self._files = None if self._folder is None else Files(self._folder)

    def disable(self) -> None:
        self._files = None

    def flush(self) -> None:
        """Nothing waits to be written."""

    def _file_name(self, signature: Any, codegen: Any) -> str:
        key = (self._identity, repr(signature), codegen.magic_tuple(), _PROCESSOR, _VERSIONS, sys.implementation.cache_tag)
        return f"{self._name}.{hashlib.sha256(identity(key).encode()).hexdigest()[:32]}{folders.SUFFIX}"

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Without first importing all that Numba can compile calls of, as its own does: code that is there needs none of it."""
        if self._files is None:
            return None
        data = self._files.load(self._file_name(sig, target_context.codegen()))
        if data is None:
            return None
        rtsys.initialize(target_context)
        return CompileResult._rebuild(target_context, *pickle.loads(data))

    def save_overload(self, sig: Any, data: Any) -> None:
        if self._files is None:
            return
        if data.library.has_dynamic_globals or any(not lifted.can_cache for lifted in data.lifted):
            raise TypeError(f"{self._name} holds an address of this process, or a large array: make that an argument")
        self._files.save(self._file_name(sig, data.codegen), dumps(data._reduce()))
