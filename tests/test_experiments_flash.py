"""Flash attention's forward and backward, against float64 formulas; its rounding, against ml_dtypes."""

import ml_dtypes
import numpy as np
import pytest
import torch

from experiments.models.flash import Flash, FlashAttention

EXACT = Flash(values="", output="")


def operands(shape=(2, 3, 5, 4), v=None):
    generator = torch.Generator().manual_seed(0)
    q, k, values = (torch.randn(shape, generator=generator).requires_grad_() for _ in range(3))
    return q, k, values if v is None else v


@pytest.mark.parametrize("causal", [False, True])
def test_without_rounding_it_is_attention(causal):
    q, k, v = operands()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).square().sum().backward()
    expected = [x.grad.clone() for x in (q, k, v)]
    for x in (q, k, v):
        x.grad = None
    FlashAttention(EXACT)(q, k, v, is_causal=causal).square().sum().backward()
    for x, gradient in zip((q, k, v), expected, strict=True):
        torch.testing.assert_close(x.grad, gradient, rtol=2e-5, atol=2e-6)


def test_its_gradient_has_the_rounded_output_in_delta():
    """dS = P (dO v - delta), delta = rowsum(dO O), O the rounded output over the sum of P; all else in float64."""
    q, k, v = operands((1, 6, 4))
    found = FlashAttention(Flash())(q, k, v)
    gradient = torch.linspace(-1, 1, 24).reshape(1, 6, 4)
    (found * gradient).sum().backward()
    with torch.no_grad():
        scores = (q @ k.transpose(-2, -1) / 2).double().numpy()
        e = np.exp(scores - scores.max(-1, keepdims=True))
        narrow = v.numpy().astype(ml_dtypes.bfloat16).astype(np.float64)
        p, go = e / e.sum(-1, keepdims=True), gradient.double().numpy()
        delta = (go * found.double().numpy()).sum(-1, keepdims=True)
        ds = p * (go @ narrow.transpose(0, 2, 1) - delta)
        expected = ds @ k.double().numpy() / 2
    assert np.abs(q.grad.numpy() - expected).max() < 2e-6 < np.abs((p * delta).max()) * 2**-9


def test_ties_of_two_equal_maxima_are_broken_by_the_small_terms():
    """-1 - 0.50390625 lies between two bf16 numbers: alone to even, with anything negative behind it away from zero."""
    v = torch.tensor([[-1.0], [-0.50390625], [-1.0]]).unsqueeze(0)
    for small, expected in ((-200.0, -1.5), (-9.0, -1.5078125)):
        k = torch.tensor([[0.0], [0.0], [small]]).unsqueeze(0)
        attention = FlashAttention(Flash())
        found = attention(torch.ones(1, 1, 1), k, v)
        total = 2 + np.exp(small)
        assert float(found) * total == pytest.approx(expected, rel=1e-6) and attention.repeated == 1
        assert float(FlashAttention(Flash(output=""))(torch.ones(1, 1, 1), k, v)) * total == pytest.approx(
            -1.50390625 - np.exp(small), rel=1e-4
        )


@pytest.mark.parametrize(("top", "largest"), [(3.0, np.exp(-3.0)), (-3.0, np.exp(-3.0))])
def test_a_shifted_maximum_leaves_every_p_below_one_and_the_result(top, largest):
    k = torch.tensor([[top], [top], [top - 1]]).unsqueeze(0)
    _, _, v = operands((1, 3, 2))
    seen = []
    attention = FlashAttention(Flash(values="", output="", shift=2.0))
    attention._round = lambda x, *rest: seen.append(x) or x
    found = attention(torch.ones(1, 1, 1), k, v)
    assert float(seen[0].max()) == pytest.approx(largest, rel=1e-6)
    torch.testing.assert_close(found, FlashAttention(EXACT)(torch.ones(1, 1, 1), k, v), rtol=1e-5, atol=1e-6)
