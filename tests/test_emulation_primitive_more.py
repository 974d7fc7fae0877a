"""granularity="primitive": sampling, alignments and histograms against loops over single numbers, after ATen's own.

NumPy's float16 sums, products and quotients are correctly rounded; elementary functions are float64's, rounded once.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional

import fpsim
from tests.test_emulation_primitive import EXP, LOG, POLICY, H, gradients, half, same, tensor

PADDINGS = ("zeros", "border", "reflection")
FP32 = {"fmt": "fp32", "accumulate": "fp32", "granularity": "primitive"}


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dims, mode", [(2, "bilinear"), (2, "nearest"), (2, "bicubic"), (3, "bilinear"), (3, "nearest")])
def test_grid_sample_in_fp32_is_atens_loop(dims, mode, padding, align_corners):
    """Bit for bit, gradients too: torch's loops over single numbers, which its vector kernels stand in for in 2-D."""
    torch.manual_seed(dims)
    sizes, outs = (4, 5, 1)[:dims], (5, 4, 3)[:dims]
    x, grid = torch.randn(2, 3, *sizes), torch.rand(2, *outs, dims) * 3 - 1.5
    grid[0, 0, 0], grid[1, 1, 1] = 1.0, -1.0
    gradient = torch.randn(2, 3, *outs)
    codes = ["bilinear", "nearest", "bicubic"].index(mode), PADDINGS.index(padding), align_corners
    aten = torch.ops.aten
    if dims == 2:
        wanted = aten._grid_sampler_2d_cpu_fallback(x, grid, *codes)
        slopes = aten._grid_sampler_2d_cpu_fallback_backward(gradient, x, grid, *codes)
    else:
        wanted = aten.grid_sampler_3d(x, grid, *codes)
        slopes = aten.grid_sampler_3d_backward(gradient, x, grid, *codes, [True, True])
    x.requires_grad_()
    grid.requires_grad_()
    with fpsim.emulate(**FP32):
        found = functional.grid_sample(x, grid, mode, padding, align_corners)
        found.backward(gradient)
    for mine, theirs in zip((found, x.grad, grid.grad), (wanted, *slopes), strict=True):
        assert torch.equal(mine, theirs)


def place(c, size, padding):
    """The coordinate and its slope, without align_corners, in float16."""
    c = ((c + H(1)) * H(size) - H(1)) / H(2)
    slope = H(size / 2)
    if padding == "zeros":
        return c, slope
    if padding == "reflection":
        low, span = H(-0.5), H(size)
        shifted = c - low
        distance = abs(shifted)
        extra, odd = H(math.fmod(distance, span)), math.floor(distance / span) % 2
        c = span - extra + low if odd else extra + low
        slope = -slope if bool(odd) != (shifted < 0) else slope
    return min(max(c, H(0)), H(size - 1)), slope if 0 < c < size - 1 else H(0)


@pytest.mark.parametrize("padding", PADDINGS)
def test_grid_sample_rounds_every_step(padding):
    x, gradient = half(1, 2, 4, 5), half(1, 2, 3, 3, seed=1)
    grid = (np.random.default_rng(2).random((1, 3, 3, 2)) * 3 - 1.5).astype(H)
    out, gx, gg = np.zeros((1, 2, 3, 3), H), np.zeros_like(x), np.zeros_like(grid)
    for h, w in np.ndindex(3, 3):
        (ix, slope_x), (iy, slope_y) = place(grid[0, h, w, 0], 5, padding), place(grid[0, h, w, 1], 4, padding)
        left, top = math.floor(ix), math.floor(iy)
        ax, ay = [H(left + 1) - ix, ix - H(left)], [H(top + 1) - iy, iy - H(top)]
        of_x = of_y = H(0)
        for c in range(2):
            for j, i in np.ndindex(2, 2):
                if not (0 <= left + i < 5 and 0 <= top + j < 4):
                    continue
                value, g = x[0, c, top + j, left + i], gradient[0, c, h, w]
                out[0, c, h, w] = out[0, c, h, w] + value * (ax[i] * ay[j])
                gx[0, c, top + j, left + i] += ax[i] * ay[j] * g
                of_x += (1 if i else -1) * (value * ay[j] * g)
                of_y += (1 if j else -1) * (value * ax[i] * g)
        gg[0, h, w] = of_x * slope_x, of_y * slope_y
    same(gradients(lambda a, b: functional.grid_sample(a, b, "bilinear", padding, False), gradient, x, grid), out, gx, gg)


