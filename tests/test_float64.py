"""Under a named format float64 tensors mean themselves: what torch makes of them, and numbers, has torch's own bits."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves

import fpsim

#: Drawn, uninitialized or cast to a format on purpose; and what LAPACK or a formula of several operations computes otherwise
#: where a mode is there, by some units in the last place.
LEFT_OUT = {
    *("empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "empty_permuted"),
    *("float", "cfloat", "chalf", "cov", "svd_lowrank", "pca_lowrank"),
    *("linalg.cond", "linalg.eigvalsh", "linalg.lstsq", "linalg.svdvals", "linalg.matrix_norm", "norm", "addr"),
    *("nn.functional.bilinear", "nn.functional.fractional_max_pool2d", "nn.functional.fractional_max_pool3d"),
    "nn.functional.feature_alpha_dropout_with_train",
}
OPS = [op for op in op_db if torch.float64 in op.dtypes and op.name not in LEFT_OUT and "jiterator" not in op.name]
TAKES = 2  # samples of each operation

BESIDE_NUMBERS = {
    "clamp": lambda x: x.clamp(0.1, 2.7),
    "clamp in place": lambda x: x.clone().clamp_(0.1, 0.3),
    "clamp with out": lambda x: torch.clamp(x, 0.1, 0.3, out=torch.empty_like(x)),
    "one number": lambda x: x[0].clamp(min=0.1),
    "hardtanh": lambda x: F.hardtanh(x, -0.1, 0.3),
    "threshold": lambda x: F.threshold(x, 0.1, 0.3),
    "softshrink": lambda x: F.softshrink(x, 0.1),
    "fmod": lambda x: torch.fmod(x, 0.3),
    "full": lambda x: torch.full((3,), 0.1, dtype=torch.float64),
    "full like": lambda x: torch.full_like(x, 0.1),
    "new full": lambda x: x.new_full((3,), 0.1),
    "scalar tensor": lambda x: torch.scalar_tensor(0.1, dtype=torch.float64),
    "fill": lambda x: torch.fill(x, 0.1),
    "masked fill": lambda x: x.masked_fill(x > 0, 0.1),
    "where": lambda x: torch.where(x > 0, x, 0.1),
    "where, left": lambda x: torch.where(x > 0, 0.1, x),
    "index fill": lambda x: x.index_fill(0, torch.tensor([1]), 0.1),
    "scatter": lambda x: x.scatter(0, torch.tensor([1]), 0.1),
    "to complex128": lambda x: x.to(torch.complex128),
    "copied into complex128": lambda x: torch.zeros(4, dtype=torch.complex128).copy_(x),
    "inverse transform": lambda x: torch.fft.irfft(x),
}


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(torch.nan_to_num(x), torch.nan_to_num(y)) and x.dtype == y.dtype
        if isinstance(x, torch.Tensor) else x == y or (x != x and y != y)
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


def outcome(op, sample):
    torch.manual_seed(0)
    values = tree_leaves(op(sample.input, *sample.args, **sample.kwargs))
    return [item.to_dense() if isinstance(item, torch.Tensor) and item.layout is not torch.strided else item for item in values]


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("op", OPS, ids=lambda op: f"{op.name} {op.variant_test_name}".strip())
def test_operations_on_float64_alone_are_torchs(op):
    compared = 0
    for sample in itertools.islice(op.sample_inputs("cpu", torch.float64), TAKES):
        expected = outcome(op, sample)
        with fpsim.emulate(fmt="fp16", accumulate="fp16"):
            result = outcome(op, sample)
        assert same(result, expected)
        compared += 1
    assert compared


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("name", BESIDE_NUMBERS)
def test_numbers_beside_float64_are_not_rounded(name, granularity):
    x = torch.tensor([0.05, -1.0, 3.0, 0.2], dtype=torch.float64)
    expected = BESIDE_NUMBERS[name](x)
    with fpsim.emulate(fmt="fp16", accumulate="fp16", granularity=granularity):
        assert same([BESIDE_NUMBERS[name](x)], [expected])


def test_a_default_of_float64_means_itself():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with fpsim.emulate(fmt="fp16", accumulate="fp16"):
            assert torch.full((2,), 0.1).tolist() == [0.1, 0.1]
    finally:
        torch.set_default_dtype(before)


def test_float32_tensors_beside_such_numbers_are_of_the_format_as_ever():
    with fpsim.emulate(fmt="fp16", accumulate="fp16"):
        x = torch.tensor([0.05, 3.0])
        for result in (x.clamp(min=0.1), torch.full((2,), 0.1), x.masked_fill(x < 1, 0.1), torch.where(x < 1, 0.1, x)):
            assert torch.equal(result, result.half().float())
