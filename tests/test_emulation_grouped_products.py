"""Products of groups, as layers of experts make them: each is a matrix product of its own, in NumPy's float16 loop."""

import numpy as np
import pytest
import torch

import fpsim

OFFSETS = ([2, 6], [0, 6], [6, 6], [3, 5], [0, 0])


def of(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float16).astype(np.float32))


def product(a, b):
    a, b = (item.detach().numpy().astype(np.float16) for item in (a, b))
    total = np.zeros((a.shape[0], b.shape[1]), np.float16)
    for k in range(a.shape[1]):
        total = total + a[:, k : k + 1] * b[k]
    return torch.from_numpy(total.astype(np.float32))


def ends(values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
def test_rows_of_each_group_meet_its_matrix(offsets, granularity):
    x, w, gradient = of(6, 4).requires_grad_(), of(2, 4, 8, seed=1).requires_grad_(), of(6, 8, seed=2)
    with fpsim.emulate("fp16", "fp16", granularity=granularity):
        y = torch.nn.functional.grouped_mm(x, w, offs=ends(offsets))
        y.backward(gradient)
    bounds = list(zip([0, *offsets], offsets, strict=False))
    used = offsets[-1]
    assert torch.equal(y[:used], torch.cat([product(x[i:j], m) for (i, j), m in zip(bounds, w, strict=False)]))
    assert not y[used:].any() and not x.grad[used:].any()
    assert torch.equal(x.grad[:used], torch.cat([product(gradient[i:j], m.T) for (i, j), m in zip(bounds, w, strict=False)]))
    assert torch.equal(w.grad, torch.stack([product(x[i:j].T, gradient[i:j]) for i, j in bounds]))


def test_groups_of_columns_and_of_matrices():
    a, b, offsets = of(3, 4, 8), of(8, 8, seed=1), [2, 5, 8]
    with fpsim.emulate("fp16", "fp16"):
        columns = torch._grouped_mm(a, b, ends(offsets))
        matrices = torch._grouped_mm(a, of(3, 8, 8, seed=2))
    assert torch.equal(columns, torch.cat([product(m, b[:, i:j]) for m, i, j in zip(a, [0, 2, 5], offsets, strict=False)], 1))
    assert torch.equal(matrices, torch.stack([product(m, n) for m, n in zip(a, of(3, 8, 8, seed=2), strict=False)]))


def test_half_means_the_same_under_native():
    x, w = of(6, 8), of(2, 8, 8, seed=1)
    with fpsim.emulate("native", "fp16"):
        found = torch._grouped_mm(x.half(), w.half(), ends([2, 6]))
    assert torch.equal(found.float(), torch.cat([product(x[:2], w[0]), product(x[2:], w[1])]))


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        (ends([2, 9]), "ascends within 0 ... 6"),
        (ends([4, 2]), "ascends"),
        (ends([-1, 6]), "ascends"),
        (ends([6]), "ends 1 groups"),
        (torch.tensor([2, 6]), "int32"),
        (ends([[2, 6]]), "vector"),
    ],
    ids=str,
)
def test_offsets_that_name_no_groups_are_refused(offsets, message):
    """torch's own kernel on the CPU reads what lies beside the operand for some of these."""
    with fpsim.emulate("fp16"), pytest.raises(RuntimeError, match=message):
        torch._grouped_mm(of(6, 4), of(2, 4, 8), offsets)
