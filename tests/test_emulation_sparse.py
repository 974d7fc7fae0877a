"""Products of sparse matrices: the stored entries of a row, by ascending column, in NumPy's float16 and as exact rationals."""

from fractions import Fraction

import numpy as np
import pytest
import torch

import fpsim
from fpsim.numbers.rounding import Rounding
from tests.halves import HALF, halves, tensor_of
from tests.oracles import round_exact

PLACES = np.array([[0, 2, 2, 0, 4, 2, 4], [3, 5, 1, 3, 0, 4, 5]])  # (0, 3) twice, rows 1 and 3 empty, columns unordered
SHAPE = (5, 6)
LAYOUTS = {"coo": lambda x: x, "coalesced": lambda x: x.coalesce(), "csr": lambda x: x.to_sparse_csr()}
FORMATS = ["fp16", {"*": "fp16"}]


def merged(values, places=PLACES):
    """Entries by row and column; those of one place are added in their order, from 0."""
    found = {}
    for row, column, value in zip(*places, values, strict=True):
        found[row, column] = found.get((row, column), HALF(0)) + value
    return found


def chain(entries, dense, rows=SHAPE[0]):
    total = np.zeros((rows, dense.shape[1]), HALF)
    for (row, column), value in sorted(entries.items()):
        total[row] = total[row] + value * dense[column]
    return total


def sparse(values, layout="coo"):
    return LAYOUTS[layout](torch.sparse_coo_tensor(torch.from_numpy(PLACES), values, SHAPE))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_add_the_stored_entries_of_a_row_forward_and_backward(layout, fmt):
    values, dense, g = halves(7), halves(6, 3, seed=1), halves(5, 3, seed=2)
    v, d = tensor_of(values).requires_grad_(), tensor_of(dense).requires_grad_()
    with fpsim.emulate(fmt, "fp16"):
        matrix = sparse(v, layout)
        product = matrix @ d
        product.backward(tensor_of(g))
        others = {"mv": matrix @ d[:, 0], "linear": torch.nn.functional.linear(d.mT, matrix)}
        if layout != "csr":
            others["sparse.mm"] = torch.sparse.mm(matrix, d)
    entries = merged(values)
    wanted = chain(entries, dense)
    assert np.array_equal(product.detach().numpy(), wanted.astype(np.float32))
    for name, other in others.items():
        expected = {"mv": wanted[:, 0], "linear": wanted.T}.get(name, wanted)
        assert np.array_equal(other.detach().numpy(), expected.astype(np.float32)), name
    turned = {(column, row): value for (row, column), value in entries.items()}
    assert np.array_equal(d.grad.numpy(), chain(turned, g, 6).astype(np.float32))
    slopes = [sum((a * b for a, b in zip(g[row], dense[column], strict=True)), start=HALF(0)) for row, column in PLACES.T]
    assert np.array_equal(v.grad.numpy(), np.array(slopes, np.float32))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_exact_sums_are_rounded_once(layout):
    values, dense = halves(7), halves(6, 2, seed=1)
    with fpsim.emulate("fp16", "exact"):
        found = sparse(tensor_of(values), layout) @ tensor_of(dense)
    for row in range(5):
        for column in range(2):
            terms = [Fraction(float(value)) * Fraction(float(dense[k, column]))
                     for (i, k), value in merged(values).items() if i == row]  # fmt: skip
            wanted = round_exact(sum(terms, Fraction(0)), fpsim.get_format("fp16"), Rounding.NEAREST_EVEN)
            assert float(found[row, column]) == float(wanted)


def test_addends_and_conversions():
    values, dense, c = halves(7), halves(6, 3, seed=1), halves(5, 3, seed=3)
    with fpsim.emulate("fp16", "fp16"):
        matrix = sparse(tensor_of(values))
        added = torch.sparse.addmm(tensor_of(c), matrix, tensor_of(dense))
        scaled = torch.sparse.addmm(tensor_of(c), matrix, tensor_of(dense), beta=0.5, alpha=2)
        back = matrix.to_dense()
        there = (tensor_of(dense) * 1.001).to_sparse().to_dense(), tensor_of(dense).to_sparse_csr().to_dense()
    wanted = chain(merged(values), dense)
    assert np.array_equal(added.numpy(), (wanted + c).astype(np.float32))
    assert np.array_equal(scaled.numpy(), (wanted * HALF(2) + c * HALF(0.5)).astype(np.float32))
    for place in np.ndindex(SHAPE):
        assert float(back[place]) == float(merged(values).get(place, 0))
    assert torch.equal(there[0], tensor_of((dense.astype(np.float32) * np.float32(1.001)).astype(HALF)))
    assert torch.equal(there[1], tensor_of(dense))


