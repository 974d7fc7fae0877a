"""Windows, packed sequences and trained quantization."""

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

import fpsim


def kaiser(beta):
    return lambda x: mpmath.besseli(0, beta * mpmath.sqrt(4 * x - 4 * x * x)) / mpmath.besseli(0, beta)


CALLS = {
    "bartlett": (torch.bartlett_window, (), lambda x: 1 - abs(2 * x - 1)),
    "blackman": (torch.blackman_window, (), lambda x: 0.42 - 0.5 * mpmath.cospi(2 * x) + 0.08 * mpmath.cospi(4 * x)),
    "hann": (torch.hann_window, (), lambda x: 0.5 - 0.5 * mpmath.cospi(2 * x)),
    "hamming": (torch.hamming_window, (), lambda x: 0.54 - 0.46 * mpmath.cospi(2 * x)),
    "hamming of two": (torch.hamming_window, (0.6, 0.25), lambda x: 0.6 - 0.25 * mpmath.cospi(2 * x)),
    "kaiser": (torch.kaiser_window, (), kaiser(12)),
    "kaiser of one": (torch.kaiser_window, (3.0,), kaiser(3)),
}


@pytest.mark.parametrize("fmt", ["fp16", "bf16"])
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize("name", CALLS)
def test_a_window_is_its_formula_rounded_once(name, periodic, fmt):
    function, parameters, formula = CALLS[name]
    for length in (1, 2, 7, 64):
        with fpsim.emulate(fmt):
            found = function(length, periodic, *parameters)
        parts = max(1, length if periodic else length - 1)
        with mpmath.workdps(40):
            values = [float(formula(mpmath.mpf(n) / parts)) if length > 1 else 1.0 for n in range(length)]
        wanted = np.array([0.0 if abs(value) < 1e-16 else value for value in values])  # float64's own formula ends near 0
        different = found.numpy() != fpsim.round(wanted, fmt)
        assert not different[np.abs(wanted) > 1e-12].any()
        assert np.abs(found.numpy()[np.abs(wanted) <= 1e-12]).max(initial=0) < 1e-15


def test_a_window_of_double_is_torchs():
    with fpsim.emulate("fp16"):
        found = torch.hann_window(9, dtype=torch.float64)
    assert torch.equal(found, torch.hann_window(9, dtype=torch.float64))


@pytest.mark.parametrize("batch_first", [True, False])
def test_packing_moves_elements_and_their_gradients(batch_first):
    x = torch.as_tensor(fpsim.round(torch.randn(3, 3, 2), "fp16")).requires_grad_()
    lengths = [3, 2, 1]
    with fpsim.emulate("fp16"):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=batch_first)
        (packed.data * 2).sum().backward()
    expected = nn.utils.rnn.pack_padded_sequence(x.detach(), lengths, batch_first=batch_first)
    assert torch.equal(packed.data, expected.data) and torch.equal(packed.batch_sizes, expected.batch_sizes)
    inside = torch.arange(3)[None] < torch.tensor(lengths)[:, None]
    assert torch.equal(x.grad[..., 0], 2.0 * (inside if batch_first else inside.T))


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("scale", [0.125, 0.1])
def test_quantization_rounds_its_formula_once(scale, granularity):
    x = torch.from_numpy(np.random.default_rng(0).normal(0, 8, 50).astype(np.float16).astype(np.float32))
    leaf = x.clone().requires_grad_()
    with fpsim.emulate("fp16", granularity=granularity):
        found = torch.fake_quantize_per_tensor_affine(leaf, scale, 3, -30, 40)
        found.sum().backward()
        scales = torch.full((5,), scale)
        channels = torch.fake_quantize_per_channel_affine(x.reshape(5, 10), scales, torch.zeros(5).int(), 0, -30, 40)
    assert torch.equal(fpsim.round(channels, "fp16"), channels)
    if granularity == "kernel" or scale == 0.125:  # 0.1 itself is rounded first, where every step is
        single = torch.fake_quantize_per_tensor_affine(x, scale, 3, -30, 40)
        codes = np.rint(x.numpy() * (np.float32(1) / np.float32(scale))) + 3
        assert torch.equal(found, fpsim.round(single, "fp16"))
        assert np.array_equal(leaf.grad.numpy(), (codes >= -30) & (codes <= 40))


LEARNED = {
    "tensor": lambda x, scale, point: torch._fake_quantize_learnable_per_tensor_affine(x, scale[:1], point[:1], -8, 7, 0.5),
    "channel": lambda x, scale, point: torch._fake_quantize_learnable_per_channel_affine(x, scale, point, 0, -8, 7, 0.5),
}


def learned_gradients(quantize, x, gradient, channel=slice(None)):
    """The output and the gradients of input, scale and zero point, of numbers whose sums float32 holds."""
    given = x, torch.tensor([0.25, 0.5])[channel], torch.tensor([1.5, -2.75])[channel]
    leaves = [item.clone().requires_grad_() for item in given]
    out = quantize(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, gradient)]


@pytest.mark.parametrize("kind", LEARNED)
def test_learned_quantization_is_torchs_in_fp32_and_rounds_what_each_element_adds_in_fp16(kind):
    """Of fp16: torch's gradients of each element alone, rounded by NumPy and added one after the other in its float16."""
    draw, quantize = np.random.default_rng(0), LEARNED[kind]
    x, gradient = (torch.from_numpy(np.float32(draw.integers(-64, 64, (2, 20)) / 16)) for _ in range(2))
    with fpsim.emulate("fp32", accumulate="fp32"):
        found = learned_gradients(quantize, x, gradient)
    for one, other in zip(found, learned_gradients(quantize, x, gradient), strict=True):
        assert torch.equal(one, other)
    with fpsim.emulate("fp16", accumulate="fp16"):
        *elements, of_scale, of_point = learned_gradients(quantize, x, gradient)
    for one, other in zip(elements, found[:2], strict=True):
        assert torch.equal(one, fpsim.round(other, "fp16"))
    totals = np.zeros((2, 2), np.float16)
    for row, column in np.ndindex(2, 20):
        channel = 0 if kind == "tensor" else row
        alone = [item[row : row + 1, column : column + 1] for item in (x, gradient)]
        terms = learned_gradients(quantize, *alone, slice(channel, channel + 1))[2:]
        totals[:, channel] += np.float16([term.item() for term in terms])
    for sums, total in zip((of_scale, of_point), totals, strict=True):
        assert np.array_equal(sums.numpy(), np.float32(total))


def test_an_observer_stores_values_of_the_format():
    from torch.ao.quantization import FusedMovingAvgObsFakeQuantize

    observer = fpsim.run(FusedMovingAvgObsFakeQuantize(quant_min=0, quant_max=255), "fp16")
    with observer:
        y = observer(torch.randn(20))
    kept = [item for item in observer.buffers() if item.dtype is torch.float32]
    assert len(kept) >= 3
    for item in (y, *kept):
        assert torch.equal(fpsim.round(item, "fp16"), item)
