"""Certificates of sparse and of complex products: exact rationals, and the real products that complex ones are."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import fpsim
from fpsim.theory.accumulations import accumulation_bound

METHODS = ["shadow", "running", "mean-value", "probabilistic"]


def of(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


def exact(tensor):
    return np.vectorize(lambda value: Fraction(float(value)), otypes=[object])(tensor.detach().numpy())


def holds(certificate, expected):
    """Whether no logit is farther from the exact one than its bound, which is less than a tenth of the largest."""
    bound, found = certificate.bound, certificate.logits
    errors = np.abs(exact(found) - expected)
    near = all(errors[place] <= Fraction(float(bound[place])) for place in np.ndindex(expected.shape))
    return near and float(bound.max()) < 0.1 * float(found.abs().max())


PLACES = torch.tensor([[0, 0, 0, 1, 2, 2, 2], [3, 0, 1, 2, 0, 1, 3]])


class Graph(nn.Module):
    """A sparse matrix times features, made in each of the ways there are."""

    def __init__(self, how):
        super().__init__()
        matrix = torch.sparse_coo_tensor(PLACES, of(7), (3, 4), check_invariants=True)
        if how in ("made", "coalesced here"):
            self.values = nn.Parameter(of(7))
        elif how != "argument":
            self.register_buffer("matrix", matrix if how == "uncoalesced" else matrix.coalesce())
        if how == "csr":
            self.matrix = self.matrix.to_sparse_csr()
        self.how, self.weight = how, nn.Parameter(of(5, 3, seed=2))

    def forward(self, x, matrix=None):
        return self.features(x[0], matrix)[None]

    def features(self, x, matrix):
        if self.how in ("made", "coalesced here"):
            matrix = torch.sparse_coo_tensor(PLACES, self.values, (3, 4), check_invariants=True)
            matrix = matrix.coalesce() if self.how == "coalesced here" else matrix
        elif matrix is None:
            matrix = self.matrix
        if self.how in MADE:
            matrix = MADE[self.how](matrix)
        if self.how == "right":
            return x.t().matmul(matrix.t()).t() @ self.weight
        if self.how == "vectors":
            return torch.stack([torch.mv(matrix, column) for column in x.unbind(1)], 1) @ self.weight
        if self.how == "addend":
            return torch.addmm(x[:3], matrix, x) @ self.weight
        return torch.sparse.mm(matrix, x) @ self.weight if matrix.layout is not torch.strided else matrix @ x @ self.weight


#: The same matrix in another layout or order, or what a function makes of each of its entries.
MADE = {
    "as csr": lambda m: m.to_sparse_csr(),
    "as csc and back": lambda m: m.to_sparse_csc().to_sparse_coo(),
    "dense": lambda m: m.to_dense(),
    "csc as dense": lambda m: m.to_sparse_csc().clone().to_dense(),
    "scaled": lambda m: m * 0.75,
    "negative parts": lambda m: -(-m).relu(),
    "of csr": lambda m: (m.to_sparse_csr() * 0.75).neg(),
}
OF_ENTRIES = {"scaled": lambda v: v * 3 / 4, "negative parts": lambda v: min(v, Fraction(0)), "of csr": lambda v: -v * 3 / 4}


HOW = ["coo", "csr", "uncoalesced", "made", "coalesced here", "argument", "right", "vectors", "addend", *MADE]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", HOW)
def test_sums_of_stored_entries(how, method):
    model, x = Graph(how).eval(), of(4, 5, seed=1)
    matrix = torch.sparse_coo_tensor(PLACES, of(7), (3, 4), check_invariants=True)
    entries = np.vectorize(OF_ENTRIES.get(how, lambda value: value), otypes=[object])(exact(matrix.to_dense()))
    features = entries @ exact(x) + (exact(x[:3]) if how == "addend" else 0)
    arguments = (x[None], matrix) if how == "argument" else x[None]
    for accumulate in ("fp16", "fp32:pairwise"):
        certificate = fpsim.certify(model, arguments, "fp16", accumulate, method=method)
        assert holds(certificate, (features @ exact(model.weight))[None])


NOT_FOLLOWED = {
    "addmm": lambda m, x: torch.addmm(x[:3], m, x, alpha=2),
    "mm": lambda m, x: m.to_dense().to_sparse_bsr((1, 2)) @ x,
    "_sparse_sparse_matmul": lambda m, x: torch.sparse.mm(m, m.t()),
    "add": lambda m, x: m + m,
    "mul": lambda m, x: m * x[:3, :4],
    "_sparse_softmax": lambda m, x: torch.sparse.softmax(m, 1),
    "_sparse_sum": lambda m, x: torch.sparse.sum(m, 1),
    "bmm": lambda m, x: torch.bmm(torch.sparse_coo_tensor(torch.zeros(3, 1).long(), x[0, :1], (1, 3, 4)), x[None]),
    "sparse_sampled_addmm": lambda m, x: torch.sparse.sampled_addmm(m.to_sparse_csr(), x[:3], x.t()),
    "hspmm": lambda m, x: torch.hspmm(m, x),
    "_to_sparse": lambda m, x: x.to_sparse(),
    "_coalesce": lambda m, x: torch.sparse_coo_tensor(torch.zeros(2, 2).long(), x[0, :2], (3, 4)).coalesce(),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_other_sparse_operations_are_named_and_dense_ones_proposed(name):
    class Other(Graph):
        def features(self, x, matrix):
            return NOT_FOLLOWED[name](self.matrix, x)

    with pytest.raises(fpsim.UnsupportedOp, match=rf"^aten\.({name}|_to_sparse_bsr)\..*of sparse matrices .*to_dense\(\)$"):
        fpsim.certify(Other("coo").eval(), of(4, 5, seed=1)[None], "fp16", "fp16")


class Complex(nn.Module):
    """Complex products between real numbers, and the real network that they are."""

    def __init__(self, op, is_real):
        super().__init__()
        self.op, self.is_real = op, is_real
        self.weight = nn.Parameter(torch.view_as_complex(of(3, 4, 2, seed=1)))
        self.bias = nn.Parameter(torch.view_as_complex(of(4, 2, seed=2)))

    def matrix(self):
        real, imaginary = torch.view_as_real(self.weight.detach()).unbind(-1)
        rows = [torch.stack([real, imaginary], -1).flatten(1), torch.stack([-imaginary, real], -1).flatten(1)]
        return torch.stack(rows, 1).flatten(0, 1)

    def forward(self, x):
        if self.is_real:
            return x.flatten(1) @ self.real if self.op != "addmm" else torch.addmm(self.added, x.flatten(1), self.real)
        z = torch.view_as_complex(x)
        match self.op:
            case "mm":
                y = z @ self.weight
            case "addmm":
                y = torch.addmm(self.bias, z, self.weight)
            case "bmm":
                y = torch.bmm(z[None], self.weight[None])[0]
            case "mv":
                y = torch.stack([torch.mv(self.weight.t(), row) for row in z])
            case "conjugate":
                y = (z.conj() @ self.weight.conj()).conj()
        return torch.view_as_real(y.resolve_conj()).flatten(1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("op", ["mm", "addmm", "bmm", "mv", "conjugate"])
def test_a_complex_product_is_certified_as_the_real_one_that_it_is(op, method):
    x = of(2, 3, 2)
    model, other = Complex(op, False).eval(), Complex(op, True).eval()
    other.real = nn.Parameter(other.matrix())
    other.added = nn.Parameter(torch.view_as_real(other.bias.detach()).flatten())
    found, expected = (fpsim.certify(item, x, "fp16", "fp16", method=method) for item in (model, other))
    exactly = exact(x.flatten(1)) @ exact(other.real) + (exact(other.added) if op == "addmm" else 0)
    assert holds(found, exactly)
    if op in ("mm", "addmm") and method == "shadow":  # others lose a little where they turn signs
        assert torch.equal(found.bound, expected.bound) and torch.equal(found.logits, expected.logits)


class Elementwise(nn.Module):
    """Products of complex elements, and of those with real ones."""

    def __init__(self, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.view_as_complex(of(3, 2, seed=1) * scale))
        self.real = nn.Parameter(of(3, seed=2))

    def forward(self, x):
        z = torch.complex(x[..., 0], x[..., 1])
        product = -(z * self.weight) * self.real + 0.75 * (self.real * z.conj())
        return torch.view_as_real(product.resolve_conj()).flatten(1)

    def exactly(self, x):
        a, b = np.moveaxis(exact(x), -1, 0)
        c, d = np.moveaxis(exact(torch.view_as_real(self.weight)), -1, 0)
        r = exact(self.real)
        parts = -(a * c - b * d) * r + Fraction(3, 4) * a * r, -(a * d + b * c) * r - Fraction(3, 4) * b * r
        return np.stack(parts, -1).reshape(len(x), -1)


@pytest.mark.parametrize("method", [*METHODS, "a-priori"])
@pytest.mark.parametrize("fmt", ["fp16", "e5m2"])
def test_a_product_of_complex_elements_is_within_its_bound(fmt, method):
    for seed, scale in ((0, 1.0), (3, 2.0**-13)):  # results of the second lie among fp16's subnormal numbers
        model, x = Elementwise(scale).eval(), of(4, 3, 2, seed=seed)
        certificate = fpsim.certify(model, x, fmt, fmt, method=method)
        found = certificate.logits if method != "a-priori" else fpsim.run(model, fmt, fmt)(x)
        errors = np.abs(exact(found) - model.exactly(x))
        assert all(errors[place] <= Fraction(float(certificate.bound[place])) for place in np.ndindex(errors.shape))
        assert float(certificate.bound.max()) < 40 * 2 * fpsim.get_format(fmt).unit_roundoff * float(x.abs().max())


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.view_as_real(torch.view_as_complex(x) * 2j).flatten(1),
        lambda x: torch.view_as_complex(x).abs(),
        lambda x: x.flatten(1).to_sparse().to_dense(),
        lambda x: torch.sparse_coo_tensor(torch.zeros(2, 2).long(), x[0, 0], (1, 1), check_invariants=True) @ x[:1, 0],
        lambda x: torch.view_as_complex(x),
    ],
)
def test_what_is_not_followed_says_so(function):
    model = nn.Identity().eval()
    model.forward = function
    with pytest.raises((fpsim.UnsupportedOp, TypeError), match=r"certification follows|tensor of logits"):
        fpsim.certify(model, of(2, 3, 2), "fp16")


@pytest.mark.parametrize("order", ["", ":pairwise", ":blocked(3)->fp32", ":lanes(8)", ":split(4)", ":kahan"])
def test_bounds_of_a_longest_row_hold_for_shorter_ones(order):
    bounds = [accumulation_bound("fp16", f"fp16{order}", terms) for terms in range(1, 40)]
    assert all(a.relative <= b.relative and a.absolute <= b.absolute for a, b in pairwise(bounds))


def test_a_sparse_parameter_is_refused_by_name():
    model = nn.Module()
    model.edges = nn.Parameter(torch.sparse_coo_tensor(PLACES, of(7), (3, 4), check_invariants=True))
    with pytest.raises(fpsim.emulation.errors.UnsupportedTensor, match=r"edges is a parameter of layout .*sparse_coo"):
        fpsim.run(model, "fp16")
