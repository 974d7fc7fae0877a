"""Machine code is found again, and no process is ever given another kernel's."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from numba.core import config

from fpsim._kernels import storage

ROOT = Path(__file__).parents[1]
VARIANTS = 40
SCRIPT = """
import pathlib, sys, time
from fpsim._kernels.compiler import kernel

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


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "variants.py"
    script.write_text(SCRIPT)

    def start(name, other, order):
        env = {**os.environ, "FPSIM_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(script), str(tmp_path), name, other, repr(list(order))]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return start


def lines(process):
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return [tuple(map(int, line.split())) for line in output.splitlines()]


def test_two_processes_compile_at_once_and_a_third_finds_all(start):
    processes = {start("a", "b", range(0, VARIANTS, 2)): 0, start("b", "a", range(1, VARIANTS, 2)): 1}
    for process, first in processes.items():
        assert lines(process) == [(n, 100 + n, 0) for n in range(first, VARIANTS, 2)]
    assert lines(start("c", "c", range(VARIANTS))) == [(n, 100 + n, 1) for n in range(VARIANTS)]


@pytest.mark.parametrize("damage", ["another kernel's", "cut short", "empty"])
def test_a_wrong_file_is_not_run(start, tmp_path, damage):
    lines(start("a", "a", [1, 2]))
    one, two = (tmp_path / "cache").rglob("*.kernel")
    if damage == "another kernel's":
        one.write_bytes(two.read_bytes())
    else:
        one.write_bytes(two.read_bytes()[: 40 if damage == "cut short" else 0])
    assert sorted(lines(start("b", "b", [1, 2]))) in ([(1, 101, 0), (2, 102, 1)], [(1, 101, 1), (2, 102, 0)])
    assert sorted(lines(start("c", "c", [1, 2]))) == [(1, 101, 1), (2, 102, 1)]


def test_a_full_disk_is_said_and_the_kernel_runs(start, tmp_path):
    script = tmp_path / "variants.py"
    full = "import os\ndef full(*paths): raise OSError(28, 'No space left on device')\nos.replace = full\n"
    script.write_text(full + SCRIPT)
    process = start("a", "a", [1])
    output, errors = process.communicate(timeout=300)
    assert output.split() == ["1", "101", "0"]
    assert "RuntimeWarning: fpsim could not keep a compiled kernel: [Errno 28] No space left on device" in errors
    assert not [path for path in (tmp_path / "cache").rglob("variants*") if path.is_file()]


EVERY_KIND = """
import warnings
import numpy as np
import fpsim

warnings.simplefilter("ignore")
x = np.ones((8, 40), np.float32)
y = np.ones((40, 40), np.float32)
for text in ("fp16", "fp16:fma", "fp16:kahan", "exact", "h100", "mi100", "mi300", "mi250", "amx_fp16", "avx512_fp16"):
    fpsim.matmul(x, y, fmt="fp16", accumulate=text)
for text in ("arm_bf16", "arm_ebf16", "avx512_bf16"):
    fpsim.matmul(x, y, fmt="bf16", accumulate=text)
for mode in ("down", "odd", "stochastic"):
    fpsim.matmul(x, y, fmt="fp16", accumulate="fp16", rounding=mode, seed=1 if mode == "stochastic" else None)
fpsim.matmul(x, y, fmt="fp16", accumulate="fp16", counters=fpsim.Counters())
fpsim.matmul(x, y, fmt="fp16", accumulate="fp16", error_bound=True)
fpsim.sum(y, fmt="fp16", axis=0)
"""


def test_a_second_process_stores_no_kernel_again(tmp_path):
    """A kernel that is made with an object of this process alone is never found again: it would be stored each time."""
    env = {**os.environ, "FPSIM_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    found = []
    for _ in range(2):
        subprocess.run([sys.executable, "-c", EVERY_KIND], env=env, check=True, timeout=300)
        found.append(sorted(path.name for path in tmp_path.rglob("*.kernel")))
    assert found[0] == found[1]
    assert len(found[0]) >= 20


def double(x):
    return 2 * x


def test_threads_that_make_kernels_at_once_keep_them_in_the_folder():
    """Numba takes the folder from a global, which each of them sets and sets back."""
    previous, interval = config.CACHE_DIR, sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: storage.StoredCode(double), range(400)))
    finally:
        sys.setswitchinterval(interval)
    assert {Path(code._cache_path).parent for code in made} == {Path(storage.CACHE_FOLDER)}
    assert config.CACHE_DIR == previous
