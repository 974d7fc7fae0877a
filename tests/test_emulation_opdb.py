"""Torch's own operator database: every float result and gradient is a value of the format, or the operation raises.

With fmt="fp32" and accumulate="native", operations that are exact or round once give torch's bits, the others agree to 2^-12
of the largest element. The plain run takes some forty operations; `pytest -m exhaustive` takes the others.
"""

import copy
import functools
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import fpsim
from fpsim.emulation import TABLE, UnsupportedOp
from fpsim.emulation.table import names

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

SAMPLES = 4
QUICK = frozenset(
    names(
        """
        add sub mul div sqrt exp pow sum mean prod cumsum cumprod softmax log_softmax matmul mm bmm baddbmm einsum addbmm
        nn.functional.linear nn.functional.conv2d nn.functional.conv_transpose2d nn.functional.layer_norm
        nn.functional.batch_norm nn.functional.gelu nn.functional.cross_entropy nn.functional.mse_loss
        nn.functional.scaled_dot_product_attention nn.functional.embedding nn.functional.max_pool2d scatter_add
        scatter_reduce index_put where cat linalg.inv nn.functional.ctc_loss nn.functional.interpolate std fft.fft complex
        """
    )
)

#: Complex numbers, sparse tensors and what else has no rule; every one raises on some sample.
UNSUPPORTED = frozenset(
    names(
        """
        view_as_complex complex polar stft cdouble cfloat chalf to_sparse half bfloat16 histogramdd
        nn.functional.linear_cross_entropy linalg.eig linalg.eigvals fft.fft fft.fft2 fft.fftn fft.hfft fft.hfft2 fft.hfftn
        fft.rfft fft.rfft2 fft.rfftn fft.ifft fft.ifft2 fft.ifftn fft.ihfft fft.ihfft2 fft.ihfftn fft.irfft fft.irfft2
        fft.irfftn sparse.sampled_addmm sparse.mm
        """
    )
)

#: Memory that nobody wrote has no values; the statistics that a normalization saves for its gradient stay wide.
UNINITIALIZED = {"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"}
SAVES_STATISTICS = {
    "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "native_layer_norm", "native_group_norm",
}  # fmt: skip


def is_float32(value):
    return isinstance(value, torch.Tensor) and value.dtype is torch.float32 and value.layout is torch.strided


def is_value(tensor, fmt):
    array = tensor.detach().contiguous().numpy()
    return array.size == 0 or np.array_equal(fpsim.round(array, fmt), array, equal_nan=True)


def rounded(value):
    """The tensor with its elements rounded in place, so that strides stay."""
    if is_float32(value) and value.device.type == "cpu":
        with torch.no_grad():
            memory = value.detach()
            if not any(stride == 0 for stride in memory.stride()):
                memory.copy_(torch.as_tensor(fpsim.round(memory.contiguous().numpy(), "fp16")))
    return value


def evaluate(op, sample, **policy):
    """(float32 results, gradients) of a sample, emulated under the policy, or as torch has it without one."""
    sample = copy.deepcopy(sample)
    values, leaves = (sample.input, sample.args, sample.kwargs), []
    if op.supports_autograd and is_float32(sample.input):
        leaves = [sample.input.detach().clone().requires_grad_()]
        values = (leaves[0], sample.args, sample.kwargs)
    torch.manual_seed(0)
    if policy:
        with fpsim.emulate(**policy):
            return results_of(op, values, leaves)
    with torch.backends.mkldnn.flags(enabled=False):
        return results_of(op, values, leaves)


def results_of(op, values, leaves):
    first, args, kwargs = values
    results = op.op(first, *args, **kwargs)
    outputs = [item for item in tree_leaves(results) if is_float32(item)]
    gradients = []
    if leaves and outputs and outputs[0].requires_grad:
        outputs[0].backward(torch.ones_like(outputs[0]))
        gradients = [leaf.grad for leaf in leaves if is_float32(leaf.grad)]
    return outputs, gradients


@functools.cache
def samples_of(index):
    op = op_db[index]
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = []
        for sample in op.sample_inputs("cpu", torch.float32):
            found.append(sample)
            if len(found) == SAMPLES:
                break
        return found


def cases():
    found = []
    for index, op in enumerate(op_db):
        if op.supports_dtype(torch.float32, "cpu") and not op.name.startswith("jiterator"):
            quick = op.name in QUICK and not op.variant_test_name
            found.append(pytest.param(index, id=op.formatted_name, marks=() if quick else pytest.mark.exhaustive))
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", cases())
def test_results_are_values_or_the_operation_raises(index):
    op = op_db[index]
    raised = False
    for sample in samples_of(index):
        sample = tree_map(rounded, (sample.input, sample.args, sample.kwargs))
        sample = type(samples_of(index)[0])(sample[0], args=sample[1], kwargs=sample[2])
        try:
            outputs, gradients = evaluate(op, sample, fmt="fp16", accumulate="fp16")
        except UnsupportedOp:
            raised = True
            continue
        except (RuntimeError, NotImplementedError, ValueError) as error:
            with pytest.raises(type(error)):  # torch's own refusal
                evaluate(op, sample)
            continue
        if op.name in UNINITIALIZED:
            continue
        for output in outputs[: 1 if op.name in SAVES_STATISTICS else None]:
            assert is_value(output, "fp16")
        for gradient in gradients:
            assert is_value(gradient, "fp16")
    assert not raised or op.name in UNSUPPORTED, f"{op.name} raised UnsupportedOp"


#: Rules of these families compute nothing, or (by name) round once where float32 does: the same bits as torch.
EXACT = {"view", "exact", "comparison", "constant"}
ROUND_ONCE = {f"aten::{name}" for name in names("add sub mul div rsub clamp hardtanh threshold leaky_relu reciprocal square")}


class Seen(TorchDispatchMode):
    """Which operations arrive below autograd."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.add(func)
        return func(*args, **(kwargs or {}))


def is_identical(op):
    return TABLE[op].family in EXACT or op._schema.name.rstrip("_") in ROUND_ONCE


def difference(actual, expected):
    """The largest difference, against the largest finite magnitude or 1; infinite where only one is finite."""
    a, b = actual.detach().double(), expected.detach().double()
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    finite = b.isfinite()
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / max(1.0, float(b[finite].abs().max())))


#: Singular vectors and the like have no one answer, draws of other sizes no one sequence, uninitialized memory no values.
AMBIGUOUS = frozenset(names("svd_lowrank pca_lowrank nn.functional.rrelu geqrf")) | UNINITIALIZED
BOUND = 2.0**-12


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", cases())
def test_fp32_is_what_torch_computes(index):
    op = op_db[index]
    if op.name in AMBIGUOUS or "linalg" in op.name or op.name in UNSUPPORTED:
        pytest.skip("no one answer, or no rule")
    for sample in samples_of(index):
        with Seen() as seen:
            try:
                expected = evaluate(op, sample)
            except (RuntimeError, NotImplementedError, ValueError):
                continue
        if any(item in TABLE and TABLE[item].family == "linear algebra" for item in seen.ops):
            continue
        try:
            actual = evaluate(op, sample, fmt="fp32", accumulate="native")
        except UnsupportedOp:
            continue
        identical = all(item in TABLE and is_identical(item) for item in seen.ops)
        for a, b in zip((*actual[0], *actual[1]), (*expected[0], *expected[1]), strict=True):
            if identical:
                assert torch.equal(a.nan_to_num(nan=12345.0), b.nan_to_num(nan=12345.0))
            else:
                assert difference(a, b) <= BOUND
