"""Units and conversions against the instructions themselves, where this processor has them and a C compiler is there."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import fpsim
from fpsim.hardware import CONVERSIONS, convert, product

CONVERSION_PROBE = r"""
#include <immintrin.h>
#include <stdio.h>
#ifndef MODE
#define MODE 0
#endif
static unsigned in[1 << 16];
static unsigned short half[1 << 16];
int main(void) {
    size_t n;
#ifdef WIDEN
    while ((n = fread(half, 2, 1 << 16, stdin)) > 0) {
        for (size_t i = 0; i < n; i += 8)
            _mm256_storeu_ps((float *)(in + i), _mm256_cvtph_ps(_mm_loadu_si128((__m128i *)(half + i))));
        fwrite(in, 4, n, stdout);
    }
#else
    while ((n = fread(in, 4, 1 << 16, stdin)) > 0) {
        for (size_t i = 0; i < n; i += 16) {
#ifdef BF16
            __m512 x = _mm512_loadu_ps((float *)(in + i));
            _mm256_storeu_si256((__m256i *)(half + i), (__m256i)_mm512_cvtneps_pbh(x));
#else
            for (int j = 0; j < 16; j += 8)
                _mm_storeu_si128((__m128i *)(half + i + j), _mm256_cvtps_ph(_mm256_loadu_ps((float *)(in + i + j)), MODE));
#endif
        }
        fwrite(half, 2, n, stdout);
    }
#endif
    return 0;
}
"""

DOT_PROBE = r"""
#include <immintrin.h>
#include <stdio.h>
#include <stdlib.h>
/* d[i][j] = dp(c[i][j], a[i], b[j]); counts m and n (a multiple of 16), then a, b (pairs of bf16) and c row by row. */
int main(void) {
    unsigned count[2];
    if (fread(count, 4, 2, stdin) != 2) return 1;
    unsigned *a = malloc(4 * count[0]), *b = malloc(4 * count[1]);
    float *row = malloc(4 * count[1]);
    if (fread(a, 4, count[0], stdin) != count[0] || fread(b, 4, count[1], stdin) != count[1]) return 1;
    for (unsigned i = 0; i < count[0]; ++i) {
        if (fread(row, 4, count[1], stdin) != count[1]) return 1;
        __m512bh left = (__m512bh)_mm512_set1_epi32((int)a[i]);
        for (unsigned j = 0; j < count[1]; j += 16) {
            __m512bh right = (__m512bh)_mm512_loadu_si512(b + j);
            _mm512_storeu_ps(row + j, _mm512_dpbf16_ps(_mm512_loadu_ps(row + j), left, right));
        }
        fwrite(row, 4, count[1], stdout);
    }
    return 0;
}
"""


def need(*instructions):
    """Skip, saying so, unless this processor has them; the C compiler otherwise."""
    cpu = Path("/proc/cpuinfo")
    has = cpu.read_text().split() if cpu.exists() else []
    for name in instructions:
        if name not in has:
            pytest.skip(f"this processor has no {name}")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler to call the instruction with")
    return compiler


def probe(folder, compiler, source, *options):
    """A function that runs a compiled source on bytes."""
    (folder / "probe.c").write_text(source)
    target = folder / "probe"
    done = subprocess.run(
        [compiler, "-O1", *options, "-o", target, folder / "probe.c"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"the C compiler does not know the instruction: {done.stderr.strip().splitlines()[-1]}")

    def run(*arrays):
        given = b"".join(np.ascontiguousarray(x).tobytes() for x in arrays)
        return subprocess.run([target], input=given, capture_output=True, check=True).stdout

    return run


def single_codes(count, target):
    """float32 codes: random bits, and numbers at and next to the values and midpoints of a 16-bit format."""
    generator = np.random.default_rng(0)
    random = generator.integers(0, 2**32, count, dtype=np.uint32)
    codes = generator.integers(0, 2**15 - 1, count).astype(np.uint16)
    near = [fpsim.decode(codes + np.uint16(step), target).astype(np.float64) for step in (0, 1)]
    with np.errstate(invalid="ignore", over="ignore"):
        middle = ((near[0] + near[1]) / 2).astype(np.float32).view(np.uint32)
    shifted = middle + generator.integers(-2, 3, count).astype(np.uint32)
    return np.concatenate([random, middle, shifted, shifted ^ np.uint32(1 << 31)])


MODES = {"nearest-even": 0, "down": 1, "up": 2, "toward-zero": 3}


@pytest.mark.parametrize("rounding", MODES)
def test_vcvtps2ph(rounding, tmp_path):
    run = probe(tmp_path, need("f16c"), CONVERSION_PROBE, "-mavx", "-mf16c", f"-DMODE={MODES[rounding]}")
    codes = single_codes(1 << 18, "fp16")
    wanted = np.frombuffer(run(codes), np.uint16)
    assert np.array_equal(convert(codes, "vcvtps2ph", rounding), wanted)


@pytest.mark.exhaustive
@pytest.mark.parametrize("rounding", MODES)
def test_vcvtps2ph_on_a_sweep(rounding, tmp_path):
    """Every 17th operand of magnitude 2^-26 to 2^17, and every 1024th of all."""
    run = probe(tmp_path, need("f16c"), CONVERSION_PROBE, "-mavx", "-mf16c", f"-DMODE={MODES[rounding]}")
    first, last = np.array([2.0**-26, 2.0**17], np.float32).view(np.uint32).tolist()
    whole = np.arange(0, 2**32, 1024, dtype=np.uint64).astype(np.uint32)
    for begin in (None, *range(first, last, 17 << 22)):
        codes = whole if begin is None else np.arange(begin, min(begin + (17 << 22), last), 17, dtype=np.uint32)
        for sign in (0, 1 << 31):
            given = codes ^ np.uint32(sign)
            given = given[: given.size // 16 * 16]
            assert np.array_equal(convert(given, "vcvtps2ph", rounding), np.frombuffer(run(given), np.uint16))


def test_vcvtph2ps(tmp_path):
    run = probe(tmp_path, need("f16c"), CONVERSION_PROBE, "-mavx", "-mf16c", "-DWIDEN")
    codes = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    assert np.array_equal(convert(codes, "vcvtph2ps"), np.frombuffer(run(codes), np.uint32))


def test_vcvtneps2bf16(tmp_path):
    run = probe(tmp_path, need("avx512_bf16"), CONVERSION_PROBE, "-mavx512f", "-mavx512bf16", "-mf16c", "-DBF16")
    codes = single_codes(1 << 18, "bf16")
    assert np.array_equal(convert(codes, "vcvtneps2bf16"), np.frombuffer(run(codes), np.uint16))


def bfloat16_pairs(generator, count):
    """Pairs of bf16 codes: random bits, half of them with exponents whose products meet the addend's."""
    bits = generator.integers(0, 2**16, (count, 2)).astype(np.uint16)
    return np.where(generator.random(bits.shape) < 0.5, bits & 0x8FFF | 0x2000, bits).astype(np.uint16)


