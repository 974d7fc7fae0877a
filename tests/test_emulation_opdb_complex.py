"""Torch's operator database with complex samples, forward and backward; `pytest -m exhaustive` takes every operation."""

import pytest
import torch

import fpsim
from fpsim.emulation import UnsupportedOp

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.operators import UNWRITTEN, evaluate, fresh, indices, op_db, samples_of  # isort: skip

COMPLEX64, COMPLEX128 = torch.complex64, torch.complex128
pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = frozenset(
    """
    add sub mul div pow exp log sqrt abs angle sgn sum mean prod cumsum cumprod matmul mm bmm einsum index_put scatter_add
    cat where fft.fft fft.irfft2 stft istft unfold asin tanh
    """.split()  # noqa: SIM905
)
#: Numbers that are drawn.
DRAWN = frozenset(("normal", "uniform", "randn", "rand_like", "randn_like"))
#: They start from drawn numbers, and their vectors are of any phase: torch's own are as far from complex128's.
OF_ANY_PHASE = frozenset(("svd_lowrank", "pca_lowrank"))


def converted(value, real, complex_one):
    """A copy in other dtypes; the values are float16's."""
    value = fresh(value)
    if not isinstance(value, torch.Tensor) or value.dtype not in (COMPLEX64, torch.float32):
        return {COMPLEX64: complex_one, torch.float32: real}.get(value, value) if isinstance(value, torch.dtype) else value
    numbers = value.detach().resolve_conj().resolve_neg()
    halves = torch.view_as_real(numbers).half().float().contiguous() if value.is_complex() else numbers.half().float()
    held = torch.view_as_complex(halves) if value.is_complex() else halves
    return held.to(complex_one if value.is_complex() else real).requires_grad_(value.requires_grad)


def single(value):
    return converted(value, torch.float32, COMPLEX64)


def wide(value):
    return converted(value, torch.float64, COMPLEX128)


def holds_halves(tensor):
    numbers = torch.view_as_real(tensor.detach().resolve_conj().resolve_neg())
    return torch.equal(torch.nan_to_num(numbers.half().float()), torch.nan_to_num(numbers))


#: Samples of each operation that the exhaustive run takes.
MOST = 24


def cases():
    for index in indices(COMPLEX64):
        op = op_db[index]
        if op.name in QUICK and not op.variant_test_name:
            yield pytest.param(index, 2, id=op.formatted_name)
        if op.name not in DRAWN and op.name not in UNWRITTEN:
            yield pytest.param(index, MOST, id=f"{op.formatted_name}-all", marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(("index", "most"), cases())
def test_complex_results_are_values_near_those_of_complex128_or_the_operation_raises(index, most):
    op = op_db[index]
    for sample in samples_of(index, COMPLEX64, most):
        try:
            expected = evaluate(op, sample, None, wide, COMPLEX128)
            outputs, gradients = evaluate(op, sample, fpsim.emulate("fp16"), single, COMPLEX64)
        except UnsupportedOp as error:
            assert most == MOST and "complex" in str(error)
            continue
        except (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError) as error:
            with pytest.raises(type(error)):  # torch's own refusal
                evaluate(op, sample, None, single, COMPLEX64)
            continue
        assert all(map(holds_halves, (*outputs, *gradients)))
        if op.name in OF_ANY_PHASE:
            continue
        found = evaluate(op, sample, fpsim.emulate("fp32"), single, COMPLEX64)
        for tensor, reference in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=False):
            if reference.isfinite().all():
                scale = 1 + (reference.abs().max().item() if reference.numel() else 0)
                torch.testing.assert_close(tensor.to(COMPLEX128), reference, rtol=0, atol=1e-4 * scale)
