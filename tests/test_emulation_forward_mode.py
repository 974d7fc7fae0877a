"""Forward-mode derivatives: torch's formulas for them, each operation rounded. NumPy's float16 is the oracle."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.nn import functional

import fpsim
from tests.halves import HALF, halves, tensor_of


def chain(a, b):
    total = np.zeros((a.shape[0], b.shape[1]), HALF)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k]
    return total


@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp16"}], ids=str)
def test_tangents_go_through_the_machine(fmt):
    x, w, t = halves(3, 5), halves(5, 2, seed=1), halves(3, 5, seed=2)
    layer = torch.nn.Linear(5, 2, bias=False)
    layer.weight.data = tensor_of(np.ascontiguousarray(w.T))
    with fpsim.emulate(fmt, "fp16"):
        value, tangent = jvp(lambda a: a @ tensor_of(w), (tensor_of(x),), (tensor_of(t),))
        with forward_ad.dual_level():
            dual = forward_ad.unpack_dual(layer(forward_ad.make_dual(tensor_of(x), tensor_of(t))))
        square = jvp(lambda a: a * a, (tensor_of(x),), (tensor_of(t),))[1]
        second = jvp(grad(lambda a: (a * a * a).sum()), (tensor_of(x),), (tensor_of(t),))[1]
        jacobian = jacfwd(lambda a: a @ tensor_of(w))(tensor_of(x[0]))
    for found, expected in ((value, chain(x, w)), (tangent, chain(t, w)), (dual.tangent, chain(t, w)), (square, t * x + x * t)):
        assert np.array_equal(found.detach().numpy(), expected.astype(np.float32))
    assert torch.equal(second, second.half().float())
    assert torch.equal(jacobian, tensor_of(w).mT)


@pytest.mark.parametrize("fmt", ["fp16", "native", {"*": "fp16"}], ids=str)
@pytest.mark.parametrize("view", [lambda x: x[:, 1:], lambda x: x[0], lambda x: x.unfold(1, 2, 1), torch.diagonal])
def test_a_view_of_a_tensor_from_outside_has_the_view_of_its_tangent(view, fmt):
    x, t = tensor_of(halves(3, 4)), tensor_of(halves(3, 4, seed=1)).t().contiguous().t()
    with fpsim.emulate(fmt):
        value, tangent = jvp(lambda a: view(a) * 2, (x,), (t,))
    assert torch.equal(value, view(x) * 2) and torch.equal(tangent, view(t) * 2)


def test_numbers_that_vmap_casts_to_what_they_meet_are_values_of_the_format():
    x, y = halves(4), halves(4, seed=1)
    with fpsim.emulate("fp16"):
        curvature = jacfwd(jacrev(lambda a: functional.huber_loss(a, tensor_of(y), delta=0.3)))(tensor_of(x))
        shares = vmap(lambda t: t / 3)(tensor_of(x))
    near = np.abs(x - y) <= HALF(0.3)
    assert torch.equal(curvature.diagonal() != 0, torch.from_numpy(near)) and set(curvature.unique().tolist()) <= {0.0, 0.25}
    assert np.array_equal(shares.numpy(), (x / HALF(3)).astype(np.float32))


def test_the_tangents_of_glu_are_its_formulas_rounded_once_and_step_by_step():
    x, t = halves(5, 6), halves(5, 6, seed=1)

    def expected(dtype):
        (a, b), (da, db) = (np.split(item.astype(dtype), 2, 1) for item in (x, t))
        s = 1 / (1 + np.exp(-b.astype(np.float64)))
        s, result = s.astype(dtype), (a * s.astype(dtype) if dtype is HALF else (a * s).astype(HALF).astype(dtype))
        return (da * s + (result * (1 - s)) * db).astype(HALF).astype(np.float32)

    for granularity, dtype in (("kernel", np.float64), ("primitive", HALF)):
        with fpsim.emulate("fp16", granularity=granularity):
            tangent = jvp(functional.glu, (tensor_of(x),), (tensor_of(t),))[1]
            second = jvp(grad(lambda a: functional.glu(a).square().sum()), (tensor_of(x),), (tensor_of(t),))[1]
        assert np.array_equal(tangent.numpy(), expected(dtype))
        wide = jvp(grad(lambda a: functional.glu(a).square().sum()), (tensor_of(x).double(),), (tensor_of(t).double(),))[1]
        assert (second - wide).abs().max() < 2**-6 and torch.equal(second, second.half().float())
