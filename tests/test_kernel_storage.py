"""Machine code is found again, and only what this user's fpsim stored for this very kernel is executed."""

import hashlib
import os
import pickle
import shutil
import signal
import subprocess
import time
import warnings
from pathlib import Path

import pytest

from fpsim.backend.numba import folders
from fpsim.backend.numba.storage import Files
from tests import quick_python

ROOT = Path(__file__).parents[1]
VARIANTS = 40
SCRIPT = """
import pathlib, sys, time
from fpsim.backend.numba.compiler import kernel
from tests import quick_python

def make(number):
    @kernel
    def variant(x):
        return x * 100 + number
    return variant

def meet(other, step):  # both processes have compiled their variant before either saves it
    (folder / f"{name}.{step}").touch()
    while name != other and not (folder / f"{other}.{step}").exists():
        time.sleep(0)

folder, name, other, order = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3], eval(sys.argv[4])
for step, number in enumerate(order):
    variant = make(number)
    save = variant._cache.save_overload
    variant._cache.save_overload = lambda *compiled: (meet(other, step), save(*compiled))
    value = variant(1)
    print(number, value, sum(variant.stats.cache_hits.values()))
"""


def starter(tmp_path):
    script = tmp_path / "variants.py"

    def start(name, other, order, before=""):
        script.write_text(before + SCRIPT)
        env = {**os.environ, "FPSIM_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        command = [quick_python.executable(), str(script), str(tmp_path), name, other, repr(list(order))]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def start(tmp_path):
    return starter(tmp_path)


def lines(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return [tuple(map(int, line.split())) for line in output.splitlines()]


def test_two_processes_compile_at_once_and_a_third_finds_all(start):
    processes = {start("a", "b", range(0, VARIANTS, 2)): 0, start("b", "a", range(1, VARIANTS, 2)): 1}
    for process, first in processes.items():
        assert lines(process) == [(n, 100 + n, 0) for n in range(first, VARIANTS, 2)]
    assert lines(start("c", "c", range(VARIANTS))) == [(n, 100 + n, 1) for n in range(VARIANTS)]


CALLING = """
import sys
import numpy as np
from fpsim.backend.numba.compiler import kernel

def make(number):
    @kernel
    def part(x):  # too long to be inlined
        for i in range(x.size):
            x[i] += number
        for i in range(1, x.size):
            x[i] += x[i - 1] * 3 if x[i - 1] > 7 else x[i - 1]
        for i in range(x.size - 1):
            x[i] -= x[i + 1] * 5 if x[i + 1] < 9 else x[i + 1]
        for i in range(1, x.size):
            x[i] += x[i - 1] * 7 if x[i - 1] > 5 else x[i - 1]
        for i in range(x.size - 1):
            x[i] -= x[i + 1] * 11 if x[i + 1] < 3 else x[i + 1]

    @kernel
    def whole(x):
        part(x)
        for i in range(x.size):
            x[i] += 1
        part(x)

    return part, whole

@kernel
def other(x):
    return x + 1

for number in map(int, sys.argv[1]):
    part, whole = make(number)
    if sys.argv[2] == "part first":  # Numba numbers it as the other process does, and the whole otherwise
        other(1)
        part(np.zeros(9))
    x = np.arange(9.0)
    whole(x)
    y = np.arange(9.0)
    for step in (part.py_func, lambda y: np.add(y, 1, y), part.py_func):
        step(y)
    print(int(np.array_equal(x, y)), sum(whole.stats.cache_hits.values()))
"""


def test_parts_of_kernels_from_two_processes_do_not_take_each_others_place(tmp_path):
    script = tmp_path / "calling.py"
    script.write_text(CALLING)
    env = {**os.environ, "FPSIM_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for numbers, way, hits in (("1", "whole first", 0), ("2", "part first", 0), ("12", "whole first", 1)):
        command = [quick_python.executable(), str(script), numbers, way]
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert lines(process) == [(1, hits)] * len(numbers)


def replace_by(other):
    def damage(path, two):
        path.write_bytes(other(two))

    return damage


def rebuild_as_link(path, two):
    path.unlink()
    path.symlink_to(two)


def rebuild_as_pipe(path, two):
    path.unlink()
    os.mkfifo(path)


class Touch:
    """Its pickle, when read, leaves a file behind."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


DAMAGE = {
    "another kernel's": replace_by(lambda two: two.read_bytes()),
    "cut short": replace_by(lambda two: two.read_bytes()[:40]),
    "cut at the end": replace_by(lambda two: two.read_bytes()[:-1]),
    "empty": replace_by(lambda two: b""),
    "a page of zeros": replace_by(lambda two: two.read_bytes()[:4096] + bytes(4096) + two.read_bytes()[8192:]),
    "a bit of the machine code": replace_by(lambda two: flipped(two.read_bytes(), 1000)),
    "a foreign pickle": replace_by(lambda two: pickle.dumps(Touch(two.parent / "executed"))),
    "writable by others": lambda path, two: path.chmod(0o666),
    "a link": rebuild_as_link,
    "a pipe": rebuild_as_pipe,
    "a key cut short": lambda path, two: (path.parent / "key").write_bytes(b"short"),
    "a key that others can read": lambda path, two: (path.parent / "key").chmod(0o644),
}


SEEN_BY_A_PROCESS = ("another kernel's", "a bit of the machine code", "a foreign pickle", "a key cut short")


@pytest.fixture(scope="module")
def two_kernels(tmp_path_factory):
    """A cache that a process left, with a kernel of variant 1 and one of 2."""
    folder = tmp_path_factory.mktemp("two")
    lines(starter(folder)("a", "a", [1, 2]))
    return folder / "cache"


@pytest.mark.parametrize("damage", SEEN_BY_A_PROCESS)
def test_a_file_that_cannot_be_trusted_is_not_run_but_replaced(start, tmp_path, two_kernels, damage):
    shutil.copytree(two_kernels, tmp_path / "cache")
    one, two = (tmp_path / "cache").rglob("*.kernel")
    DAMAGE[damage](one, two)
    process = start("b", "b", [1, 2])
    output, errors = process.communicate(timeout=300)
    found = sorted(tuple(map(int, line.split())) for line in output.splitlines())
    assert process.returncode == 0, errors
    assert [value for _, value, _ in found] == [101, 102]
    assert sum(hits for *_, hits in found) == (0 if "key" in damage else 1)
    assert "RuntimeWarning: fpsim compiles a kernel anew" in errors
    assert not (two.parent / "executed").exists()
    assert all(Files(path.parent).load(path.name) for path in (one, two))  # as every later process would


@pytest.fixture
def files(tmp_path):
    files = Files(tmp_path / "root" / "0123456789abcdef")
    files.save("one.kernel", b"some code")
    assert files.load("one.kernel") == b"some code"
    return files


def path_of(files, name="one.kernel"):
    return files._folder / name


def is_refused(files, name="one.kernel"):
    with pytest.warns(RuntimeWarning, match="cannot be trusted"):
        return files.load(name) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_and_mended(files, damage):
    data = bytes(range(256)) * 64
    files.save("one.kernel", data)
    files.save("two.kernel", data[::-1])
    DAMAGE[damage](path_of(files), path_of(files, "two.kernel"))
    assert is_refused(files)
    files.save("one.kernel", data)
    assert files.load("one.kernel") == data
    assert not (files._folder / "executed").exists()


def test_no_bit_and_no_byte_can_change(files):
    data = path_of(files).read_bytes()
    for place in range(len(data)):
        for wrong in (*(data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :] for bit in range(8)), data[:place]):
            path_of(files).write_bytes(wrong)
            assert is_refused(files)
    path_of(files).write_bytes(data + b"\0")
    assert is_refused(files)


def test_a_digest_that_anyone_can_make_does_not_pass(files):
    code = b"other code"
    for tag in (hashlib.sha256(code).digest(), hashlib.sha256(b"one.kernel\0" + code).digest(), bytes(32)):
        path_of(files).write_bytes(tag + code)
        assert is_refused(files)


def test_a_file_of_another_name_or_another_folder_does_not_pass(files, tmp_path):
    path_of(files, "two.kernel").write_bytes(path_of(files).read_bytes())
    assert is_refused(files, "two.kernel")
    other = Files(tmp_path / "other" / "0123456789abcdef")
    other.save("one.kernel", b"other code")
    path_of(files).write_bytes(path_of(other).read_bytes())
    assert is_refused(files)


def test_only_the_owner_can_read_what_is_stored(files):
    assert path_of(files).parent.stat().st_mode & 0o777 == 0o700
    for path in path_of(files).parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600


def test_another_users_file_is_refused(files, monkeypatch):
    monkeypatch.setattr(folders, "user", lambda: os.getuid() + 1)
    assert is_refused(files)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Where kernels are to be kept; where they are kept if that cannot be is `tmp_path / "home"`."""
    for variable in ("NUMBA_CACHE_DIR", "HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FPSIM_CACHE_DIR", str(tmp_path / "root"))
    return tmp_path / "root"


def test_the_folder_is_made_for_the_owner_alone(root):
    previous = os.umask(0)
    try:
        with warnings.catch_warnings(action="error"):
            folder = folders.choose()
    finally:
        os.umask(previous)
    assert folder.parent == root
    assert [place.stat().st_mode & 0o777 for place in (root, folder)] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
@pytest.mark.parametrize("which", ["root", "folder"])
def test_a_folder_that_others_can_write_to_is_refused(root, mode, which):
    folder = folders.choose()
    {"root": root, "folder": folder}[which].chmod(mode)
    name = {"root": "root", "folder": folder.name}[which]
    with pytest.warns(RuntimeWarning, match=rf"keeps no compiled kernels in .*{name}: others can write to it"):
        assert folders.choose().parents[1] == root.parent / "home"


def test_another_users_folder_is_refused(root, monkeypatch):
    folders.choose()
    monkeypatch.setattr(folders, "user", lambda: 12345)
    with pytest.warns(RuntimeWarning) as caught:
        folder = folders.choose()
    assert str(caught[0].message).startswith(f"fpsim keeps no compiled kernels in {root}")
    assert "belongs to another user" in str(caught[0].message)
    assert folder is None or folder.parents[1] != root.parent


def test_a_link_in_the_place_of_the_folder_is_refused_and_one_around_it_followed(root, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    root.symlink_to(tmp_path / "elsewhere")
    folder = folders.choose()
    assert folder.parent == root
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with pytest.warns(RuntimeWarning, match="it is a symbolic link"):
        assert folders.choose().parents[1] == tmp_path / "home"


def test_a_shared_folder_of_the_system_is_taken(root):
    root.mkdir()
    root.chmod(0o1777)
    assert folders.choose().parent == root


@pytest.mark.parametrize("gone", ["before it is looked at", "while its files are listed", "while it is removed"])
def test_a_folder_that_another_process_removes_meanwhile_is_no_failure(root, monkeypatch, gone):
    """Two processes that clean up at the same time."""
    folder = root / ("f" * 16)
    folder.mkdir(parents=True)
    calls = {"before it is looked at": "iterdir", "while its files are listed": "lstat", "while it is removed": "is_symlink"}
    plain = getattr(type(folder), calls[gone])

    def after_the_other(path):
        found = plain(path)
        found = list(found) if gone == "before it is looked at" else found
        if path in (root, folder) and folder.exists():
            folder.rmdir()
        return found

    monkeypatch.setattr(type(folder), calls[gone], after_the_other)
    found = folders.stored(root)
    assert all(entry.folder == folder and entry.kernels == 0 for entry in found)
    folders.remove(folder)
    assert not folder.exists()


KILLED = {
    "before its name is right": "os.replace = lambda *paths: os.kill(os.getpid(), 9)",
    "before the key's is": "os.link = lambda *paths: os.kill(os.getpid(), 9)",
    "half written": """
from fpsim.backend.numba import storage
def half(key, name, data):
    size = 1000
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # which ends the process as a kill does
    return bytes(32)
storage._tag = half
""",
}


@pytest.mark.parametrize("moment", KILLED)
def test_a_process_that_is_killed_while_it_stores_harms_no_other(start, tmp_path, moment):
    process = start("a", "a", [1], f"import os, resource, signal\n{KILLED[moment]}\n")
    process.communicate(timeout=300)
    assert process.returncode in (-signal.SIGKILL, -signal.SIGXFSZ)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    left = [path for path in files if path.suffix != ".kernel" and path.name != "key"]
    assert left
    assert lines(start("b", "b", [1])) == [(1, 101, 0)]
    for path in left:
        os.utime(path, (0, 0))
    assert lines(start("c", "c", [1, 2])) == [(1, 101, 1), (2, 102, 0)]
    assert not any(path.exists() for path in left)


def test_a_full_disk_is_said_and_the_kernel_runs(start, tmp_path):
    before = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    process = start("a", "a", [1], before)
    output, errors = process.communicate(timeout=300)
    assert output.split() == ["1", "101", "0"], errors
    assert "RuntimeWarning: fpsim could not keep a compiled kernel: [Errno 27] File too large" in errors
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["key"]


def age(folder, days):
    for path in (folder, *folder.iterdir()):
        os.utime(path, (time.time() - 86400 * days,) * 2)


def version(root, name, size=10):
    folder = root / (name * 16)
    Files(folder).save("one.kernel", bytes(size))
    return folder


def test_folders_of_other_versions_go_when_they_are_unused(tmp_path):
    old, recent = version(tmp_path, "a"), version(tmp_path, "b")
    (tmp_path / "notes").write_text("a user's")
    age(old, 40), age(recent, 20)
    own = version(tmp_path, "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["notes", recent.name, own.name])


def test_a_folder_in_use_counts_as_such(tmp_path):
    folder = version(tmp_path, "a")
    age(folder, 40)
    folders.mark_used(folder)
    folders.tidy(version(tmp_path, "b"))
    assert folder.exists()


def test_the_cache_stays_below_its_limit_and_its_own_version_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "LARGEST", 1000)
    versions = []
    for number, name in enumerate("abcd"):
        versions.append(version(tmp_path, name, 300))
        age(versions[-1], 10 - number)
    own = version(tmp_path, "e", 300)
    assert [entry.folder for entry in folders.stored(tmp_path)] == [own, versions[3]]
    large = version(tmp_path, "f", 2000)
    assert [entry.folder for entry in folders.stored(tmp_path)] == [large]


def test_what_is_not_fpsims_is_left(tmp_path):
    folder = version(tmp_path, "a")
    (folder / "notes").write_text("a user's")
    folders.remove(folder)
    assert [path.name for path in folder.iterdir()] == ["notes"]


def test_a_folder_deleted_meanwhile_is_made_again(files):
    folders.remove(files._folder)
    assert files.load("one.kernel") is None
    files.save("one.kernel", b"some code")
    assert files.load("one.kernel") == b"some code"
