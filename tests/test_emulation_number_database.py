"""Torch's operator database with Python numbers that are no values of the dtype, against torch under fmt="native".

The plain run takes the operations that torch computes in the tensor's dtype, or only fills; `pytest -m exhaustive` takes all.
"""

import contextlib

import pytest
import torch

import fpsim
from fpsim.emulation.table import name_of, names

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.number_calls import BEYOND, NUMBERS, SIZES, database_calls, operation_calls, outcome, same  # isort: skip
from tests.operators import indices, op_db  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore")
DTYPES = {torch.float16: BEYOND, torch.bfloat16: (1e39,)}

#: What the plain run takes.
QUICK = names(
    """
    eq ne lt le gt ge fmod remainder __rmod__ pow __rpow__ searchsorted nn.functional.hardshrink nn.functional.softshrink
    nn.functional.threshold nn.functional.hardtanh clamp where masked_fill index_fill constant_pad_nd full_like new_full
    fill maximum lerp addcmul addcdiv nn.functional.leaky_relu nn.functional.elu nan_to_num
    """
)

#: Where torch's CPU kernels are no oracle: names of the database, and of the operations that it calls.
KNOWN = {
    "the CPU rounds the number, CUDA keeps it in fp32: sums": names(
        """
        add sub rsub __radd__ __rsub__ nn.functional.linear nn.functional.local_response_norm nn.functional.gaussian_nll_loss
        nn.functional.alpha_dropout nn.functional.feature_alpha_dropout nn.functional.multilabel_soft_margin_loss
        """
    ),
    "the CPU rounds a number on the left, CUDA keeps it in fp32; so it does what is divided and truncated": names(
        "mul div true_divide floor_divide"
    ),
    "the CPU rounds in the epilogue of a product": names("addmm addmv addbmm addr baddbmm"),
    "float16 draws are others than float32 draws": names(
        "normal normal_ uniform exponential log_normal cauchy geometric nn.functional.rrelu rrelu_with_noise"
    ),
    "statistics stay wide; the CPU's are float16": names(
        """
        native_batch_norm _native_batch_norm_legit _batch_norm_with_update native_layer_norm native_group_norm
        nn.functional.batch_norm nn.functional.instance_norm batch_norm_backward native_batch_norm_backward
        """
    ),
    "the CPU keeps partial results in 16 bits": names(
        """
        xlogy special.xlog1py special_xlog1py logit renorm histc linspace segment_reduce _segment_reduce smooth_l1_loss
        nn.functional.smooth_l1_loss huber_loss nn.functional.huber_loss huber_loss_backward smooth_l1_loss_backward
        _segment_reduce_backward nn.functional.scaled_dot_product_attention nn.functional.normalize ldexp elu dist
        nn.functional.binary_cross_entropy_with_logits nn.functional.soft_margin_loss std_mean var_mean linalg_vector_norm
        """
    ),
    "torch sorts many elements and the number in float32": ["isin"],
    "no rule": ["nextafter"],
}
EXCUSED = {name for known in KNOWN.values() for name in known}


def cases():
    for dtype in DTYPES:
        for index in indices(dtype):
            op = op_db[index]
            if op.name not in SIZES:
                marks = () if op.name in QUICK else (pytest.mark.exhaustive,)
                yield pytest.param(index, dtype, id=f"{op.formatted_name}-{dtype}".replace("torch.", ""), marks=marks)


@pytest.mark.parametrize(("index", "dtype"), list(cases()))
def test_numbers_mean_what_they_mean_to_torch(index, dtype):
    numbers = (*NUMBERS, *DTYPES[dtype])
    if op_db[index].name not in EXCUSED:
        for label, function, args, kwargs in database_calls(index, dtype, numbers, 2):
            compare(label, function, args, kwargs)


@pytest.mark.parametrize(("index", "dtype"), list(cases()))
def test_numbers_of_what_is_called(index, dtype):
    numbers = (*NUMBERS, *DTYPES[dtype])
    for op, label, args, kwargs in operation_calls(index, dtype, numbers, 2):
        if name_of(op) not in EXCUSED and name_of(op) not in SIZES:
            compare(f"{op} {label}", op, args, kwargs)


def compare(label, function, args, kwargs):
    expected = outcome(function, args, kwargs, contextlib.nullcontext())
    if isinstance(expected, (TypeError, AttributeError, AssertionError)):
        return  # it takes no number there
    if isinstance(expected, Exception) and "as a tensor" in label and "overflow" not in str(expected):
        return  # nor a tensor of another dtype
    actual = outcome(function, args, kwargs, fpsim.emulate("native", "fp32"))
    assert same(actual, expected), (label, actual, expected)
