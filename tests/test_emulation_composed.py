"""What torch has kernels for and is made of other operations here, integers and places, and draws from gamma distributions."""

import numpy as np
import pytest
import torch
from torch import distributions
from torch.nn import functional

import fpsim
from tests.halves import HALF, halves, tensor_of


def coordinates(count, align_corners):
    ends = np.linspace(-1, 1, count).astype(HALF)
    if align_corners:
        return ends
    wide = (ends.astype(np.float32) * np.float32(count - 1)).astype(HALF)
    return (wide.astype(np.float32) / np.float32(count)).astype(HALF)


@pytest.mark.parametrize("align_corners", [False, True])
def test_an_affine_grid_is_a_product_through_the_accumulator(align_corners):
    theta = halves(2, 2, 3)
    with fpsim.emulate("fp16", "fp16"):
        moved = tensor_of(theta).requires_grad_()
        grid = functional.affine_grid(moved, [2, 1, 3, 5], align_corners=align_corners)
        grid.backward(torch.ones_like(grid))
    y, x = np.meshgrid(coordinates(3, align_corners), coordinates(5, align_corners), indexing="ij")
    total = np.zeros((2, 3, 5, 2), HALF)
    for k, term in enumerate((x, y, np.ones_like(x))):
        total = total + term[None, :, :, None] * theta[:, None, None, :, k]
    assert np.array_equal(grid.detach().numpy(), total.astype(np.float32))
    sums = [np.add.accumulate(term.reshape(-1), dtype=HALF)[-1] for term in (x, y, np.ones_like(x))]
    assert np.array_equal(moved.grad.numpy(), np.broadcast_to(np.array(sums, np.float32), (2, 2, 3)))


def test_a_convolution_over_time_first_is_the_convolution():
    x, weight, bias = halves(7, 2, 3), halves(3, 3, 4, seed=1), halves(4, seed=2)
    with fpsim.emulate("fp16", "fp16"):
        own = [tensor_of(item).requires_grad_() for item in (x, weight, bias)]
        found = torch.conv_tbc(*own, 1)
        other = functional.conv1d(own[0].permute(1, 2, 0), own[1].permute(2, 1, 0), own[2], padding=1).permute(2, 0, 1)
        assert torch.equal(found, other)
        found.sum().backward()
    assert all(torch.equal(item.grad, item.grad.half().float()) for item in own)


def test_integers_and_places_are_torchs_own():
    calls = (
        lambda: torch.tril_indices(3, 4, 1), lambda: torch.triu_indices(4, 3),
        lambda: torch.tensor([4, 6]).gcd(torch.tensor(6)), lambda: torch.tensor([4, 6]).lcm(torch.tensor(6)),
        lambda: torch._int_mm(torch.full((17, 8), 3, dtype=torch.int8), torch.ones(8, 8, dtype=torch.int8)),
    )  # fmt: skip
    for call in calls:
        for fmt in ("fp16", "native", {"*": "e4m3fn"}):
            with fpsim.emulate(fmt):
                found = call()
            assert torch.equal(found, call()) and found.dtype is call().dtype
    x = torch.ones(3)
    with fpsim.emulate("fp16"):
        assert x.is_set_to(x[:]) and not x.is_set_to(torch.ones(3))


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_draws_of_gamma_distributions_are_values_that_have_logarithms_and_gradients(granularity):
    with fpsim.emulate("fp16", granularity=granularity):
        alpha = torch.tensor([0.0625, 0.5, 2.0]).requires_grad_()
        torch.manual_seed(0)
        for one in (distributions.Gamma(alpha, alpha), distributions.Beta(alpha, alpha), distributions.StudentT(alpha + 2)):
            drawn = one.rsample((50,))
            (gradient,) = torch.autograd.grad(drawn.sum(), alpha)
            assert torch.equal(drawn, drawn.half().float()) and torch.equal(gradient, gradient.half().float())
        drawn = torch._standard_gamma(torch.full((1000,), 0.03125))
        assert drawn.min() == 2**-14  # the least normal number, as of torch.half
        counts = distributions.Binomial(10, torch.tensor([0.25, 0.75])).sample((20,))
    assert torch.equal(counts, counts.round()) and counts.max() <= 10