def test_vdpbf16ps(tmp_path):
    """The instruction on 10^7 lanes: every pair of a with every pair of b, each with an addend of its own."""
    run = probe(tmp_path, need("avx512_bf16"), DOT_PROBE, "-mavx512f", "-mavx512bf16")
    generator = np.random.default_rng(0)
    rows, columns = 3136, 3200
    a, b = bfloat16_pairs(generator, rows), bfloat16_pairs(generator, columns)
    c = generator.integers(0, 2**32, (rows, columns), dtype=np.uint32)
    c = np.where(generator.random(c.shape) < 0.5, c & 0x80FFFFFF, c)
    assert c.size > 10**7
    done = run(np.array([rows, columns], np.uint32), a, b, c)
    wanted = np.frombuffer(done, np.float32).reshape(rows, columns)
    left, right = ((x.astype(np.uint32) << 16).view(np.float32) for x in (a, b))
    for first in range(0, rows, 448):
        part = slice(first, first + 448)
        addend = c[part].view(np.float32)
        got = product(left[part], right.T, unit="avx512_bf16", fmt="bf16", addend=addend)
        number = ~np.isnan(wanted[part])
        assert np.array_equal(np.isnan(got), ~number)
        assert np.array_equal(got[number].view(np.uint32), wanted[part][number].view(np.uint32))


def test_sources_compile(tmp_path):
    """What cannot run here is at least C that a compiler takes, where it knows the instructions."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    probe(tmp_path, compiler, DOT_PROBE, "-mavx512f", "-mavx512bf16")
    probe(tmp_path, compiler, CONVERSION_PROBE, "-mavx512f", "-mavx512bf16", "-mf16c", "-DBF16")


def test_cuda_source_compiles(tmp_path):
    """The recorder's single instructions, for the GPUs that nvcc here knows."""
    compiler = shutil.which("nvcc")
    if compiler is None:
        pytest.skip("no nvcc to compile the CUDA source with")
    source = Path(fpsim.__file__).parent / "recorder" / "mma.cu"
    for options in (["-arch=sm_80"], ["-arch=sm_89", "-DFP8_HALF_OUTPUT"]):
        subprocess.run([compiler, "-c", *options, "-o", tmp_path / "mma.o", source], check=True, capture_output=True)


# The model of the conversions, by its definition, on any processor.


@pytest.mark.parametrize("name", CONVERSIONS)
def test_conversions_by_definition(name):
    row = CONVERSIONS[name]
    every = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    codes = every if row.source.bits == 16 else single_codes(1 << 12, row.target)
    for rounding in row.roundings:
        got = convert(codes, name, rounding)
        x, y = fpsim.decode(codes, row.source), fpsim.decode(got, row.target)
        finite = np.isfinite(x)
        flushed = np.where(np.abs(x) < row.source.min_normal, 0 * x, x) if row.flush else x
        assert np.array_equal(y[finite], fpsim.round(flushed[finite], row.target, rounding))
        assert np.array_equal(np.signbit(y[finite]), np.signbit(x[finite]))
        assert np.array_equal(y[np.isinf(x)], x[np.isinf(x)])
    assert convert(np.array([0x7F800001], np.uint32), "vcvtps2ph")[0] == 0x7E00
    assert convert(np.array([0xFFFFFFFF], np.uint32), "vcvtps2ph")[0] == 0xFFFF
    assert convert(np.array([0x7C01], np.uint16), "vcvtph2ps")[0] == 0x7FC02000
    assert convert(np.array([0x7F812345, 0x80000001], np.uint32), "vcvtneps2bf16").tolist() == [0x7FC1, 0x8000]


def test_bad_conversions():
    with pytest.raises(ValueError, match="unknown instruction 'cvt': known are vcvtps2ph, vcvtph2ps"):
        convert(np.zeros(1, np.uint32), "cvt")
    with pytest.raises(ValueError, match="vcvtneps2bf16 rounds nearest-even, not up"):
        convert(np.zeros(1, np.uint32), "vcvtneps2bf16", "up")
    with pytest.raises(TypeError, match="codes must be uint32, the codes of fp32, got float32"):
        convert(np.zeros(1, np.float32), "vcvtps2ph")
