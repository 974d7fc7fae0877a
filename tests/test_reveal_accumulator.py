"""The format that a black box adds in, and its order: what both give is what the black box gives, bit for bit."""

import numpy as np
import pytest
import torch

import fpsim
from fpsim.accumulation.reveal_format import format_of_additions

LIBRARIES = {  # function of leaves, their dtype, what its results are values of, the format inside
    "NumPy's float16 sum": (lambda x: x.sum(), np.float16, "fp16", "fp32"),
    "NumPy's float16 column": (lambda x: np.add.reduce(x[:, None], axis=0)[0], np.float16, "fp16", "fp32"),
    "NumPy's float16 rows": (lambda x: np.add.reduce(np.stack([x, x], 1), axis=0)[0], np.float16, "fp16", "fp16"),
    "NumPy's float32 sum": (lambda x: x.sum(), np.float32, "fp32", "fp32"),
    "torch's float16 sum": (lambda x: torch.from_numpy(x).sum(), np.float16, "fp16", "fp32"),
    "torch's bfloat16 sum": (lambda x: torch.from_numpy(x).bfloat16().sum(), np.float32, "bf16", "fp32"),
    "torch's float32 sum": (lambda x: torch.from_numpy(x).sum(), np.float32, "fp32", "fp32"),
}


@pytest.mark.parametrize("name", LIBRARIES)
@pytest.mark.parametrize("n", [3, 8, 37])
def test_replays_of_a_librarys_sums_match(name, n):
    function, dtype, fmt, inside = LIBRARIES[name]
    count = 128 if fmt == "bf16" else None
    found = fpsim.reveal(function, n, dtype=dtype, largest_count=count, accumulator=True)
    assert found.format == fpsim.get_format(inside)
    random = np.random.default_rng(n)
    for _ in range(50):
        x = random.normal(size=n) * 2.0 ** random.integers(-6, 6, n)
        x = np.asarray(fpsim.round(x, fmt), np.float32)
        again = fpsim.sum(x, fmt=fmt, accumulate=found)
        assert float(again) == float(function(x.astype(dtype)))


@pytest.mark.parametrize("text", ["fp16", "fp16:pairwise", "bf16:lanes(4)", "fp32:blocked(4)", "e8m13", "e5m2", "e6m9"])
def test_what_fpsim_adds_in_is_found(text):
    accumulator = fpsim.get_accumulator(text)
    few = min(1024, 2 ** (accumulator.format.precision - 1))

    def function(x):
        return fpsim.sum(x, fmt="fp32", accumulate=accumulator)

    if accumulator.format.emax > 100:
        found = fpsim.reveal(function, 9, largest_count=few, accumulator=True)
    else:
        mask = 2.0 ** (14 if few > 4 else 4)
        found = fpsim.reveal(function, 9, largest_count=few, unit=2.0**-14, mask=mask, accumulator=True)
    assert (found.format.precision, found.format.emax) == (accumulator.format.precision, accumulator.format.emax)
    assert found.order(9).canonical() == accumulator(9).canonical()


def test_what_has_no_one_format_says_so():
    def mixed(x):  # the first sum in float16, the rest in float32
        first = np.float16(x[0]) + np.float16(x[1])
        return np.float32(first) + x[2] + x[3]

    def downward(x):
        return fpsim.sum(x, fmt="fp32", accumulate="fp16", rounding="toward-zero")

    def aligned(x):  # three terms at once, cut 20 bits below the largest
        quantum = 2.0 ** (np.floor(np.log2(np.abs(x[:3]).max() or 1)) - 20)
        return np.float32(np.trunc(x[:3] / quantum).sum() * quantum) + x[3]

    with pytest.raises(ValueError, match="several precisions"):
        fpsim.reveal(mixed, 4, dtype=np.float32, unit=2.0**-24, mask=2.0**15, largest_count=8, accumulator=True)
    with pytest.raises(ValueError, match="toward zero"):
        format_of_additions(downward, fpsim.get_accumulator("fp16")(5), np.dtype(np.float32))
    with pytest.raises(ValueError, match="three leaves"):
        fpsim.reveal(np.sum, 2, accumulator=True)
    with pytest.raises(ValueError, match="several terms"):
        fpsim.reveal(aligned, 4, accumulator=True)


def test_a_function_that_computes_below_the_dtype_is_told_of_it():
    with pytest.raises(ValueError, match="dtype"):
        fpsim.reveal(lambda x: x.astype(np.float16).sum(), 5, accumulator=True)
