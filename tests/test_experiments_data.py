"""Data and draws are the same everywhere: their digests are what is written here."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest

from experiments.data import load
from experiments.data.digits import load_digits
from experiments.data.files import FILES, from_files
from experiments.data.shapes import load_shapes
from experiments.data.topics import DIGESTS, UnknownText, load_topics
from experiments.draws import Draws, digest


def test_draws_are_bits_of_philox():
    assert Draws(7, "weights").uniform(3).tolist() == [0.2877201450838379, 0.2971310629391629, 0.807569471215704]
    assert Draws(7, "order").permutation(8).tolist() == [6, 4, 2, 3, 5, 0, 1, 7]
    assert Draws(7, "kinds").integers(10, 6).tolist() == [8, 9, 0, 3, 4, 7]


def test_streams_of_other_names_are_others():
    first = {tuple(Draws(seed, purpose).uniform(2)) for seed in range(5) for purpose in ("a", "b", "c")}
    assert len(first) == 15


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_digests_tell_values_apart_and_nans_not(kind):
    a = np.array([0.0, np.nan, 1.0], kind)
    assert digest(a) == digest(np.copysign(a, np.array([1, -1, 1], kind)))
    assert digest(a) != digest(np.array([-0.0, np.nan, 1.0], kind))
    assert digest(a) != digest(a.reshape(3, 1)) != digest(a.astype(np.float16))


def test_digits():
    data = load_digits()
    assert data.digest == "0413deafccd13fdb"
    assert data.inputs.shape == (1197, 1, 8, 8) and data.test_inputs.shape == (600, 1, 8, 8)


def test_shapes():
    data = load_shapes(200, 100)
    assert data.digest == "b7d7c4505a382a4a"
    assert data.inputs.shape == (200, 3, 32, 32) and set(data.targets) == set(range(10))
    assert -1 <= data.inputs.min() and data.inputs.max() < 1


def test_topics():
    try:
        data = load_topics()
    except UnknownText as error:
        pytest.skip(str(error))
    assert data.digest == "9a506aadb098435f"
    assert (data.inputs[:, 1:] == data.targets[:, :-1]).all()


def test_a_text_of_another_python_is_refused(monkeypatch):
    monkeypatch.setattr("experiments.data.topics.read", lambda: "other text")
    load_topics.cache_clear()
    with pytest.raises(ValueError, match=rf"has the digest \w+; results are of .*{DIGESTS['3.11.7']}"):
        load_topics()


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    return gzip.compress(head + array.tobytes())


def small_files(folder, name):
    """Files of the data set's format with few images in them; their checksums, and what was put in."""
    rng = np.random.default_rng(0)
    parts = []
    for count in (20, 10):
        shape = (count, 3, 32, 32) if name == "cifar10" else (count, 28, 28)
        parts += [rng.integers(0, 256, shape).astype(np.uint8), rng.integers(0, 10, count).astype(np.uint8)]
    if name == "cifar10":
        with tarfile.open(folder / "cifar-10-binary.tar.gz", "w:gz") as archive:
            rows = [np.column_stack([labels, images.reshape(len(images), -1)]) for images, labels in (parts[:2], parts[2:])]
            contents = {f"data_batch_{i + 1}.bin": rows[0][4 * i : 4 * i + 4] for i in range(5)} | {"test_batch.bin": rows[1]}
            for file, content in contents.items():
                member = tarfile.TarInfo(f"cifar-10-batches-bin/{file}")
                member.size = content.nbytes
                archive.addfile(member, io.BytesIO(content.tobytes()))
    else:
        for file, part in zip(FILES[name], parts, strict=True):
            (folder / file).write_bytes(idx(part))
    return {file: hashlib.md5((folder / file).read_bytes()).hexdigest() for file in FILES[name]}, parts


@pytest.mark.parametrize("name", FILES)
def test_standard_files_are_read(tmp_path, name):
    checksums, parts = small_files(tmp_path, name)
    data = from_files(name, tmp_path, checksums)
    for found, put in zip((data.inputs, data.targets, data.test_inputs, data.test_targets), parts, strict=True):
        assert (np.round(found * (255 if found.dtype == np.float32 else 1)).reshape(put.shape) == put).all()
    assert data.inputs.shape[1] == (3 if name == "cifar10" else 1)


@pytest.mark.parametrize("name", FILES)
def test_what_is_missing_or_damaged_is_named(tmp_path, name):
    with pytest.raises(ValueError, match="--root"):
        load(name)
    with pytest.raises(FileNotFoundError, match=r".*".join(FILES[name])):
        from_files(name, tmp_path)
    checksums, _ = small_files(tmp_path, name)
    first = next(iter(FILES[name]))
    with pytest.raises(ValueError, match=f"{first}: its MD5 is"):
        from_files(name, tmp_path)
    (tmp_path / first).write_bytes(gzip.compress(b"no such file"))
    checksums[first] = hashlib.md5((tmp_path / first).read_bytes()).hexdigest()
    with pytest.raises((ValueError, tarfile.TarError)):
        from_files(name, tmp_path, checksums)


def test_an_unknown_name_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="digits, shapes, topics, mnist, fashion-mnist, cifar10"):
        load("imagenet")
