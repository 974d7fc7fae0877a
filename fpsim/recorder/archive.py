"""The arrays of an `.npz` file of a stranger: every size is checked before anything is unpacked, and nothing is evaluated."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from typing import BinaryIO

import numpy as np

#: What `numpy.savez` writes before a flat array of unsigned integers, and the only thing that is read.
_DESCRIPTION = re.compile(rb"\{'descr': '[|<](u[1248])', 'fortran_order': False, 'shape': \((\d{1,12}),\), \} *\n")
_NAME = re.compile(r"(header|digest|t\d{1,6})\.npy")
_MAX_DIRECTORY = 8 << 20  # of an archive's list of entries, each of which becomes an object
_MAGIC = b"\x93NUMPY\x01\x00"


class Unreadable(ValueError):
    """Why a file is no archive of flat unsigned arrays."""


class Oversized(ValueError):
    """More than a reader is willing to hold; the message says how much."""


def read_arrays(path: str | os.PathLike[str], most: int) -> dict[str, np.ndarray]:
    """The arrays of a file by name, read-only; they may have `most` bytes together.

    Raises Unreadable for anything but what `numpy.savez` or `savez_compressed` writes for a bundle, Oversized for more than
    `most` bytes, OSError for a file that cannot be opened.
    """
    if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
        raise Unreadable("it is no ordinary file")
    with open(path, "rb") as file:
        _check_directory(file)
        try:
            with zipfile.ZipFile(file) as archive:
                return _members(archive, most)
        except (
            zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, IndexError, OSError, OverflowError,
            NotImplementedError, RuntimeError,
        ) as error:  # fmt: skip
            if isinstance(error, Oversized):
                raise
            raise Unreadable(str(error) or type(error).__name__) from error


def _check_directory(file: BinaryIO) -> None:
    """The last record of the archive names a list of entries that is small enough to be read."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 42))
    last = file.read()
    if last[-22:-18] != b"PK\x05\x06" or last[-2:] != b"\0\0":
        raise Unreadable("the end of an archive is missing")
    listed = int.from_bytes(last[-10:-6], "little")
    if listed > _MAX_DIRECTORY or last[-42:-38] == b"PK\x06\x07":  # the second: a longer list stands elsewhere
        raise Oversized(f"it lists its entries in {listed >> 20} MB or more; a bundle needs at most {_MAX_DIRECTORY >> 20}")


def _members(archive: zipfile.ZipFile, most: int) -> dict[str, np.ndarray]:
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > most:
        raise Oversized(f"it would unpack to {unpacked >> 20} MB; a bundle has at most {most >> 20}")
    arrays: dict[str, np.ndarray] = {}
    for entry in entries:
        name = _NAME.fullmatch(entry.filename)
        if name is None or name[1] in arrays:
            raise Unreadable(f"it has an entry {entry.filename[:40]!r}")
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
            raise Unreadable(f"{name[1]} is packed in a way that NumPy does not use")
        arrays[name[1]] = _array(name[1], archive.read(entry))
    return arrays


def _array(name: str, text: bytes) -> np.ndarray:
    start = len(_MAGIC) + 2
    length = int.from_bytes(text[len(_MAGIC) : start], "little")
    described = _DESCRIPTION.fullmatch(text[start : start + length])
    if not text.startswith(_MAGIC) or described is None:
        raise Unreadable(f"{name} is no flat array of unsigned integers")
    dtype, count = np.dtype(described[1].decode()), int(described[2])
    if count * dtype.itemsize != len(text) - start - length:
        raise Unreadable(f"{name} is cut short")
    return np.frombuffer(text, dtype, offset=start + length)
