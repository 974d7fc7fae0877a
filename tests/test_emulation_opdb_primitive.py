"""Torch's operator database under granularity="primitive", forward and backward.

The plain run takes four samples of some forty operations; `pytest -m exhaustive` takes every operation.
"""

import pytest
import torch

import fpsim
from fpsim.emulation import UnsupportedOp
from fpsim.emulation.schemas import names

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.operators import (  # isort: skip
    QUICK, UNSUPPORTED, UNWRITTEN, evaluate, indices, is_value, op_db, rounded, samples_of, switched,
)  # fmt: skip

REFUSALS = (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError)
pytestmark = pytest.mark.filterwarnings("ignore")

#: Operations that have no steps, or are made of some that have none.
REFUSED = frozenset(
    names(
        """
        svd svd_lowrank pca_lowrank pinverse norm.nuc linalg.cond linalg.eig linalg.eigh linalg.eigvals
        linalg.eigvalsh linalg.matrix_rank linalg.pinv
        linalg.svd linalg.svdvals linalg.norm linalg.matrix_norm linalg.lstsq linalg.ldl_factor linalg.ldl_factor_ex
        linalg.ldl_solve
        """
    )
)
#: The largest difference from torch under fp32, of the largest magnitude or 1.
BOUND = 2.0**-12

#: Answers that are not unique, and draws of other sizes.
AMBIGUOUS = frozenset(names("nn.functional.rrelu geqrf")) | UNWRITTEN


#: Samples of each operation that the exhaustive run takes.
MOST = 8


def cases():
    found = []
    for index in indices():
        op = op_db[index]
        if op.name in QUICK and not op.variant_test_name:
            found.append(pytest.param(index, 4, id=op.formatted_name))
        found.append(pytest.param(index, MOST, id=f"{op.formatted_name}-all", marks=pytest.mark.exhaustive))
    return found


def full_name(op):
    return f"{op.name}.{op.variant_test_name}" if op.name == "norm" and op.variant_test_name else op.name


@pytest.mark.parametrize(("index", "most"), cases())
def test_results_are_values_or_the_operation_raises(index, most):
    op = op_db[index]
    raised = False
    for sample in samples_of(index, most=most):
        try:
            outputs, gradients = evaluate(op, sample, fpsim.emulate("fp16", "fp16", granularity="primitive"), rounded)
        except UnsupportedOp:
            raised = True
            continue
        except REFUSALS as error:
            with pytest.raises(type(error)):  # torch's own refusal
                evaluate(op, sample, copied=rounded)
            continue
        if op.name not in UNWRITTEN:
            assert all(is_value(tensor, "fp16") for tensor in (*outputs, *gradients))
    assert not raised or full_name(op) in REFUSED or op.name in UNSUPPORTED


def test_nearly_every_operation_runs():
    """Of the operations that take float32, complex ones aside."""
    aside = UNSUPPORTED.keys()  # complex numbers
    known = [full_name(op_db[index]) for index in indices() if op_db[index].name not in aside]
    assert REFUSED <= {*known, *UNSUPPORTED}
    assert sum(name in REFUSED or name in UNSUPPORTED for name in known) <= 0.05 * len(known)


@pytest.mark.parametrize(("index", "most"), cases())
def test_fp32_is_close_to_torch(index, most):
    op = op_db[index]
    if op.name in AMBIGUOUS or full_name(op) in REFUSED:
        pytest.skip("no one answer, or no steps")
    for sample in samples_of(index, most=most):
        try:
            with switched():
                expected = evaluate(op, sample)
        except REFUSALS:
            continue
        try:
            actual = evaluate(op, sample, fpsim.emulate("fp32", "native", granularity="primitive"))
        except UnsupportedOp:
            continue
        for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
            assert difference(a, b) <= BOUND


def difference(actual, expected):
    """The largest difference, against the largest finite magnitude or 1; infinite where only one is finite."""
    a, b = actual.detach().double(), expected.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    finite = b.isfinite()
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / max(1.0, float(b[finite].abs().max())))
