"""Rules of the emulation against explicit arithmetic in torch.half, where that is right, and in NumPy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from torch import nn

import fpsim

HALF = torch.float16


def values(*shape, seed=0, scale=1.0, fmt="fp16"):
    generator = torch.Generator().manual_seed(seed)
    return fpsim.round(torch.randn(*shape, generator=generator) * scale, fmt)


def same(actual, expected):
    """Bit equality but for the payload of NaN."""
    actual, expected = actual.detach().float().numpy(), expected.detach().float().numpy()
    assert actual.shape == expected.shape
    assert np.array_equal(actual, expected, equal_nan=True)
    assert np.array_equal(np.signbit(actual)[~np.isnan(actual)], np.signbit(expected)[~np.isnan(actual)])


def half_chain(a, b):
    """A @ B in torch.half, which rounds every product and every sum right; k ascends from +0."""
    a, b = a.to(HALF), b.to(HALF)
    total = torch.zeros(a.shape[0], b.shape[1], dtype=HALF)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    return total


def single_chain(a, b):
    """The same in float32 (NumPy, so that nothing is fused), not yet rounded to the format."""
    a, b = a.numpy(), b.numpy()
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k : k + 1]
    return total


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div"])
def test_arithmetic_is_that_of_torch_half(name):
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(HALF)
    generator = torch.Generator().manual_seed(1)
    x, y = patterns[torch.randperm(65536, generator=generator)], patterns[torch.randperm(65536, generator=generator)]
    x32, y32 = x.float(), y.float()
    with fpsim.emulate("fp16"):
        emulated = getattr(torch, name)(x32, y32)
    same(emulated, getattr(torch, name)(x, y))


@pytest.mark.parametrize("mode", ["nearest-away", "toward-zero", "up", "down", "odd"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_arithmetic_rounds_the_exact_result_in_every_mode(name, mode):
    x, y = values(2000, seed=1, scale=100.0), values(2000, seed=2)
    exact = getattr(np, {"add": "add", "sub": "subtract", "mul": "multiply"}[name])(x.double().numpy(), y.double().numpy())
    with fpsim.emulate("fp16", rounding=mode):
        emulated = getattr(torch, name)(x, y)
    same(emulated, torch.from_numpy(fpsim.round(exact, "fp16", mode)))  # sums and products of fp16 are exact in float64


def test_directed_sums_see_what_float64_loses():
    one, tiny = torch.tensor([1.0, 1.0]), torch.tensor([2.0**-100, -(2.0**-100)])
    with fpsim.emulate("bf16", rounding="up"):
        assert (one + tiny).tolist() == [1 + 2.0**-7, 1.0]
    with fpsim.emulate("bf16", rounding="down"):
        total = one + tiny
        assert total.tolist() == [1.0, 1 - 2.0**-8]
        assert np.signbit((one - one).numpy()).all()  # IEEE 754-2019, section 6.3
    with fpsim.emulate("bf16", rounding="odd"):
        assert (one + tiny).tolist() == [1 + 2.0**-7, 1 - 2.0**-8]


def test_a_python_number_enters_in_fp32():
    x = values(500)
    factor = np.float32(0.1)
    with fpsim.emulate("fp16"):
        product, total, scaled = x * 0.1, x + 0.1, torch.add(x, x, alpha=0.1)
    same(product, torch.from_numpy((x.numpy() * factor).astype(np.float16).astype(np.float32)))
    same(total, torch.from_numpy((x.numpy() + factor).astype(np.float16).astype(np.float32)))
    same(scaled, torch.from_numpy((x.numpy() + x.numpy() * factor).astype(np.float16).astype(np.float32)))


def test_a_python_number_is_rounded_first_under_primitive():
    x = values(500)
    with fpsim.emulate("fp16", granularity="primitive"):
        product = x * 0.1
    same(product, x.to(HALF) * torch.tensor(0.1, dtype=HALF))


def test_square_root_is_correctly_rounded():
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(HALF).float()
    with np.errstate(invalid="ignore"):
        expected = np.sqrt(patterns.numpy().astype(np.float64))
    with fpsim.emulate("fp16"):
        same(torch.sqrt(patterns), torch.from_numpy(fpsim.round(expected, "fp16").astype(np.float32)))


def test_integers_become_values_of_the_format():
    count = torch.tensor([2049, 70000, 3])
    with fpsim.emulate("fp16"):
        assert count.to(torch.float32).tolist() == [2048.0, float("inf"), 3.0]
        assert (count * torch.ones(3)).tolist() == [2048.0, float("inf"), 3.0]
        assert (count + count).dtype is torch.int64


def test_constants_saturate():
    lowest = torch.finfo(torch.float32).min
    mask = torch.tensor([True, False])
    with fpsim.emulate("fp16"):
        assert torch.full((2,), lowest).tolist() == [-65504.0, -65504.0]
        assert torch.full((2,), -float("inf")).tolist() == [-float("inf")] * 2
        assert torch.zeros(2).masked_fill(mask, lowest).tolist() == [-65504.0, 0.0]
        assert torch.zeros(2).fill_(1e30).tolist() == [65504.0] * 2
        assert torch.where(mask, torch.zeros(2), lowest).tolist() == [0.0, -65504.0]
    with fpsim.emulate("e4m3fn"):
        assert torch.full((1,), float("inf")).tolist() == [448.0]


@pytest.mark.parametrize("accumulate", ["fp16", "fp32", None])
def test_linear_layer_forward_and_backward(accumulate):
    layer = nn.Linear(37, 11)
    sim = fpsim.run(layer, "fp16", accumulate)
    x = values(9, 37).requires_grad_()
    gradient = values(9, 11, seed=3)
    with sim:
        y = sim(x)
        y.backward(gradient)
    weight, bias = sim.weight.detach(), sim.bias.detach()
    if accumulate == "fp16":
        same(y, half_chain(x.detach(), weight.T) + bias.to(HALF))
        same(x.grad, half_chain(gradient, weight))
        same(sim.weight.grad, half_chain(gradient.T, x.detach()))
        same(sim.bias.grad, half_chain(torch.ones(1, 9), gradient)[0])
    else:
        rounded = lambda array: torch.from_numpy(array.astype(np.float16).astype(np.float32))  # noqa: E731
        same(y, rounded(single_chain(x.detach(), weight.T) + bias.numpy()))
        same(x.grad, rounded(single_chain(gradient, weight)))
        same(sim.weight.grad, rounded(single_chain(gradient.T, x.detach())))
        same(sim.bias.grad, rounded(single_chain(torch.ones(1, 9), gradient)[0]))


def half_convolution(x, weight, bias, stride, padding, dilation):
    """Every output one chain over (c, kh, kw) in torch.half; terms in the padding are zeros."""
    n, channels, height, width = x.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    padded = functional.pad(x, [padding] * 4).to(HALF)
    weight = weight.to(HALF)
    rows = (height + 2 * padding - dilation * (kernel_h - 1) - 1) // stride + 1
    columns = (width + 2 * padding - dilation * (kernel_w - 1) - 1) // stride + 1
    total = torch.zeros(n, outputs, rows, columns, dtype=HALF)
    for c in range(channels):
        for i in range(kernel_h):
            for j in range(kernel_w):
                top, left = i * dilation, j * dilation
                window = padded[
                    :,
                    c,
                    top : top + stride * (rows - 1) + 1 : stride,
                    left : left + stride * (columns - 1) + 1 : stride,
                ]
                total = total + window[:, None] * weight[None, :, c, i, j, None, None]
    return total + bias.to(HALF)[None, :, None, None]


def half_convolution_gradients(gradient, x, weight, stride, padding, dilation):
    """Gradients of input, one chain over (o, kh, kw), and weight, one chain over (n, oh, ow), in torch.half."""
    n, channels, height, width = x.shape
    outputs, _, kernel_h, kernel_w = weight.shape
    gradient, weight, padded = gradient.to(HALF), weight.to(HALF), functional.pad(x, [padding] * 4).to(HALF)
    rows, columns = gradient.shape[2:]
    gx = torch.zeros(n, channels, height + 2 * padding, width + 2 * padding, dtype=HALF)
    for o in range(outputs):
        for i in range(kernel_h):
            for j in range(kernel_w):
                where = (slice(None), slice(None), slice(i * dilation, i * dilation + stride * (rows - 1) + 1, stride),
                         slice(j * dilation, j * dilation + stride * (columns - 1) + 1, stride))  # fmt: skip
                gx[where] = gx[where] + gradient[:, o, None] * weight[None, o, :, i, j, None, None]
    gw = torch.zeros_like(weight)
    for image in range(n):
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride, column * stride
                window = padded[
                    image,
                    :,
                    top : top + dilation * (kernel_h - 1) + 1 : dilation,
                    left : left + dilation * (kernel_w - 1) + 1 : dilation,
                ]
                gw = gw + gradient[image, :, row, column, None, None, None] * window[None]
    inner = slice(padding, None if padding == 0 else -padding)
    return gx[:, :, inner, inner], gw


@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 0, 1), (1, 1, 1), (2, 1, 1), (1, 2, 2), (3, 0, 2)])
def test_convolution_forward_and_backward(stride, padding, dilation):
    layer = nn.Conv2d(3, 4, (3, 2), stride=stride, padding=padding, dilation=dilation)
    sim = fpsim.run(layer, "fp16", "fp16")
    x = values(2, 3, 9, 8).requires_grad_()
    with sim:
        y = sim(x)
        gradient = values(*y.shape, seed=5)
        y.backward(gradient)
    weight = sim.weight.detach()
    same(y, half_convolution(x.detach(), weight, sim.bias.detach(), stride, padding, dilation))
    gx, gw = half_convolution_gradients(gradient, x.detach(), weight, stride, padding, dilation)
    same(x.grad, gx)
    same(sim.weight.grad, gw)
    same(sim.bias.grad, half_chain(torch.ones(1, gradient[:, 0].numel()), gradient.transpose(0, 1).reshape(4, -1).T)[0])


def test_grouped_and_transposed_convolutions_are_their_parts():
    x = values(2, 4, 6, 5)
    weight, bias = values(6, 2, 3, 3, seed=1), values(6, seed=2)
    with fpsim.emulate("fp16", "fp16"):
        whole = functional.conv2d(x, weight, bias, padding=1, groups=2)
        parts = [
            functional.conv2d(x[:, 2 * g : 2 * g + 2], weight[3 * g : 3 * g + 3], bias[3 * g : 3 * g + 3], padding=1)
            for g in (0, 1)
        ]
        up = functional.conv_transpose2d(x, values(4, 3, 3, 3, seed=4), None, stride=2, padding=1, output_padding=1)
    same(whole, torch.cat(parts, 1))
    gx, _ = half_convolution_gradients(x, torch.zeros(2, 3, 12, 10), values(4, 3, 3, 3, seed=4), 2, 1, 1)
    same(up, gx)


def test_sums_accumulate_and_means_divide_in_the_accumulator():
    x = values(300, 7)
    with fpsim.emulate("fp16", "fp16"):
        total, mean, everything = x.sum(0), x.mean(0), x.sum()
    expected = half_chain(torch.ones(1, 300), x)[0]
    same(total, expected)
    same(mean, expected / 300)
    same(everything, half_chain(torch.ones(1, 2100), x.reshape(-1, 1))[0, 0])
    with fpsim.emulate("fp16"):
        rows = x.sum(1)
    same(rows, torch.from_numpy(single_chain(x, torch.ones(7, 1))[:, 0].astype(np.float16)))


def test_addmm_rounds_its_factors_in_the_accumulator():
    c, a, b = values(4, 6, seed=1), values(4, 5, seed=2), values(5, 6, seed=3)
    with fpsim.emulate("fp16", "fp16"):
        result = torch.addmm(c, a, b, beta=0.5, alpha=3)
        batched = torch.baddbmm(c[None], a[None], b[None], beta=0.5, alpha=3)
    three, half = torch.tensor(3.0, dtype=HALF), torch.tensor(0.5, dtype=HALF)
    same(result, half_chain(a, b) * three + c.to(HALF) * half)
    same(batched[0], result)


def test_batch_norm_is_float64_inside():
    layer = nn.BatchNorm2d(3)
    nn.init.uniform_(layer.weight)
    sim = fpsim.run(layer, "fp16", "fp16")
    x = values(5, 3, 4, 4, scale=3.0).requires_grad_()
    gradient = values(5, 3, 4, 4, seed=4)
    before = sim.running_mean.clone(), sim.running_var.clone()
    with sim:
        y = sim(x)
        y.backward(gradient)
    wide = x.detach().double()
    mean = wide.mean((0, 2, 3))
    variance = ((wide - mean[:, None, None]) ** 2).mean((0, 2, 3))
    inverse = 1 / (variance + layer.eps).sqrt()
    normal = (wide - mean[:, None, None]) * inverse[:, None, None]
    once = lambda tensor: fpsim.round(tensor, "fp16")  # noqa: E731
    same(y, once(normal * sim.weight.detach().double()[:, None, None] + sim.bias.detach().double()[:, None, None]))
    same(sim.running_mean, once(0.9 * before[0].double() + 0.1 * mean))
    same(sim.running_var, once(0.9 * before[1].double() + 0.1 * variance * 80 / 79))
    saved = inverse.float().double()[:, None, None] * (wide - mean.float().double()[:, None, None])
    same(sim.weight.grad, once((gradient.double() * saved).sum((0, 2, 3))))
    same(sim.bias.grad, once(gradient.double().sum((0, 2, 3))))
    sim.eval()
    inverse = 1 / (sim.running_var.double() + layer.eps).sqrt()
    normal = (wide - sim.running_mean.double()[:, None, None]) * inverse[:, None, None]
    same(
        sim(x.detach()),
        once(normal * sim.weight.detach().double()[:, None, None] + sim.bias.detach().double()[:, None, None]),
    )


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_softmax_and_log_softmax_round_once(dim):
    x = values(6, 5, 7, scale=4.0)
    with fpsim.emulate("fp16"):
        soft, logarithm = x.softmax(dim), x.log_softmax(dim)
    same(soft, fpsim.round(x.double().softmax(dim), "fp16"))
    same(logarithm, fpsim.round(x.double().log_softmax(dim), "fp16"))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses_round_once(reduction):
    x, target = values(8, 5, scale=3.0).requires_grad_(), torch.tensor([0, 1, 4, 3, -100, 2, 2, 0])
    weight = values(5, seed=2).abs()
    wide = x.detach().double().requires_grad_()
    with fpsim.emulate("fp16"):
        loss = functional.nll_loss(x, target, weight, reduction=reduction)
        squared = functional.mse_loss(x, torch.zeros(8, 5), reduction=reduction)
        loss.sum().backward()
    expected = functional.nll_loss(wide, target, weight.double(), reduction=reduction)
    expected.sum().backward()
    same(loss, fpsim.round(expected.detach(), "fp16"))
    same(
        squared,
        fpsim.round(functional.mse_loss(wide.detach(), torch.zeros(8, 5).double(), reduction=reduction), "fp16"),
    )
    if reduction != "mean":  # total_weight stays in fp32, so the mean's gradient divides by another number than float64 does
        same(x.grad, fpsim.round(wide.grad, "fp16"))


ONE_ROUNDING = {
    "exp": torch.exp, "log": torch.log, "tanh": torch.tanh, "sigmoid": torch.sigmoid, "erf": torch.erf,
    "sin": torch.sin, "gelu": functional.gelu, "silu": functional.silu, "softplus": functional.softplus,
    "rsqrt": torch.rsqrt, "elu": functional.elu, "hardswish": functional.hardswish,
    "square": torch.square, "reciprocal": torch.reciprocal,
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_ROUNDING)
def test_functions_of_one_number_round_once(name):
    patterns = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(HALF).float()
    with fpsim.emulate("fp16"):
        emulated = ONE_ROUNDING[name](patterns)
    same(emulated, fpsim.round(ONE_ROUNDING[name](patterns.double()), "fp16").float())


def test_pooling():
    x = values(2, 3, 7, 7).requires_grad_()
    with fpsim.emulate("fp16"):
        largest = functional.max_pool2d(x, 3, stride=1)
        average = functional.avg_pool2d(x, 3, stride=2, padding=1)
        adaptive = functional.adaptive_avg_pool2d(x, 2)
        largest.sum().backward()
    same(largest, functional.max_pool2d(x, 3, stride=1))
    same(average, fpsim.round(functional.avg_pool2d(x.double(), 3, stride=2, padding=1).detach(), "fp16").float())
    same(adaptive, fpsim.round(functional.adaptive_avg_pool2d(x.double(), 2).detach(), "fp16").float())
    assert float(x.grad.sum()) == 2 * 3 * 25


def test_rules_keep_memory_formats():
    x = values(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    with fpsim.emulate("fp16"):
        for result in (x + x, functional.conv2d(x, values(4, 3, 3, 3)), nn.BatchNorm2d(3)(x), torch.sigmoid(x)):
            assert result.is_contiguous(memory_format=torch.channels_last)
        same(x + x, (x + x).contiguous())


def test_empty_tensors():
    with fpsim.emulate("fp16", "fp16"):
        empty = torch.zeros(0, 3)
        assert (empty @ torch.zeros(3, 4)).shape == (0, 4)
        assert torch.equal(torch.zeros(2, 0) @ torch.zeros(0, 4), torch.zeros(2, 4))
        assert float(empty.sum()) == 0.0
        assert torch.isnan(empty.mean())
        assert empty.sum(0).tolist() == [0.0, 0.0, 0.0]
        assert (empty + 1).shape == torch.relu(empty).shape == empty.softmax(1).shape == (0, 3)
        assert functional.linear(empty, torch.zeros(2, 3), torch.ones(2)).shape == (0, 2)


def test_fp32_is_the_identity_where_fp32_rounds_once():
    """Sums of products run in fp32 in another order than the library's, and functions are rounded once from float64:
    those may differ from plain torch in the last places, the rest may not."""
    x, y = torch.randn(500, generator=torch.Generator().manual_seed(0)), torch.randn(500)
    operations = [torch.add, torch.sub, torch.mul, torch.div, torch.maximum, lambda a, b: torch.relu(a), lambda a, b: a * 0.1]
    with fpsim.emulate("fp32"):
        emulated = [operation(x, y) for operation in operations]
    for operation, result in zip(operations, emulated, strict=True):
        same(result, operation(x, y))


def test_targets_of_bytes_are_indices():
    x, target = torch.tensor([[-0.5, -1.0], [-2.0, -0.25]]).half(), torch.tensor([0, 1], dtype=torch.uint8)
    expected = functional.nll_loss(x, target)
    with fpsim.emulate("native"):
        assert torch.equal(functional.nll_loss(x, target), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float64])
def test_targets_of_other_dtypes_are_refused_as_by_torch(dtype):
    x, target = torch.tensor([[-0.5, -1.0], [-2.0, -0.25]]).half(), torch.tensor([0, 1]).to(dtype)
    with fpsim.emulate("native"), pytest.raises(RuntimeError, match="expected target dtype to be Long or Byte"):
        functional.nll_loss(x, target)
