"""What is recorded of the machine and the versions with every result."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import platform
from pathlib import Path

import fpsim


@functools.cache
def environment() -> dict[str, str]:
    """Versions, processor, and a digest of fpsim's own source, for this process."""
    versions = {name: importlib.metadata.version(name) for name in ("numba", "numpy", "scipy", "torch")}
    return {
        "python": platform.python_version(), **versions,
        "fpsim": fpsim.__version__, "source": source_digest(),
        "machine": platform.machine(), "processor": _processor(),
    }  # fmt: skip


def source_digest() -> str:
    """48 bits of the SHA-256 of all of fpsim's source, by which a result is known to be of this code."""
    folder = Path(fpsim.__file__).parent
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:12]


def _processor() -> str:
    """The processor's name where Linux says it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