def chained(a, b):
    """a @ b, every product and every sum rounded."""
    total = np.zeros((*a.shape[:-1], b.shape[-1]), HALF)
    for k in range(a.shape[-1]):
        total = total + a[..., k, None] * b[..., None, k, :]
    return total


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_a_bilinear_form_is_two_products_through_the_accumulator(granularity):
    a, b, weight, slope = halves(5, 3), halves(5, 4, seed=1), halves(6, 3, 4, seed=2), halves(5, 6, seed=3)
    own = [tensor_of(item).requires_grad_() for item in (a, b, weight)]
    with fpsim.emulate("fp16", "fp16", granularity=granularity):
        found = functional.bilinear(*own)
        found.backward(tensor_of(slope))
    first = np.stack([chained(a, matrix) for matrix in weight])
    expected = np.stack([chained(row[:, None], b[:, :, None])[:, 0, 0] for row in first], 1)
    assert np.array_equal(found.detach().numpy(), expected.astype(np.float32))
    of_a, of_b = np.zeros_like(a), np.zeros_like(b)
    for of_one, matrix in zip(slope.T, weight, strict=True):  # of both gradients a slice each, which are added
        scaled = of_one[:, None, None] * matrix
        of_a = of_a + np.stack([chained(rows, row[:, None])[:, 0] for rows, row in zip(scaled, b, strict=True)])
        of_b = of_b + chained(a, matrix) * of_one[:, None]
    of_weight = np.stack([chained((of_one[:, None] * a).T, b) for of_one in slope.T])
    for tensor, gradient in zip(own, (of_a, of_b, of_weight), strict=True):
        assert np.array_equal(tensor.grad.numpy(), gradient.astype(np.float32))


def test_distances_by_a_product_are_its_steps():
    a, b = halves(30, 3), halves(27, 3, seed=1)
    with fpsim.emulate("fp16", "fp16"):
        found = torch.cdist(tensor_of(a), tensor_of(b))
    squares = [np.add.accumulate(item * item, axis=1, dtype=HALF)[:, -1:] for item in (a, b)]
    left = np.hstack([a * HALF(-2), squares[0], np.ones((30, 1), HALF)])
    right = np.hstack([b, np.ones((27, 1), HALF), squares[1]])
    expected = np.sqrt(np.maximum(chained(left, right.T), 0).astype(np.float64)).astype(HALF)
    assert np.array_equal(found.numpy(), expected.astype(np.float32))


def test_an_outer_product_that_is_added_is_torchs_elementwise_kernel():
    c, a, b = (tensor_of(item).half() for item in (halves(5, 4), halves(5, seed=1), halves(4, seed=2)))
    for factors in ({}, {"beta": 0.5}, {"alpha": 3.0, "beta": 2.0}, {"beta": 0.0}):
        with fpsim.emulate("native", "fp32"):
            found = torch.addr(c, a, b, **factors)
        assert torch.equal(found, torch.addr(c, a, b, **factors))


def test_counts_with_weights_are_sums_through_the_accumulator():
    places, weights = np.array([1, 0, 1, 3, 1, 0]), halves(6)
    with fpsim.emulate("fp16", "fp16"):
        found = torch.bincount(torch.from_numpy(places), tensor_of(weights), minlength=6)
        plain = torch.bincount(torch.from_numpy(places))
    expected = np.zeros(6, HALF)
    for place, weight in zip(places, weights, strict=True):
        expected[place] = expected[place] + weight
    assert np.array_equal(found.numpy(), expected.astype(np.float32)) and plain.tolist() == [2, 3, 0, 1]


def test_what_is_made_into_a_tensor_is_rounded_there():
    out = torch.empty(3)
    with fpsim.emulate("fp16"):
        torch.arange(0.1, 0.35, 0.1, out=out)
        assert out.tolist() == [0.0999755859375, 0.199951171875, 0.300048828125]
        assert torch.full((3,), 0.1, out=out)[0].item() == 0.0999755859375
        assert torch.equal(torch.eye(2, out=torch.empty(0)), torch.eye(2))
        assert torch.arange(3, out=torch.empty(0, dtype=torch.int64)).tolist() == [0, 1, 2]
        drawn = torch.quasirandom.SobolEngine(2).draw(4)
    assert torch.equal(drawn, torch.quasirandom.SobolEngine(2).draw(4))


def test_a_condition_chooses_what_is_computed():
    x = tensor_of(halves(4)).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        for factor, tensor in ((1.1, x.abs()), (1.2, -x.abs())):
            found = torch.cond(tensor.sum() > 0, lambda y: (y * 1.1,), lambda y: (y * 1.2,), (x,))[0]
            (slope,) = torch.autograd.grad(found.sum(), x)
            assert torch.equal(found, x * factor) and slope.tolist() == [float(HALF(factor))] * 4
