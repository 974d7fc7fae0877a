"""Torch's own operator database, forward and backward.

The plain run takes four samples of some forty operations; `pytest -m exhaustive` takes every operation.
"""

import warnings
from contextlib import ExitStack

import pytest
import torch

import fpsim
from fpsim.emulation import UnsupportedOp
from fpsim.emulation.dispatch import context

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.operators import (
    QUICK,
    SAVES_STATISTICS,
    UNSUPPORTED,
    UNWRITTEN,
    Seen,
    evaluate,
    indices,
    is_value,
    op_db,
    rounded,
    same_bits,
    samples_of,
    switched,
    widened,
)  # fmt: skip # isort: skip

REFUSALS = (RuntimeError, NotImplementedError, ValueError, IndexError, TypeError)
pytestmark = pytest.mark.filterwarnings("ignore")


def cases(most=None):
    """(place in `op_db`, how many samples at most); an operation that the plain run leaves out is marked."""
    found = []
    for index in indices():
        op = op_db[index]
        if op.name in QUICK and not op.variant_test_name:
            found.append(pytest.param(index, 4, id=op.formatted_name))
        found.append(pytest.param(index, most, id=f"{op.formatted_name}-all", marks=pytest.mark.exhaustive))
    return found


@pytest.mark.parametrize(("index", "most"), cases())
def test_results_are_values_or_the_operation_raises(index, most):
    op = op_db[index]
    raised = False
    for sample in samples_of(index, most=most):
        try:
            outputs, gradients = evaluate(op, sample, fpsim.emulate("fp16", "fp16"), rounded)
        except UnsupportedOp:
            raised = True
            continue
        except REFUSALS as error:
            with pytest.raises(type(error)):  # torch's own refusal
                evaluate(op, sample, copied=rounded)
            continue
        if op.name not in UNWRITTEN:
            kept = outputs[: 1 if op.name in SAVES_STATISTICS else None]
            assert all(is_value(tensor, "fp16") for tensor in (*kept, *gradients))
    if most is None:
        assert raised == (op.name in UNSUPPORTED)


def test_nearly_every_operation_runs():
    """Of the operations that take float32."""
    known = {op_db[index].name for index in indices()}
    assert UNSUPPORTED.keys() <= known
    assert len(UNSUPPORTED) <= 0.01 * len(known)


@pytest.mark.parametrize(("index", "most"), cases())
def test_fp32_in_the_librarys_order_is_torch(index, most):
    op = op_db[index]
    if op.name in UNWRITTEN:
        pytest.skip("memory that nobody wrote")
    for sample in samples_of(index, most=most):
        try:
            expected = evaluate(op, sample)
        except REFUSALS:
            continue
        actual = evaluate(op, sample, fpsim.emulate("fp32", "native"))
        if not all(map(same_bits, actual, expected)):
            assert not all(map(same_bits, evaluate(op, sample), expected)), "torch agrees with itself, and not with this"


#: Families whose rules, with a rounding that changes nothing, are torch's own operation.
IDENTICAL = {"view", "exact", "comparison", "constant", "elementwise"}

#: Drawn numbers come in another order.
DRAWN = {"nn.functional.rrelu"}


def is_identical(op, sample, seen):
    if op.name in ("add", "sub", "rsub") and "alpha" in sample.kwargs:
        return False  # torch fuses the product with the sum, where the processor can
    return op.name != "sqrt" and seen.families() <= IDENTICAL  # torch's square root is not correctly rounded


def assert_close(actual, expected, wide, slack):
    """No further from torch than four times its own distance to float64's result, plus some of the largest element."""
    for a, t, w in zip(actual, expected, wide, strict=True):
        a, t, w = (tensor.detach().double() for tensor in (a, t, w))
        assert torch.equal(a.isfinite(), t.isfinite())
        finite = a.isfinite() & w.isfinite()
        if finite.any():
            a, t, w = a[finite], t[finite], w[finite]
            largest = max(1.0, float(w.abs().max()))
            assert float((a - t).abs().max()) <= 4 * float((t - w).abs().max()) + slack * largest


@pytest.mark.parametrize(("accumulate", "slack"), [("native", 2.0**-20), ("fp32", 2.0**-18)])
@pytest.mark.parametrize(("index", "most"), cases(most=12))
def test_rules_that_round_to_fp32_are_torch(index, most, accumulate, slack, monkeypatch):
    """Every rule on its whole path, with a rounding that changes nothing, in the library's order or one after the other."""
    op = op_db[index]
    if op.name in UNWRITTEN | DRAWN | UNSUPPORTED.keys():
        pytest.skip("no numbers, other draws, or no rule")
    monkeypatch.setattr(context, "rules_of_the_identity", True)
    for sample in samples_of(index, most=most):
        with ExitStack() as stack:
            stack.enter_context(switched())
            seen = stack.enter_context(Seen())
            try:
                expected = evaluate(op, sample)
            except REFUSALS:
                continue
        actual = evaluate(op, sample, fpsim.emulate("fp32", accumulate))
        if all(map(same_bits, actual, expected)):
            continue
        assert not is_identical(op, sample, seen)
        with warnings.catch_warnings(), switched():
            wide = evaluate(op, sample, copied=widened, dtype=torch.float64)
        for a, t, w in zip(actual, expected, wide, strict=True):
            assert_close(a, t, w, slack)
