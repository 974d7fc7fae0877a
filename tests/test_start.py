"""A second process compiles nothing and stores nothing, whatever it calls."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from fpsim.backend.numba.compiler import inlined, kernel
from fpsim.backend.numba.identity import identity, identity_of_function
from fpsim.backend.numba.storage import CACHE_FOLDER
from tests import quick_python

ROOT = Path(__file__).parents[1]


def run_every_entry(folder, cache):
    folder.mkdir()
    env = {**os.environ, "FPSIM_CACHE_DIR": str(cache), "PYTHONPATH": str(ROOT)}
    command = [quick_python.executable(), str(ROOT / "tests" / "every_entry.py")]
    return json.loads(subprocess.run(command, cwd=folder, env=env, check=True, timeout=900, capture_output=True).stdout)


def test_a_second_process_compiles_nothing_and_stores_nothing(tmp_path):
    """By Numba's own events: a kernel that is made with an object of one process alone would be compiled by each."""
    run_every_entry(tmp_path / "first", Path(CACHE_FOLDER).parent)
    cache = tmp_path / "cache"
    shutil.copytree(CACHE_FOLDER, cache / Path(CACHE_FOLDER).name)  # beside which no other test's kernels are stored
    found = sorted(path.name for path in cache.rglob("*"))
    assert len(found) >= 200
    assert run_every_entry(tmp_path / "second", cache) == []
    assert sorted(path.name for path in cache.rglob("*")) == found


@kernel
def twice(x):
    return 2 * x


@inlined
def thrice(x):
    return 3 * x


@kernel
def six_times(x):
    return 2 * thrice(x)


def closing_over(value):
    def closed(x):
        return value

    return closed


@pytest.mark.parametrize(
    "value",
    [object(), np.random.default_rng(0), iter(()), sys, {"a": object()}, closing_over(object())],
    ids=["object", "generator", "iterator", "module", "dict", "function"],
)
def test_a_kernel_that_no_other_process_would_find_is_refused(value):
    with pytest.raises(TypeError, match=r"closes over 'value'.*not known to be the same in another process"):
        kernel(closing_over(value))


def test_a_kernel_that_refers_to_itself_is_refused():
    def scope():
        @kernel
        def recursive(x):
            return recursive(x - 1) if x > 0 else 0

    with pytest.raises(TypeError, match="closes over 'recursive', which has no value yet"):
        scope()


IDENTITIES = """
import numpy as np
from numba import njit, types
from fpsim.backend.numba.identity import identity
from tests.test_start import closing_over, twice

VALUES = {
    "number": 1, "other type": 1.0, "negative zero": -0.0, "text": "1", "set": {"a", "b", "c"}, "dtype": np.dtype("f4"),
    "class": np.float32, "scalar": np.float32(1), "array": np.arange(3.0), "type": types.float32, "tuple": (1, (2, None)),
    "kernel": twice, "kernel of a kernel": njit(closing_over(twice)), "another": njit(closing_over(2)),
    "other options": njit(fastmath={"nnan", "nsz", "arcp"})(closing_over(2)), "function": closing_over({"x": {"y", "z"}}),
}
print({name: identity(value) for name, value in VALUES.items()})
"""


def test_identities_are_the_same_in_another_process_and_differ_where_values_do():
    found = []
    for seed in "12":
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", IDENTITIES], env=env, check=True, capture_output=True, timeout=100)
        found.append(done.stdout)
    assert found[0] == found[1]
    values = eval(found[0])
    assert len(set(values.values())) == len(values)


def test_the_same_code_elsewhere_is_another_kernel():
    assert identity_of_function(closing_over(1)) == identity_of_function(closing_over(1))
    assert identity_of_function(closing_over(1)) != identity_of_function(closing_over(2))
    assert identity(njit(closing_over(1))) != identity(njit(fastmath=True)(closing_over(1)))


def test_what_is_inlined_is_part_of_kernels_and_nothing_by_itself():
    assert six_times(7) == 42
    for value in (7, 7.0):
        with pytest.raises(TypeError, match="thrice is inlined into kernels, and cannot be called by itself"):
            thrice(value)
    assert not list(Path(CACHE_FOLDER).glob("*thrice*"))
    assert list(Path(CACHE_FOLDER).glob("*six_times*"))


def test_compilation_leaves_garbage_collection_as_it_was():
    for enabled in (True, False):
        (gc.enable if enabled else gc.disable)()
        try:
            kernel(closing_over(enabled))(1)
            assert gc.isenabled() is enabled
        finally:
            gc.enable()
