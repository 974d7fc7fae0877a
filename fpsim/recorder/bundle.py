"""Bundles: what a machine computed, as raw bits in one file that holds no code.

A bundle is an `.npz` of unsigned arrays: `header` (JSON in UTF-8), `digest` (SHA-256 over the header and every array) and the
tensors' bits, `t0`, `t1`, ... A tensor that occurs twice is held once. The digest tells an altered file from the one that was
written; it is no signature, for whoever alters a file can compute another.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from .archive import Oversized, Unreadable, read_arrays

VERSION = 1
KIND = "fpsim bundle"
MAX_BYTES = 16 << 20  # of a file
MAX_HEADER = 16 << 20  # of the description of all that was recorded
MAX_TENSORS = 60_000
_MAX_UNPACKED = 1 << 28  # what a file may unpack to: a small one must not fill the memory
_MAX_DEPTH = 40  # of the header
_MAX_DIMENSIONS = 64  # torch has no more

#: How many bytes an element of each dtype takes, by torch's name of the dtype.
SIZES = {
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8, "uint16": 2, "uint32": 4, "uint64": 8,
}  # fmt: skip


class BundleError(ValueError):
    """A file that is no bundle, that another version wrote, that is cut short, that was altered, or that no recorder writes."""


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

        Raises TooLarge for more than `limit` bytes, or for more than any reader takes; nothing is written then.
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
        if text.nbytes > MAX_HEADER or len(self.tensors) > MAX_TENSORS:
            raise TooLarge(
                f"{path}: {len(self.records)} records take {text.nbytes / 2**20:.1f} MB of description and {len(self.tensors)} "
                f"tensors, and a bundle may have {MAX_HEADER >> 20} MB and {MAX_TENSORS}"
            )
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
    short, that was altered or whose header is not what this says; FileNotFoundError where there is none.
    """
    try:
        arrays = read_arrays(path, _MAX_UNPACKED)
        text, digest = arrays.pop("header", None), arrays.pop("digest", None)
        if text is None or digest is None:
            raise Unreadable("it has no header")
        header = _parsed(text)
    except Oversized as error:
        raise BundleError(f"{path} is refused: {error}") from None
    except Unreadable as error:
        raise BundleError(f"{path} is no bundle, or it is cut short ({error}); record it again") from None
    if header.get("kind") != KIND:
        raise BundleError(f"{path} is no bundle of fpsim")
    if header.get("version") != VERSION:
        raise BundleError(
            f"{path} is a bundle of version {str(header.get('version'))[:20]}; this fpsim reads version {VERSION}: "
            "record it again, or use the fpsim that wrote it"
        )
    if digest.tobytes() != _digest(text, arrays):
        raise BundleError(f"{path} was altered after it was recorded: its digest does not fit; record it again")
    try:
        return _assemble(header, arrays)
    except _Misfit as error:
        raise BundleError(f"{path} has a header that does not fit its arrays ({error})") from None


def _parsed(text: np.ndarray) -> dict[str, Any]:
    if text.nbytes > MAX_HEADER:
        raise Oversized(f"its header has {text.nbytes >> 20} MB; a bundle has at most {MAX_HEADER >> 20}")
    try:
        header = json.loads(text.tobytes().decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"its header is no JSON: {str(error)[:80]}") from None
    level, depth = [header], 0
    while level:
        depth += 1
        if depth > _MAX_DEPTH:
            raise Unreadable(f"its header nests more than {_MAX_DEPTH} levels")
        level = [
            item
            for value in level
            if isinstance(value, (dict, list))
            for item in (value.values() if isinstance(value, dict) else value)
            if isinstance(item, (dict, list))
        ]
    if not isinstance(header, dict):
        raise Unreadable("its header is no object")
    return header


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


class _Misfit(ValueError):
    """What in a header is not as it must be."""


def _assemble(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Bundle:
    wanted: dict[str, Any] = {"environment": dict, "records": list, "stopped": (str, type(None)), "tensors": list}
    for name, kind in wanted.items():
        if not isinstance(header.get(name, ...), kind):
            raise _Misfit(f"{name!r} is missing or of another kind")
    if not all(isinstance(record, dict) for record in header["records"]):
        raise _Misfit("a record is no object")
    if arrays.keys() != {f"t{number}" for number in range(len(header["tensors"]))}:
        raise _Misfit(f"{len(header['tensors'])} tensors are described, and there are {len(arrays)} arrays")
    bundle = Bundle(header["environment"])
    bundle.records, bundle.stopped = header["records"], header["stopped"]
    for number, description in enumerate(header["tensors"]):
        bits = arrays[f"t{number}"]
        dtype, shape, strides = _description(number, description)
        if bits.itemsize != SIZES[dtype] or bits.size != math.prod(shape):
            raise _Misfit(f"tensor {number}")
        bundle.tensors.append((dtype, shape, strides, bits))
        bundle.nbytes += bits.nbytes
    return bundle


def _description(number: int, value: Any) -> tuple[str, tuple[int, ...], tuple[int, ...]]:
    """dtype, shape and strides. No dimension is larger than a file's arrays, not even one of a tensor without elements."""
    if isinstance(value, list) and len(value) == 3 and isinstance(value[0], str) and value[0] in SIZES:
        dtype, *lists = value
        if all(isinstance(item, list) and all(type(size) is int for size in item) for item in lists):
            shape, strides = map(tuple, lists)
            extent = math.prod(size for size in shape if size != 0)
            if len(shape) <= _MAX_DIMENSIONS and min(shape, default=0) >= 0 and extent <= _MAX_UNPACKED:
                return dtype, shape, strides
    raise _Misfit(f"the description of tensor {number}")


def _digest(text: np.ndarray, arrays: dict[str, np.ndarray]) -> bytes:
    digest = hashlib.sha256(text.tobytes())
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape} ".encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.digest()
