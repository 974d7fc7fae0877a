"""granularity="primitive": composite operations, one rounding for each elementary step, against NumPy's float16 step by step.

NumPy's float16 sums, products, quotients and roots are correctly rounded; elementary functions are float64's, rounded once.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from scipy import special
from torch import nn

import fpsim
from fpsim.emulation.registry import PRIMITIVE, RULES, STEPS, TABLE
from fpsim.emulation.rules.steps import is_composite

H = np.float16
POLICY = {"fmt": "fp16", "accumulate": "fp16", "granularity": "primitive"}
EXP, LOG, TANH, ERF, SIGMOID = (
    lambda x, f=f: f(np.asarray(x, np.float64)).astype(H) for f in (np.exp, np.log, np.tanh, special.erf, special.expit)
)


def total(x, axis=-1):
    """The sum in float16, one term after the other; the axis stays."""
    result = np.zeros_like(np.take(x, [0], axis))
    for k in range(x.shape[axis]):
        result = result + np.take(x, [k], axis)
    return result


def mean(x, axis=-1):
    return total(x, axis) / H(x.shape[axis])


def half(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(H)


def tensor(x):
    return torch.from_numpy(x.astype(np.float32))


def gradients(function, gradient, *operands):
    """The result and the gradients of the operands, emulated."""
    leaves = [tensor(x).requires_grad_() for x in operands]
    with fpsim.emulate(**POLICY):
        y = function(*leaves)
        y.backward(tensor(gradient))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


def same(found, *wanted):
    for a, b in zip(found, wanted, strict=True):
        assert b.dtype == H
        assert np.array_equal(a.numpy(), b.astype(np.float32), equal_nan=True)


X, G = half(7, 33, scale=3.0), half(7, 33, seed=1)


def test_softmax():
    terms = EXP(X - X.max(-1, keepdims=True))
    y = terms / total(terms)
    same(gradients(lambda x: x.softmax(-1), G, X), y, y * (G - total(G * y)))


def test_log_softmax():
    shifted = X - X.max(-1, keepdims=True)
    y = shifted - LOG(total(EXP(shifted)))
    same(gradients(lambda x: x.log_softmax(-1), G, X), y, G - EXP(y) * total(G))


def rsqrt(x):
    return (1 / np.sqrt(x.astype(np.float64))).astype(H)


def test_layer_norm():
    weight, bias = half(33, seed=2), half(33, seed=3)
    eps = H(1e-5)
    middle = mean(X)
    variance = mean((X - middle) * (X - middle))
    inverse = rsqrt(variance + eps)
    normal = (X - middle) * inverse
    scaled = G * weight
    wanted = (
        normal * weight + bias,
        (scaled - mean(scaled) - normal * mean(scaled * normal)) * inverse,
        total(G * normal, 0)[0],
        total(G, 0)[0],
    )
    same(gradients(lambda x, w, b: functional.layer_norm(x, (33,), w, b), G, X, weight, bias), *wanted)


def test_batch_norm_moves_its_statistics():
    running_mean, running_var = half(33, seed=4), abs(half(33, seed=5))
    moved = [tensor(running_mean), tensor(running_var)]
    with fpsim.emulate(**POLICY):
        y = functional.batch_norm(tensor(X), *moved, training=True, momentum=0.1)
    middle = mean(X, 0)
    variance = mean((X - middle) * (X - middle), 0)
    keep, part = H(0.9), H(0.1)
    same(
        [y, *moved],
        (X - middle) * rsqrt(variance + H(1e-5)),
        running_mean * keep + middle[0] * part,
        running_var * keep + (variance[0] * H(7 / 6)) * part,
    )


def test_rms_norm():
    weight = half(33, seed=2)
    inverse = rsqrt(mean(X * X) + H(1e-3))
    normal, scaled = X * inverse, G * weight
    wanted = normal * weight, (scaled - normal * mean(scaled * normal)) * inverse, total(G * normal, 0)[0]
    same(gradients(lambda x, w: functional.rms_norm(x, (33,), w, 1e-3), G, X, weight), *wanted)


def test_gelu():
    half_one, one = H(0.5), H(1)
    area = half_one * (one + ERF(X * H(np.sqrt(0.5))))
    density = EXP(X * X * H(-0.5)) * H(1 / np.sqrt(2 * np.pi))
    same(gradients(functional.gelu, G, X), X * area, G * (area + X * density))


def test_gelu_by_tanh():
    a, b = H(np.sqrt(2 / np.pi)), H(0.044715)
    t = TANH(a * (X + b * (X * X * X)))
    left = H(0.5) * (H(1) + t)
    slope = (H(1) - t * t) * (a * (H(1) + H(3 * 0.044715) * (X * X)))
    wanted = X * left, G * (left + (H(0.5) * X) * slope)
    same(gradients(lambda x: functional.gelu(x, approximate="tanh"), G, X), *wanted)


def test_silu():
    s = SIGMOID(X)
    same(gradients(functional.silu, G, X), X * s, G * (s * (H(1) + X * (H(1) - s))))


def test_variance_and_norm():
    middle = mean(X)
    with fpsim.emulate(**POLICY):
        found = [tensor(X).var(-1), tensor(X).std(-1), tensor(X).norm(dim=-1), tensor(X).prod(-1)]
    variance = total((X - middle) * (X - middle))[:, 0] / H(32)
    product = X[:, 0]
    with np.errstate(over="ignore"):
        for k in range(1, 33):
            product = product * X[:, k]
    same(found, variance, np.sqrt(variance), np.sqrt(total(X * X)[:, 0]), product)


def test_cross_entropy():
    target = np.arange(7) % 33
    shifted = X - X.max(-1, keepdims=True)
    y = shifted - LOG(total(EXP(shifted)))
    chosen = -y[np.arange(7), target]
    loss = total(chosen) / H(7)
    inner = np.zeros_like(X)
    inner[np.arange(7), target] = -(H(1) / H(7))
    found = gradients(lambda x: functional.cross_entropy(x, torch.from_numpy(target)).reshape(1), np.ones(1, H), X)
    same(found, loss, inner - EXP(y) * total(inner))


def test_mse_loss():
    difference = X - G
    flat = (difference * difference).reshape(1, -1)
    found = gradients(lambda x: functional.mse_loss(x, tensor(G)), np.array(1, H), X)
    with np.errstate(over="ignore"):
        same(found, (total(flat) / H(X.size)).reshape(()), (H(2) * difference) * (H(1) / H(X.size)))


def test_average_pooling():
    x = half(1, 2, 5, 6)
    with fpsim.emulate(**POLICY):
        found = [functional.avg_pool2d(tensor(x), 2, 1), functional.adaptive_avg_pool2d(tensor(x), (1, 1))]
    windows = np.stack([x[..., i : i + 4, j : j + 5] for i in (0, 1) for j in (0, 1)], -1)
    same(found, total(windows)[..., 0] / H(4), total(x.reshape(1, 2, 30))[..., None] / H(30))


def test_linear_interpolation():
    x = half(1, 3, 4)
    with fpsim.emulate(**POLICY):
        found = [functional.interpolate(tensor(x), 8, mode="linear"), functional.interpolate(tensor(x), 8)]
    places = np.maximum((np.arange(8) + 0.5) / 2 - 0.5, 0)
    low = np.floor(places).astype(int)
    part = places - low
    high = np.minimum(low + 1, 3)
    same(found, x[..., low] * H(1 - part) + x[..., high] * H(part), x[..., np.arange(8) // 2])


# Optimizers


def stepped(make, w, g, count=2):
    parameter = nn.Parameter(tensor(w))
    optimizer = make([parameter])
    with fpsim.emulate(**POLICY):
        for _ in range(count):
            parameter.grad = tensor(g)
            optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


W, DW = half(50, seed=6), half(50, seed=7)


@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_sgd(how):
    rate, momentum, decay = 0.1, 0.9, 0.01
    parameter, state = stepped(
        lambda p: torch.optim.SGD(p, lr=rate, momentum=momentum, weight_decay=decay, **how), W, DW
    )
    w, buffer = W, None
    for _ in range(2):
        g = DW + H(decay) * w
        buffer = g if buffer is None else buffer * H(momentum) + g
        w = w - H(rate) * buffer
    same([parameter, state["momentum_buffer"]], w, buffer)


def test_fused_adamw():
    rate, decay, eps, b1, b2 = 0.01, 0.1, 1e-3, 0.9, 0.999
    parameter, state = stepped(
        lambda p: torch.optim.AdamW(p, lr=rate, eps=eps, weight_decay=decay, betas=(b1, b2), fused=True), W, DW
    )
    w, m, v = W, np.zeros_like(W), np.zeros_like(W)
    for step in (1, 2):
        w = w * H(1 - rate * decay)
        m = m * H(b1) + DW * H(1 - b1)
        v = v * H(b2) + DW * DW * H(1 - b2)
        denominator = np.sqrt(v) / H((1 - b2**step) ** 0.5) + H(eps)
        w = w - m / denominator * H(rate / (1 - b1**step))
    same([parameter, state["exp_avg"], state["exp_avg_sq"]], w, m, v)


# The table


def test_every_composite_operation_has_steps_or_is_refused():
    for op in TABLE:
        assert (PRIMITIVE[op] is not RULES[op]) == is_composite(op), op
    assert len(STEPS) > 250


def test_what_has_no_steps_says_so():
    with fpsim.emulate("fp16", granularity="primitive"):
        with pytest.raises(fpsim.UnsupportedOp, match=r"no steps.*\n  inputs: float32"):
            torch.linalg.svdvals(torch.eye(2))
        assert torch.linalg.svdvals(torch.eye(2, dtype=torch.float64)).tolist() == [1.0, 1.0]


def test_float64_means_itself():
    x = torch.randn(3, 4, dtype=torch.float64)
    with fpsim.emulate(**POLICY):
        assert torch.equal(x.softmax(-1), x.softmax(-1))
    assert torch.equal(x.softmax(-1), emulated_softmax(x))


def emulated_softmax(x):
    with fpsim.emulate(**POLICY):
        return x.softmax(-1)


def test_half_tensors_under_native_take_the_same_steps():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.GELU(), nn.AvgPool1d(2), nn.Flatten(), nn.LayerNorm(12), nn.Softmax(-1)
    )
    x = torch.randn(3, 2, 8)
    found = []
    for fmt, dtype in (("fp16", torch.float32), ("native", torch.float16), ({"*": "fp16"}, torch.float32)):
        sim = fpsim.run(model.to(dtype), fmt, "fp16", granularity="primitive")
        optimizer = torch.optim.AdamW(sim.parameters(), lr=0.01, eps=1e-3, fused=True)
        with sim:
            y = sim(x.to(dtype))
            (y * y).sum().backward()
            optimizer.step()
        found.append([item.detach().float() for item in (y, *sim.parameters(), *(p.grad for p in sim.parameters()))])
    for a, b, c in zip(*found, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
