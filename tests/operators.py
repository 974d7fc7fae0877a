"""Torch's own operator database: its operations, samples of their arguments, and what they give under a context."""

import contextlib
import copy
import functools
import random
import warnings

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import fpsim
from fpsim.emulation import TABLE
from fpsim.emulation.dispatch import switches
from fpsim.emulation.schemas import names


def _seed(seed):
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - which torch's samples draw from


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal import common_utils
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.opinfo import core

# Before each sample torch looks through the whole stack for a test of its own, of which there is none, and `torch.manual_seed`
# writes the stack down for each other device. In a process of many modules that takes longer than what is done with the sample.
common_utils.extract_test_fn = core.extract_test_fn = lambda: None
common_utils.set_rng_seed = _seed

QUICK = frozenset(
    names(
        """
        add sub mul div sqrt exp pow sum mean prod cumsum cumprod softmax log_softmax matmul mm bmm baddbmm einsum addbmm
        nn.functional.linear nn.functional.conv2d nn.functional.conv_transpose2d nn.functional.layer_norm
        nn.functional.batch_norm nn.functional.gelu nn.functional.cross_entropy nn.functional.mse_loss
        nn.functional.scaled_dot_product_attention nn.functional.embedding scatter_add
        scatter_reduce index_put where cat linalg.inv nn.functional.ctc_loss nn.functional.interpolate std fft.fft complex
        """
    )
)

#: Operations that raise on some sample, and why.
UNSUPPORTED = {"chalf": "complex numbers"}

#: Results that nobody wrote, in whole or in part.
UNWRITTEN = frozenset(
    names("empty empty_like empty_permuted empty_strided new_empty new_empty_strided linalg.lstsq")
)

#: Their further results are statistics that a normalization saves for its gradient, which stay wide.
SAVES_STATISTICS = frozenset(
    names("native_batch_norm _native_batch_norm_legit _batch_norm_with_update native_layer_norm native_group_norm")
)


def is_of(dtype, value):
    """Whether it is a dense tensor of that dtype."""
    return isinstance(value, torch.Tensor) and value.dtype is dtype and value.layout is torch.strided


def indices(dtype=torch.float32):
    """The places in `op_db` of the operations that take that dtype on the CPU."""
    return [i for i, op in enumerate(op_db) if op.supports_dtype(dtype, "cpu") and not op.name.startswith("jiterator")]


def _few_positions(sample):
    """Of more than two volumes two, and five planes of their grids: what is in one, or at one position, knows no other."""
    if len(sample.input) <= 2:
        return sample
    sample.input, grid = (part.detach().clone() for part in (sample.input[:2], sample.args[0][:2, :5]))
    sample.args = (grid, *sample.args[1:])
    for item in (sample.input, grid):
        item.requires_grad_()
    return sample


#: What is taken of samples of millions of numbers. All others have at most 24,000.
PARTS = {"grid_sampler_3d": _few_positions}


@functools.cache
def _every_sample_of(index, dtype):
    op = op_db[index]
    torch.default_generator.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = op.sample_inputs("cpu", dtype, requires_grad=op.supports_autograd)
        return [PARTS[op.name](sample) if op.name in PARTS else sample for sample in found]


def samples_of(index, dtype=torch.float32, most=None):
    """Samples of an operation's arguments, at most so many, spread evenly over what there is."""
    found = _every_sample_of(index, dtype)
    return found if most is None else found[:: -(-len(found) // most) or 1]


def fresh(value):
    """A copy of a tensor with the same strides that a gradient can be asked of."""
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    return copy.deepcopy(value.detach()).requires_grad_(value.requires_grad)


def rounded(value, fmt="fp16"):
    """A copy whose memory holds values of the format."""
    value = fresh(value)
    if is_of(torch.float32, value) and value.device.type == "cpu":
        memory = value.detach().as_strided((value.untyped_storage().nbytes() // 4,), (1,), 0)
        memory.copy_(torch.as_tensor(fpsim.round(memory.numpy(), fmt)))
    return value


def widened(value):
    """A copy in float64."""
    if isinstance(value, torch.dtype):
        return torch.float64 if value in (torch.float16, torch.float32) else value
    value = fresh(value)
    if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.float32):
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def evaluate(op, sample, context=None, copied=fresh, dtype=torch.float32):
    """(results, gradients) of that dtype, inside a context."""
    first, args, kwargs = tree_map(copied, (sample.input, sample.args, sample.kwargs))
    leaves = [item for item in tree_leaves((first, args, kwargs)) if is_of(dtype, item) and item.requires_grad]
    torch.default_generator.manual_seed(0)
    with context or contextlib.nullcontext():
        results = op.op(first, *args, **kwargs)
        outputs = [item for item in tree_leaves(results) if is_of(dtype, item)]
        kept = tree_leaves(sample.output_process_fn_grad(results))
        ends = [item for item in kept if is_of(dtype, item) and item.requires_grad]
        if leaves and ends:
            torch.autograd.backward(ends, [torch.ones_like(item) for item in ends])
    return outputs, [leaf.grad for leaf in leaves if is_of(dtype, leaf.grad)]


@contextlib.contextmanager
def switched():
    """Plain torch, with its switches as they are inside an emulation."""
    switches.enter()
    try:
        yield
    finally:
        switches.leave()


class Seen(TorchDispatchMode):
    """Which operations arrive below autograd."""

    def __init__(self):
        super().__init__()
        self.ops = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ops.add(func)
        return func(*args, **(kwargs or {}))

    def families(self):
        return {TABLE[op].family if op in TABLE else None for op in self.ops}


def array_of(tensor):
    return tensor.detach().contiguous().numpy(force=True)


def same_bits(a, b):
    """Whether two lists of tensors hold the same numbers, signs of zeros included; any NaN is any other."""
    for x, y in zip(map(array_of, a), map(array_of, b), strict=True):
        number = ~np.isnan(x)
        if not np.array_equal(x, y, equal_nan=True) or not np.array_equal(np.signbit(x)[number], np.signbit(y)[number]):
            return False
    return True


def is_value(tensor, fmt):
    array = array_of(tensor)
    return array.size == 0 or np.array_equal(fpsim.round(array, fmt), array, equal_nan=True)
