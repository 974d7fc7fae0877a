"""Bundles: what a machine computed, as raw bits in one file that holds no code.

A bundle is an `.npz` of unsigned arrays: `header` (JSON in UTF-8), `digest` (SHA-256 over the header and every array) and the
tensors' bits, `t0`, `t1`, ... A tensor that occurs twice is held once. The digest tells an altered file from the one that was
written; it is no signature, for whoever alters a file can compute another.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
KIND = "fpsim bundle"
MAX_BYTES = 16 << 20  # of a file
_MAX_UNPACKED = 1 << 28  # what a file may unpack to: a small one must not fill the memory

#: How many bytes an element of each dtype takes, by torch's name of the dtype.
SIZES = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip


class BundleError(ValueError):
    """A file that is no bundle, that another version wrote, that is cut short, or that was altered."""


class TooLarge(ValueError):
    """What was recorded does not fit into a file."""


class Bundle:
    """Records and the tensors that they refer to by number.

    environment  what the machine is: processor, GPU, driver, libraries, flags
    records      one dictionary each; `kind` says what it is
    tensors      (dtype, shape, strides, bits), bits as a flat unsigned array in row-major order
    stopped      why the recording ended early; None where it is complete
    """

    def __init__(self, environment: dict[str, Any]) -> None:
        self.environment = environment
        self.records: list[dict[str, Any]] = []
        self.tensors: list[tuple[str, tuple[int, ...], tuple[int, ...], np.ndarray]] = []
        self.stopped: str | None = None
        self.nbytes = 0
        self._numbers: dict[bytes, int] = {}

    def add_tensor(self, dtype: str, shape: tuple[int, ...], strides: tuple[int, ...], bits: np.ndarray) -> int:
        """The number of a tensor, which is held once however often it is added."""
        key = hashlib.sha256(f"{dtype}{shape}{strides}".encode() + bits.tobytes()).digest()
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.tensors)
            self.tensors.append((dtype, shape, strides, bits))
            self.nbytes += bits.nbytes
        return number

    def bits(self, number: int) -> np.ndarray:
        """The bits of a tensor in its shape."""
        _, shape, _, bits = self.tensors[number]
        return bits.reshape(shape)

    def save(self, path: str | os.PathLike[str], limit: int = MAX_BYTES) -> int:
        """Write the file in one step, so that an interruption leaves none or a whole one; its size in bytes.

        Raises TooLarge for more than `limit` bytes; nothing is written then.
        """
        header = {
            "kind": KIND,
            "version": VERSION,
            "environment": self.environment,
            "stopped": self.stopped,
            "records": self.records,
            "tensors": [[dtype, shape, strides] for dtype, shape, strides, _ in self.tensors],
        }
        text = np.frombuffer(json.dumps(header, allow_nan=False, separators=(",", ":")).encode(), np.uint8)
        arrays = {f"t{number}": bits for number, (*_, bits) in enumerate(self.tensors)}
        digest = np.frombuffer(_digest(text, arrays), np.uint8)
        target = Path(path)
        part = target.with_name(f"{target.name}.{os.getpid()}.part")
        try:
            with open(part, "wb") as file:
                np.savez_compressed(file, **{"header": text, "digest": digest, **arrays})  # type: ignore[arg-type]
            size = part.stat().st_size
            if size > limit:
                raise TooLarge(f"{target}: {size / 2**20:.1f} MB, and a bundle may have {limit / 2**20:.0f}")
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)
        return size


def load(path: str | os.PathLike[str]) -> Bundle:
    """The bundle in a file.

    Nothing in the file is executed. Raises BundleError for a file that is no bundle, that another version wrote, that is cut
    short or that was altered; FileNotFoundError where there is none.
    """
    try:
        header, text, digest, arrays = _read(path)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, UnicodeDecodeError, OSError) as error:
        if isinstance(error, (FileNotFoundError, IsADirectoryError, PermissionError, BundleError)):
            raise
        raise BundleError(f"{path} is no bundle, or it is cut short ({error}); record it again") from error
    if digest != _digest(text, arrays):
        raise BundleError(f"{path} was altered after it was recorded: its digest does not fit; record it again")
    try:
        return _assemble(header, arrays)
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path} has a header that does not fit its arrays ({error})") from error


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], np.ndarray, bytes, dict[str, np.ndarray]]:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > _MAX_UNPACKED:
        raise BundleError(f"{path} would unpack to {unpacked >> 20} MB; a bundle has at most {_MAX_UNPACKED >> 20}")
    with np.load(path, allow_pickle=False) as file:
        text = file["header"]
        header = json.loads(text.tobytes())
        if not isinstance(header, dict) or header.get("kind") != KIND:
            raise BundleError(f"{path} is no bundle of fpsim")
        if header.get("version") != VERSION:
            raise BundleError(
                f"{path} is a bundle of version {header.get('version')!r}; this fpsim reads version {VERSION}: "
                "record it again, or use the fpsim that wrote it"
            )
        arrays = {name: file[name] for name in file.files if name not in ("header", "digest")}
        return header, text, file["digest"].tobytes(), arrays


def _assemble(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Bundle:
    bundle = Bundle(header["environment"])
    bundle.records, bundle.stopped = header["records"], header["stopped"]
    for number, (dtype, shape, strides) in enumerate(header["tensors"]):
        bits = arrays[f"t{number}"]
        if bits.dtype != np.dtype(f"u{SIZES[dtype]}") or bits.size != int(np.prod(shape, dtype=np.int64)):
            raise ValueError(f"tensor {number}")
        bundle.tensors.append((dtype, tuple(shape), tuple(strides), bits))
        bundle.nbytes += bits.nbytes
    return bundle


def _digest(text: np.ndarray, arrays: dict[str, np.ndarray]) -> bytes:
    found = hashlib.sha256(text.tobytes())
    for name in sorted(arrays):
        found.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode())
        found.update(np.ascontiguousarray(arrays[name]).tobytes())
    return found.digest()