def test_coordinates_that_are_no_numbers_read_nothing():
    x = torch.ones(1, 1, 3, 3, requires_grad=True)
    grid = torch.tensor([math.nan, 0.0, 0.0, math.inf, 65504.0, 0.0]).reshape(1, 1, 3, 2).requires_grad_()
    with fpsim.emulate(**POLICY):
        y = functional.grid_sample(x, grid, align_corners=False)
        y.sum().backward()
    assert not y.any() and not x.grad.any() and not grid.grad.any()


# Connectionist temporal classification

NOTHING = H(-np.inf)


def log_sum(*terms):
    most = max(terms)
    most = H(0) if most == NOTHING else most
    total = EXP(terms[0] - most)
    for term in terms[1:]:
        total = total + EXP(term - most)
    with np.errstate(divide="ignore"):
        return LOG(total) + most


def ctc_of_one(p, target, blank, gradient):
    """The loss of (times, classes) and the gradient, in float16."""
    times = len(p)
    labels = [blank]
    for label in target:
        labels += [label, blank]
    last = len(labels) - 1
    alpha, beta = np.full((2, times, len(labels)), NOTHING)
    for s in range(min(2, len(labels))):
        alpha[0, s] = p[0, labels[s]]
    for t in range(1, times):
        for s, label in enumerate(labels):
            skips = s > 1 and label != labels[s - 2]
            before = alpha[t - 1]
            alpha[t, s] = log_sum(before[s], before[s - 1] if s else NOTHING, before[s - 2] if skips else NOTHING) + p[t, label]
    loss = -(log_sum(alpha[-1, last], alpha[-1, last - 1]) if last else alpha[-1, last])
    sums = np.full(p.shape, NOTHING)
    for t in reversed(range(times)):
        for s in reversed(range(len(labels))):
            label = labels[s]
            if t == times - 1:
                beta[t, s] = p[t, label] if s >= last - 1 else NOTHING
            else:
                after = beta[t + 1]
                skips = s < last - 1 and label != labels[s + 2]
                one, two = after[s + 1] if s < last else NOTHING, after[s + 2] if skips else NOTHING
                beta[t, s] = log_sum(after[s], one, two) + p[t, label]
            both = alpha[t, s] + beta[t, s]
            sums[t, label] = both if sums[t, label] == NOTHING else log_sum(sums[t, label], both)
    return loss, (EXP(p) - EXP(sums + loss - p)) * gradient


@pytest.mark.parametrize("joined", [True, False])
def test_ctc_loss_rounds_every_step(joined):
    times, classes, blank = [7, 5, 6], 4, 1
    targets = [[0, 0, 2], [3, 2], []]
    p = LOG(np.random.default_rng(0).dirichlet(np.ones(classes), (7, 3)))
    gradient = half(3, seed=1)
    losses, slopes = np.zeros(3, H), np.zeros_like(p)
    for n, (count, target) in enumerate(zip(times, targets, strict=True)):
        losses[n], slopes[:count, n] = ctc_of_one(p[:count, n], target, blank, gradient[n])
    padded = torch.tensor([target + [0] * (3 - len(target)) for target in targets])
    given = torch.tensor([label for target in targets for label in target]) if joined else padded
    lengths = tuple(torch.tensor(item) if joined else tuple(item) for item in (times, list(map(len, targets))))
    found = gradients(lambda x: functional.ctc_loss(x, given, *lengths, blank, reduction="none"), gradient, tensor(p).numpy())
    same(found, losses, slopes)


