"""What a small model means: its forward pass on mpmath numbers of 1,500 bits, an element at a time.

Sums and products of weights and inputs are exact at that precision. Shares nothing with fpsim.
"""

import functools
import math

import mpmath
import numpy as np
import torch
from flint import arb, ctx
from torch import nn

CONTEXT = mpmath.mp.clone()
CONTEXT.prec = 1500
number = CONTEXT.mpf


class Residual(nn.Module):
    """x + inner(x)."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x)


class Product(nn.Module):
    """left(x) * right(x)."""

    def __init__(self, left, right):
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x):
        return self.left(x) * self.right(x)


class Attention(nn.Module):
    """Scaled dot-product attention of three linear maps of (n, tokens, width)."""

    def __init__(self, width):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x):
        return nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


def exact(tensor):
    return np.vectorize(lambda value: number(float(value)), otypes=[object])(tensor.detach().double().numpy())


def each(function):
    return lambda module, x: np.vectorize(function, otypes=[object])(x)


def linear(module, x):
    result = x @ exact(module.weight).T
    return result if module.bias is None else result + exact(module.bias)


def windows(x, kernel, stride, padding, fill):
    """(n, c, oh, ow, kh, kw)"""
    padded = np.full((*x.shape[:2], x.shape[2] + 2 * padding, x.shape[3] + 2 * padding), fill, object)
    padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]] = x
    rows, columns = ((size - kernel) // stride + 1 for size in padded.shape[2:])
    return np.array([[[[padded[n, c, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                        for j in range(columns)] for i in range(rows)] for c in range(x.shape[1])] for n in range(len(x))],
                    object)  # fmt: skip


def convolution(module, x):
    parts = windows(x, module.kernel_size[0], module.stride[0], module.padding[0], number(0))
    result = np.einsum("ncijkl,ockl->noij", parts, exact(module.weight))
    return result + exact(module.bias)[:, None, None]


def normalized(rows, eps):
    mean = rows.sum(-1, keepdims=True) / rows.shape[-1]
    variance = ((rows - mean) ** 2).sum(-1, keepdims=True) / rows.shape[-1]
    return (rows - mean) / np.vectorize(CONTEXT.sqrt, otypes=[object])(variance + number(eps))


def layer_norm(module, x):
    return normalized(x, module.eps) * exact(module.weight) + exact(module.bias)


def group_norm(module, x):
    rows = normalized(x.reshape(len(x), module.num_groups, -1), module.eps).reshape(x.shape)
    return rows * exact(module.weight)[:, None, None] + exact(module.bias)[:, None, None]


def batch_norm(module, x):
    mean, variance, weight, bias = (
        exact(item)[:, None, None] for item in (module.running_mean, module.running_var, module.weight, module.bias)
    )
    return (x - mean) / np.vectorize(CONTEXT.sqrt, otypes=[object])(variance + number(module.eps)) * weight + bias


def softmax(x):
    powers = np.vectorize(CONTEXT.exp, otypes=[object])(x)
    return powers / powers.sum(-1, keepdims=True)


def attention(module, x):
    query, key, value = (linear(part, x) for part in (module.query, module.key, module.value))
    scores = np.array([q @ k.T for q, k in zip(query, key, strict=True)]) / CONTEXT.sqrt(x.shape[-1])
    return np.array([p @ v for p, v in zip(softmax(scores), value, strict=True)])


def gelu(x):
    """Within 2^-1500 of x by Arb, which bounds its own error; mpmath's erf took a third of the time of many examples."""
    with ctx.workprec(CONTEXT.prec + 100):
        z = arb(tuple(map(int, abs(x).man_exp))) * (-1 if x < 0 else 1)
        result = z * (-z / arb(2).sqrt()).erfc() / 2
        assert result.rad() <= abs(z) * arb(2) ** -CONTEXT.prec, x
        return number(tuple(map(int, result.mid().man_exp())))


def sigmoid(x):
    return 1 / (1 + CONTEXT.exp(-x))


MEANING = {
    nn.Linear: linear,
    nn.Conv2d: convolution,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.BatchNorm2d: batch_norm,
    nn.Softmax: lambda module, x: softmax(x),
    nn.Flatten: lambda module, x: x.reshape(*x.shape[: module.start_dim], -1),
    nn.MaxPool2d: lambda module, x: windows(x, module.kernel_size, module.stride, 0, number(0)).max((-1, -2)),
    nn.AvgPool2d: lambda module, x: windows(x, module.kernel_size, module.stride, 0, number(0)).sum((-1, -2))
    / module.kernel_size**2,
    nn.AdaptiveAvgPool2d: lambda module, x: x.sum((-1, -2), keepdims=True) / math.prod(x.shape[2:]),
    nn.Embedding: lambda module, x: exact(module.weight)[x],
    nn.ReLU: each(lambda x: max(x, number(0))),
    nn.ReLU6: each(lambda x: min(max(x, number(0)), number(6))),
    nn.LeakyReLU: lambda module, x: np.where(x > 0, x, x * number(module.negative_slope)),
    nn.Hardswish: each(lambda x: x * min(max(x + 3, number(0)), number(6)) / 6),
    nn.Hardsigmoid: each(lambda x: min(max(x + 3, number(0)), number(6)) / 6),
    nn.ELU: each(lambda x: x if x > 0 else CONTEXT.exp(x) - 1),
    nn.Tanh: each(CONTEXT.tanh),
    nn.Sigmoid: each(sigmoid),
    nn.GELU: each(gelu),
    nn.SiLU: each(lambda x: x * sigmoid(x)),
    Residual: lambda module, x: x + meaning(module.inner, x),
    Product: lambda module, x: meaning(module.left, x) * meaning(module.right, x),
    Attention: attention,
    nn.Sequential: lambda module, x: functools.reduce(lambda value, part: meaning(part, value), module, x),
}


def meaning(module, x):
    """module(x) in exact arithmetic (elementary functions and roots to 1,500 bits): an array of mpmath numbers."""
    return MEANING[type(module)](module, x)


def logits(model, x):
    return meaning(model, exact(x) if x.is_floating_point() else x.numpy())


def violations(bound, found, expected):
    """The places where |found - expected| > bound, found and bound being tensors; places of infinite bounds are none."""
    return [
        place
        for place in np.ndindex(expected.shape)
        if float(bound[place]) != math.inf
        and not abs(number(float(found[place])) - expected[place]) <= number(float(bound[place]))
    ]


def seeded(seed, *parts):
    """An nn.Sequential in eval mode whose parameters and statistics come from the seed."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(*parts).eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                fan = tensor[0].numel() if tensor.dim() > 1 else 1
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / math.sqrt(fan))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.1)
    return model
