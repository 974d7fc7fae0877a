"""Forward-mode derivatives: torch's formulas for them, each operation rounded. NumPy's float16 is the oracle."""

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, jacfwd, jvp

import fpsim

HALF = np.float16


def halves(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(HALF)


def tensor_of(x):
    return torch.from_numpy(x.astype(np.float32))


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
