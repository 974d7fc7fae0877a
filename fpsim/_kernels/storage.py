"""Where the machine code of kernels is kept between processes.

The folder is named after a digest of every source file here, because Numba does not notice when a helper in another file
has changed. In it each specialization has a file of its own, named after its key and holding it. Numba's own files are
numbered through an index: of two processes that add to one index at the same time, one can be left with the other's number,
and every later process would be given the wrong kernel.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import FunctionCache
from numba.core.runtime import rtsys
from numba.core.serialize import dumps


def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _candidates() -> Iterator[Path]:
    for variable in ("FPSIM_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            yield Path(os.environ[variable])
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "fpsim"
    if os.environ.get("HOME"):
        yield Path(os.environ["HOME"]) / ".cache" / "fpsim"
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    yield Path(tempfile.gettempdir()) / f"fpsim-{user}"


def _usable(folder: Path) -> bool:
    """Whether files can be written there and nobody else owns it (cached machine code is executed)."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=folder):
            pass
        return not hasattr(os, "getuid") or folder.stat().st_uid == os.getuid()
    except OSError:
        return False


def _choose_folder() -> str | None:
    digest = _source_digest()
    for candidate in _candidates():
        if _usable(candidate / digest):
            return str(candidate / digest)
    warnings.warn(
        "fpsim found no folder to keep compiled kernels in, so each process compiles them anew (seconds). "
        "Set FPSIM_CACHE_DIR to a writable folder.",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


CACHE_FOLDER = _choose_folder()
_turn = threading.Lock()  # of the threads that make kernels: Numba's folder is a global


def _forget_turn() -> None:
    """After a fork the lock may be held by a thread that the child has not."""
    global _turn
    _turn = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turn)


class _Files:
    """What `FunctionCache` saves and loads, a file for each key."""

    def __init__(self, folder: Path, name: str):
        self._folder, self._name = folder, name

    def _path(self, key: Any) -> Path:
        return self._folder / f"{self._name}.{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.kernel"

    def save(self, key: Any, data: Any) -> None:
        path = self._path(key)
        temporary = path.with_suffix(f".{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(pickle.dumps((key, dumps(data))))
            os.replace(temporary, path)  # whole or not at all
        except OSError as error:
            temporary.unlink(missing_ok=True)
            warnings.warn(f"fpsim could not keep a compiled kernel: {error}", RuntimeWarning, stacklevel=2)

    def load(self, key: Any) -> Any:
        try:
            stored, data = pickle.loads(self._path(key).read_bytes())
        except (FileNotFoundError, EOFError, pickle.UnpicklingError):  # not there, or cut short when a machine stopped
            return None
        return pickle.loads(data) if stored == key else None


class StoredCode(FunctionCache):
    """A kernel's specializations on disk, by signature, processor, bytecode and the values that it closes over."""

    def __init__(self, function: Callable[..., Any]):
        with _turn:
            previous = config.CACHE_DIR
            config.CACHE_DIR = CACHE_FOLDER  # read when this is made, and by the user's own kernels
            try:
                super().__init__(function)
            finally:
                config.CACHE_DIR = previous
        self._cache_file = _Files(Path(self._cache_path), self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Without first importing all that Numba can compile calls of, as its own does: code that is there needs none of it."""
        rtsys.initialize(target_context)
        return self._load_overload(sig, target_context)

    def _index_key(self, sig: Any, codegen: Any) -> Any:
        return numba.__version__, super()._index_key(sig, codegen)
