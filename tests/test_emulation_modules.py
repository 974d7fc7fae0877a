"""Every module of torch's own database, forward and backward: values of the format, and torch's own bits under fp32."""

import contextlib
import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

import fpsim

pytest.importorskip("expecttest", reason="torch's module database needs the package expecttest")

from tests.operators import fresh, is_of, is_value, same_bits  # isort: skip

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_modules import module_db

QUICK = {"nn.Linear", "nn.Conv2d", "nn.BatchNorm2d", "nn.LSTM", "nn.TransformerEncoderLayer", "nn.CrossEntropyLoss"}
FLOAT = torch.float32


def evaluate(info, inputs, training, context):
    """(outputs, gradients, buffers) of a module made from its sample, in float32."""
    torch.default_generator.manual_seed(0)
    module = info.module_cls(*inputs.constructor_input.args, **inputs.constructor_input.kwargs).to(FLOAT).train(training)
    before = [buffer.clone() for buffer in module.buffers() if is_of(FLOAT, buffer)]
    args, kwargs = tree_map(fresh, (inputs.forward_input.args, inputs.forward_input.kwargs))
    with context:
        results = module(*args, **kwargs)
        outputs = [item for item in tree_leaves(results) if is_of(FLOAT, item)]
        ends = [item for item in outputs if item.requires_grad]
        if ends:
            torch.autograd.backward(ends, [torch.ones_like(item) for item in ends])
    leaves = [*module.parameters(), *(item for item in tree_leaves((args, kwargs)) if is_of(FLOAT, item))]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    buffers = [buffer for buffer in module.buffers() if is_of(FLOAT, buffer)]
    moved = [a for a, b in zip(buffers, before, strict=False) if not torch.equal(a, b)]
    return outputs, gradients, moved


def cases():
    return [
        pytest.param(info, training, id=f"{info.name}-{'training' if training else 'evaluation'}", marks=marks(info))
        for info in module_db
        for training in (True, False)
    ]


def marks(info):
    return () if info.name in QUICK else pytest.mark.exhaustive


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("info", "training"), cases())
def test_modules(info, training):
    torch.default_generator.manual_seed(0)
    samples = info.module_inputs_func(info, device="cpu", dtype=FLOAT, requires_grad=True, training=training)
    usable = [item for item in samples if item.forward_input is not None]
    for inputs in usable[:: len(usable) // 40 + 1]:  # one module has six hundred
        emulated = evaluate(info, inputs, training, fpsim.emulate("fp16", "fp16"))
        assert all(is_value(tensor, "fp16") for group in emulated for tensor in group)
        native = evaluate(info, inputs, training, fpsim.emulate("fp32", "native"))
        plain = evaluate(info, inputs, training, contextlib.nullcontext())
        assert all(map(same_bits, native, plain))
