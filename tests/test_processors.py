"""The same bits on every processor: levels of x86 simulated by what kernels are compiled for, and what every other one runs.

Each level is a process of its own, with a folder of its own for kernels: none can run another's. This processor's are those
of all other tests: compiled for the same instructions, they are the same kernels. What a level must give is recorded; after a
change that is meant, `python -m tests.processor_cases --all > tests/recordings/processors.json` records anew.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from llvmlite import binding
from numba.core import codegen

from fpsim.backend.numba.processor import instructions
from fpsim.backend.numba.storage import CACHE_FOLDER

ROOT = Path(__file__).parents[1]
RECORDED = json.loads((ROOT / "tests/recordings/processors.json").read_text())
HOST = frozenset(name[1:] for name in codegen.get_host_cpu_features().split(",") if name.startswith("+"))

SSE2, AVX2 = "+sse2", "+sse4.2,+popcnt,+avx,+avx2,+bmi,+bmi2"
THIS = {"FPSIM_PORTABLE": "0"}
AVX512 = f"{AVX2},+fma,+f16c,+avx512f,+avx512bw,+avx512cd,+avx512dq,+avx512vl"


def level(name, processor=None, features=None, portable=False, everything=False):
    """A row: what the process finds in its environment, and whether it does every case."""
    environment = {"FPSIM_PORTABLE": str(int(portable))}
    if processor:
        environment |= {"NUMBA_CPU_NAME": processor, "NUMBA_CPU_FEATURES": features}
    return pytest.param(name, environment, everything, id=name + (", every case" if everything else ""))


#: What kernels ask for beside instructions of x86.
ASKED_FOR = {"fma", "avx2", "avx512f", "avx512dq"}
LEVELS = [  # x86, FMA and AVX-512 are each off by itself, x86 and FMA together, and AVX2 with FMA
    level("portable without FMA", "x86-64", SSE2, portable=True),
    level("AVX2 without FMA", "x86-64-v2", f"{AVX2},+f16c"),
    level("AVX2", "x86-64-v3", f"{AVX2},+fma,+f16c"),
    level("AVX-512", "x86-64-v4", AVX512),
    level("x86 without FMA", "x86-64", SSE2, everything=True),
    level("portable with FMA", portable=True, everything=True),
    level("this processor", everything=True),
]


def environment_of(name, environment):
    """What a process finds that compiles for a level, in the level's own folder; for this processor, in that of all tests."""
    folder = Path(CACHE_FOLDER).parent
    if environment != THIS:
        folder /= f"processors/{name.replace(' ', '-')}"
        folder.parent.mkdir(mode=0o700, exist_ok=True)
    return {**os.environ, **environment, "FPSIM_CACHE_DIR": str(folder), "PYTHONWARNINGS": "ignore"}


def digests(name, environment, everything):
    env = environment_of(name, environment)
    command = [sys.executable, "-m", "tests.processor_cases", *(["--all"] if everything else [])]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert any(Path(env["FPSIM_CACHE_DIR"]).rglob("*.kernel"))
    return json.loads(done.stdout)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name, environment, everything", LEVELS)
def test_a_level_gives_the_recorded_bits(name, environment, everything):
    wanted = {feature[1:] for feature in environment.get("NUMBA_CPU_FEATURES", "").split(",")} - {""}
    is_x86 = binding.get_process_triple().startswith(("x86_64", "amd64"))
    if wanted and not (is_x86 and wanted <= HOST):
        pytest.skip("this processor cannot run what is compiled for that one")
    if wanted & ASKED_FOR == HOST & ASKED_FOR and environment["FPSIM_PORTABLE"] == "0" and not everything:
        pytest.skip("this processor has what kernels ask for there: its own kernels do every case")
    found = digests(name, environment, everything)
    assert found == {name: RECORDED[name] for name in found}
    assert not everything or set(found) == set(RECORDED)


# What a processor has, from what LLVM says of it.

NOTHING = frozenset()
MACHINES = {
    "Sapphire Rapids": ("x86_64-unknown-linux-gnu", frozenset({"avx2", "fma", "avx512f"}), True, True),
    "a Mac with Intel's": ("x86_64-apple-darwin22.6.0", frozenset({"avx2", "fma"}), True, True),
    "Windows": ("x86_64-pc-windows-msvc", frozenset({"sse4.2"}), True, False),
    "FreeBSD": ("amd64-portbld-freebsd14.0", frozenset({"sse2"}), True, False),
    "AVX-512 alone, which brings FMA": ("x86_64-unknown-linux-gnu", frozenset({"avx512f"}), True, True),
    "Apple silicon": ("arm64-apple-darwin23.5.0", NOTHING, False, True),
    "Apple silicon with pointer authentication": ("arm64e-apple-darwin23.5.0", frozenset({"fullfp16", "neon"}), False, True),
    "Graviton": ("aarch64-unknown-linux-gnu", frozenset({"neon", "sve"}), False, True),
    "ARM64, big endian": ("aarch64_be-unknown-linux-gnu", NOTHING, False, True),
    "ARM64 with Windows": ("aarch64-pc-windows-msvc", NOTHING, False, True),
    "POWER": ("powerpc64le-unknown-linux-gnu", frozenset({"vsx"}), False, True),
    "32-bit ARM": ("armv7l-unknown-linux-gnueabihf", frozenset({"vfp4"}), False, False),
    "RISC-V": ("riscv64-unknown-linux-gnu", frozenset({"d"}), False, False),
    "not x86, with a feature of that name": ("riscv64-unknown-linux-gnu", frozenset({"fma", "avx512f"}), False, False),
}


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_processor_has(machine):
    triple, features, is_x86, has_fma = MACHINES[machine]
    found = instructions(triple, features)
    assert (found.is_x86, found.has_fma) == (is_x86, has_fma)
    assert found.features == (features if is_x86 else NOTHING)


def test_portable_forbids_what_x86_alone_has():
    triple, features, *_ = MACHINES["Sapphire Rapids"]
    found = instructions(triple, features, portable=True)
    assert not found.is_x86 and found.features == NOTHING and found.has_fma
    assert not instructions(triple, frozenset({"avx2"}), portable=True).has_fma


def test_another_value_of_the_switch_is_refused():
    code = "import fpsim.backend.numba.processor"
    env = {**os.environ, "FPSIM_PORTABLE": "yes"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode != 0 and "FPSIM_PORTABLE must be 0 or 1, got 'yes'" in done.stderr
