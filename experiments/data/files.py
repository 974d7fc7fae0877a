"""MNIST, Fashion-MNIST and CIFAR-10 from the files that their authors publish, in a folder that the user names."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from experiments.data.dataset import Dataset

_IDX = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
#: MD5 of each file, as published with it.
FILES: dict[str, dict[str, str]] = {
    "mnist": dict(
        zip(
            _IDX,
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873", "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3", "ec29112dd5afa0611ce80d1b7f02629c",
            ),
            strict=True,
        )
    ),
    "fashion-mnist": dict(
        zip(
            _IDX,
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79", "bb300cfdad3c16e7a12a480ee83cd310",
            ),
            strict=True,
        )
    ),
    "cifar10": {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
}  # fmt: skip
_CIFAR = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


def from_files(name: str, root: Path | None, checksums: Mapping[str, str] | None = None) -> Dataset:
    """Images (n, channels, side, side) in 255ths of [0, 1], float32.

    Raises FileNotFoundError with the names of all files that are missing, ValueError for one whose checksum is another or
    whose content is not of the format.
    """
    known = FILES[name] if checksums is None else checksums
    if root is None:
        raise ValueError(f"{name} is read from a folder: --root DIRECTORY, with {', '.join(known)}")
    folder = Path(root)
    if missing := [file for file in known if not (folder / file).is_file()]:
        raise FileNotFoundError(f"{name}: the folder given by --root has no {', '.join(missing)}")
    for file, checksum in known.items():
        if (found := _md5(folder / file)) != checksum:
            raise ValueError(f"{file}: its MD5 is {found}, that of the published file is {checksum}: download it again")
    parts = _cifar(folder / "cifar-10-binary.tar.gz") if name == "cifar10" else [_idx(folder / file) for file in _IDX]
    images, labels, test_images, test_labels = parts
    for some, of in ((images, labels), (test_images, test_labels)):
        if len(some) != len(of):
            raise ValueError(f"{name}: {len(some)} images and {len(of)} labels")
    return Dataset(_pixels(images), labels.astype(np.int64), _pixels(test_images), test_labels.astype(np.int64), 10)


def _pixels(images: np.ndarray) -> np.ndarray:
    """(n, side, side) or (n, 3, side, side) bytes as (n, channels, side, side)."""
    scaled = images.astype(np.float32) / np.float32(255)
    return scaled[:, None] if scaled.ndim == 3 else scaled


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _idx(path: Path) -> np.ndarray:
    """An array of bytes in the IDX format: two zeros, the type (8), the number of axes, their lengths, the elements."""
    with gzip.open(path) as file:
        data = file.read()
    axes = data[3] if len(data) > 3 else 0
    shape = tuple(int(size) for size in np.frombuffer(data[4 : 4 + 4 * axes], ">u4"))
    if data[:3] != b"\0\0\x08" or len(shape) != axes or len(data) != 4 + 4 * axes + int(np.prod(shape)):
        raise ValueError(f"{path.name} is no IDX file of bytes")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _cifar(path: Path) -> list[np.ndarray]:
    """Training and test images and labels; each record is a label and 3 x 32 x 32 bytes."""
    rows = []
    with tarfile.open(path) as archive:
        members = {Path(member.name).name: member for member in archive}
        for name in _CIFAR:
            file = archive.extractfile(members[name]) if name in members else None
            if file is None:
                raise ValueError(f"{path.name} holds no {name}")
            data = file.read()
            if len(data) % 3073:
                raise ValueError(f"{path.name}: {name} is not made of records of 3073 bytes")
            rows.append(np.frombuffer(data, np.uint8).reshape(-1, 3073))
    train, test = np.concatenate(rows[:-1]), rows[-1]
    return [part for row in (train, test) for part in (row[:, 1:].reshape(-1, 3, 32, 32), row[:, 0])]