@pytest.mark.parametrize("granularity", ["kernel", "primitive"])
@pytest.mark.parametrize("accumulate", ["fp16", "fp32", "exact"])
def test_hybrid_results_and_sparse_addends(accumulate, granularity):
    fp16, fp32 = fpsim.get_format("fp16"), fpsim.get_format("fp32")
    values, d, c = halves(7), halves(6, 3, seed=1), halves(4, seed=3)
    alpha, beta = 3.0, 0.375  # values of every format
    wide = {"fp16": fp16, "fp32": fp32, "exact": None}[accumulate]

    def rounded(number, fmt=fp16):
        return Fraction(number) if fmt is None else Fraction(float(round_exact(Fraction(number), fmt, Rounding.NEAREST_EVEN)))

    sums = {}
    for (row, column), value in sorted(merged(values).items()):
        for k in range(3):
            term = rounded(Fraction(float(value)) * Fraction(float(d[column, k])), wide)
            sums[row, k] = rounded(sums.get((row, k), 0) + term, wide)
    addend = torch.sparse_coo_tensor(torch.tensor([[1, 2, 2, 2], [0, 1, 1, 0]]), tensor_of(c), (5, 3))
    with fpsim.emulate("fp16", accumulate, granularity=granularity):
        x, dense = sparse(tensor_of(values)), tensor_of(d)
        hybrid, out = torch.hspmm(x, dense), torch.sparse_coo_tensor((5, 3))
        plain, scaled = torch.sspaddmm(addend, x, dense), torch.sspaddmm(addend, x, dense, alpha=alpha, beta=beta)
        again = torch.sspaddmm(addend, x, dense, out=out)
        smm, factor = torch.smm(x, dense), torch.addmm(torch.full((5, 3), torch.nan), x, dense, beta=0, alpha=alpha)
    assert hybrid._indices().tolist() == [[0, 2, 4]] and (hybrid.sparse_dim(), hybrid.dense_dim()) == (1, 1)
    own = [sums[row, k] for row in (0, 2, 4) for k in range(3)]
    assert hybrid._values().flatten().tolist() == smm._values().tolist() == [float(rounded(total)) for total in own]
    held = wide or fp16  # an exact sum is rounded to the format at once
    expected = [float(rounded(rounded(Fraction(alpha) * rounded(total, held), held))) for total in own]
    assert scaled._values().tolist()[4:] == expected and factor[[0, 2, 4]].flatten().tolist() == expected
    assert scaled._values().tolist()[:4] == [float(rounded(Fraction(beta) * Fraction(float(item)))) for item in c]
    assert plain._values().tolist() == [*tensor_of(c).tolist(), *hybrid._values().flatten().tolist()]
    assert again is out and torch.equal(out._values(), plain._values()) and torch.equal(out._indices(), scaled._indices())
    assert plain._indices().tolist() == [[1, 2, 2, 2, *[0] * 3, *[2] * 3, *[4] * 3], [0, 1, 1, 0, *[0, 1, 2] * 3]]


def test_gradients_and_operands_of_them_are_refused_as_torch_refuses_them():
    x, d = sparse(tensor_of(halves(7))), tensor_of(halves(6, 3, seed=1)).requires_grad_()
    with fpsim.emulate("fp16"):
        for result in (torch.hspmm(x, d), torch.sspaddmm(torch.sparse_coo_tensor((5, 3)), x, d)):
            with pytest.raises(RuntimeError, match=r"derivative for aten::.* is not implemented"):
                result.to_dense().sum().backward()
        with pytest.raises(NotImplementedError, match="hspmm"):
            torch.hspmm(x.to_sparse_csr(), d)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_batches_of_sampled_products():
    a, b = halves(2, 5, 4, seed=1), halves(2, 4, 6, seed=2)
    matrix, other = sparse(tensor_of(halves(7)), "csr"), sparse(tensor_of(halves(7, seed=5)), "csr")
    with fpsim.emulate("fp16", "fp16"):
        left, right = tensor_of(a).requires_grad_(), tensor_of(b)
        both = torch.sparse_csr_tensor(
            *(torch.stack([getattr(x, of)() for x in (matrix, other)]) for of in ("crow_indices", "col_indices", "values")),
            (2, *SHAPE),
        )
        found = torch.sparse.sampled_addmm(both, left.detach(), right, beta=0.5, alpha=3.0)
        shared = torch.sparse.sampled_addmm(matrix, left.detach(), right)
        with pytest.raises(RuntimeError, match="sparse_dim"):  # torch has no gradient
            torch.sparse.sampled_addmm(both, left, right).to_dense().sum().backward()
    for batch, seed in ((0, 0), (1, 5)):
        for result, values, beta, alpha in ((found, halves(7, seed=seed), 0.5, 3), (shared, halves(7), 1, 1)):
            expected = np.zeros(SHAPE, np.float32)
            for (i, j), value in merged(values).items():
                total = HALF(0)
                for k in range(4):
                    total = total + a[batch, i, k] * b[batch, k, j]
                expected[i, j] = HALF(alpha) * total + HALF(beta) * value
            assert np.array_equal(result.to_dense()[batch].numpy(), expected)


def test_what_has_no_rule_or_does_not_fit_raises():
    matrix, dense = sparse(tensor_of(halves(7))), tensor_of(halves(6, 3, seed=1))
    with fpsim.emulate("fp16"):
        with pytest.raises(fpsim.UnsupportedOp, match="to_dense"):
            torch.addmm(dense[:5, :1], matrix, matrix.t())
        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            matrix @ dense[:3]


class Spectrum(torch.nn.Module):
    def forward(self, x):
        return torch.fft.fft(x).abs()


def test_certificates_name_what_they_have_none_for():
    with pytest.raises(fpsim.UnsupportedOp, match=r"of complex numbers certification follows .*: elsewhere compute with real"):
        fpsim.certify(Spectrum().eval(), tensor_of(halves(6, 3)), fmt="fp16")


@pytest.mark.parametrize("layout", ["coo", "csr", "csc", "bsr", "bsc"])
def test_buffers_of_every_layout_are_copied_and_rounded(layout):
    third = torch.full((4, 4), 1 / 3)
    blocks = ((2, 2),) if layout[0] == "b" else ()
    model = torch.nn.Linear(4, 4)
    model.register_buffer("matrix", third.to_sparse() if layout == "coo" else getattr(third, f"to_sparse_{layout}")(*blocks))
    buffer = fpsim.run(model, fmt="fp16").matrix
    assert buffer.layout is model.matrix.layout
    assert torch.equal(buffer.to_dense(), third.half().float()) and torch.equal(model.matrix.to_dense(), third)
