"""Products of two sparse matrices: for each place the sum of its terms by ascending k, in NumPy's float16 loop."""

import numpy as np
import pytest
import torch

import fpsim


def sparse(rows, columns, density, seed, layout=torch.sparse_coo):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(rows, columns)).astype(np.float16) * (generator.random((rows, columns)) < density)
    dense = torch.from_numpy(values.astype(np.float32))
    return dense.to_sparse() if layout is torch.sparse_coo else dense.to_sparse_csr()


def product(a, b):
    """(values, whether there are terms) of every place."""
    a, b = (item.to_dense().detach().numpy().astype(np.float16) for item in (a, b))
    total, count = np.zeros((a.shape[0], b.shape[1]), np.float16), np.zeros((a.shape[0], b.shape[1]), int)
    for k in range(a.shape[1]):
        both = (a[:, k : k + 1] != 0) & (b[k] != 0)
        total = np.where(both, total + a[:, k : k + 1] * b[k], total)
        count += both
    return torch.from_numpy(total.astype(np.float32)), count


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_a_product_has_the_places_that_have_terms(layout, density):
    a, b = sparse(7, 9, density, 0, layout), sparse(9, 6, density, 1, layout)
    for granularity in ("kernel", "primitive"):
        with fpsim.emulate("fp16", "fp16", granularity=granularity):
            found = torch.sparse.mm(a, b) if layout is torch.sparse_coo else a @ b
        expected, count = product(a, b)
        assert found.layout is layout and torch.equal(found.to_dense(), expected)
        assert found._nnz() == (count > 0).sum()
        assert torch.equal(found.to_dense() * 0 + 1, torch.ones(7, 6))


def test_pairwise_order_is_that_of_the_terms():
    a, b = sparse(3, 20, 1.0, 0), sparse(20, 3, 1.0, 1)
    with fpsim.emulate("fp16", "fp16:pairwise"):
        found, dense = torch.sparse.mm(a, b).to_dense(), a.to_dense() @ b.to_dense()
    assert torch.equal(found, dense)


def test_gradients_are_products_at_the_operands_places():
    a, b = sparse(5, 6, 0.5, 0).requires_grad_(), sparse(6, 4, 0.5, 1)
    with fpsim.emulate("fp16", "fp16"):
        torch.sparse.mm(a, b).to_dense().sum().backward()
    filled = torch.sparse.mm(a.detach(), b)
    ones = torch.sparse_coo_tensor(filled.indices(), torch.ones(filled._nnz()), filled.shape, check_invariants=True).coalesce()
    expected, _ = product(ones, b.t().coalesce())
    places = a.detach().indices()
    assert torch.equal(a.grad.to_dense()[tuple(places)], expected[tuple(places)])


def test_what_do_not_meet_are_refused():
    a = sparse(3, 4, 0.5, 0)
    with fpsim.emulate("fp16"):
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            torch.sparse.mm(a, a)
        with pytest.raises(fpsim.UnsupportedOp, match="to_dense"):
            torch.mm(a.double(), a.t())