def test_ctc_loss_of_what_cannot_be():
    p = torch.randn(2, 3, 4).log_softmax(-1)
    lengths = torch.tensor([2, 2, 0]), torch.tensor([3, 1, 0])  # three labels in two times; nothing in none
    targets = torch.ones(3, 3, dtype=torch.int64)
    for zero_infinity in (False, True):
        leaf = p.clone().requires_grad_()
        with fpsim.emulate(**POLICY):
            loss = functional.ctc_loss(leaf, targets, *lengths, reduction="none", zero_infinity=zero_infinity)
            loss.sum().backward()
        assert loss[2] == 0 and not leaf.grad[:, 2].any()
        assert loss[0] == (0 if zero_infinity else math.inf) and loss[1].isfinite()
        assert not zero_infinity or not leaf.grad[:, 0].any()


# Histograms


def test_histograms_count_in_the_accumulator():
    x = np.concatenate([np.zeros(2100), [0.5] * 3, [1.0], [2.0, np.nan, -3.0]]).astype(H)
    edges, weights = np.array([0, 0.25, 1], H), abs(half(len(x)))
    inside = [(x >= 0) & (x < H(0.25)), (x >= H(0.25)) & (x <= 1)]

    def summed(values):
        total = H(0)
        for value in values:
            total = total + value
        return total

    with fpsim.emulate(**POLICY):
        counts, kept = torch.histogram(tensor(x), tensor(edges))
        weighted, _ = torch.histogram(tensor(x), tensor(edges), weight=tensor(weights))
        dense, _ = torch.histogram(tensor(x), tensor(edges), weight=tensor(weights), density=True)
        two, _ = torch.histogramdd(tensor(np.stack([x, x], 1)), [tensor(edges), tensor(edges)], weight=tensor(weights))
        ranged, spaced = torch.histogram(tensor(x), 3, range=(0.0, 1.0))
        lines = torch.histc(tensor(x[:-3]), 3)
    sums = np.array([summed(weights[chosen]) for chosen in inside])
    same([counts, kept, weighted], np.array([2048, 4], H), edges, sums)  # a float16 count ends at 2048
    same([dense, two], sums / summed(sums) / np.diff(edges), np.diag(sums))
    thirds = np.array([0, 1 / 3, 2 / 3, 1]).astype(H)
    same([ranged, spaced, lines], np.array([2048, 3, 1], H), thirds, np.array([2048, 3, 1], H))


def test_embeddings_are_renormed_and_adagrad_steps():
    weight, indices = half(5, 3, scale=2.0), torch.tensor([[4, 1], [1, 0]])
    norms = [np.sqrt(sum((row * row)[1:], (row * row)[0])) for row in weight]
    wanted = weight.copy()
    for i in (0, 1, 4):
        if norms[i] > 1:
            wanted[i] = weight[i] * (H(1) / (norms[i] + H(1e-7)))
    table = tensor(weight)
    with fpsim.emulate(**POLICY):
        functional.embedding(indices, table, max_norm=1.0)
    same([table], wanted)
    parameter = torch.nn.Parameter(tensor(weight))
    gradient = half(5, 3, seed=4)
    with fpsim.emulate(**POLICY):
        optimizer = torch.optim.Adagrad([parameter], lr=0.1, lr_decay=0.5, weight_decay=0.25, eps=1e-3, fused=True)
        total = np.zeros_like(weight)
        for step in range(2):
            parameter.grad = tensor(gradient)
            optimizer.step()
            slope = gradient + H(0.25) * weight
            total = total + slope * slope
            weight = weight - slope / (np.sqrt(total) + H(1e-3)) * H(0.1 / (1 + step * 0.5))
            same([parameter.detach(), optimizer.state[parameter]["sum"]], weight, total)
