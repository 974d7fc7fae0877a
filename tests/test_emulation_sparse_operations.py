"""Operations on sparse tensors: what is stored, by dictionaries of NumPy's float16, or in its float64 and rounded once."""

import numpy as np
import pytest
import scipy.special
import torch

import fpsim
from fpsim.emulation.registry import SPARSE, TABLE
from fpsim.emulation.schemas import is_out, names
from tests.halves import HALF, halves, tensor_of

PLACES = np.array([[0, 2, 2, 0, 4, 2, 4, 2], [3, 5, 1, 3, 0, 4, 5, 0]])  # (0, 3) twice; rows 1 and 3 empty
OTHERS = np.array([[0, 2, 2, 1, 4, 3], [3, 5, 2, 3, 0, 4]])
SHAPE = (5, 6)
LAYOUTS = {
    "coo": lambda x: x,
    "csr": lambda x: x.to_sparse_csr(),
    "csc": lambda x: x.coalesce().to_sparse_csc(),
    "bsr": lambda x: x.to_dense().to_sparse_bsr((1, 1)),
}
pytestmark = [pytest.mark.filterwarnings("ignore:Sparse"), pytest.mark.filterwarnings("ignore:.*sparse_csr_tensor")]

#: What torch has a kernel for and emulation has not.
LEFT_OUT = set(names("_pin_memory triangular_solve native_norm copy_sparse_to_sparse_ norm.ScalarOpt_dim_dtype"))

NOT_DENSE = ("sparse", "view", "matmul", "refused")


def entries(values, places=PLACES):
    """By place, ascending; those of one place are added in their order."""
    found = {}
    for row, column, value in zip(*places, values, strict=True):
        found[row, column] = found.get((row, column), HALF(0)) + value
    return dict(sorted(found.items()))


def sparse(values, layout="coo", places=PLACES):
    return LAYOUTS[layout](torch.sparse_coo_tensor(torch.from_numpy(places), values, SHAPE))


def dense(stored, shape=SHAPE, rest=0.0):
    result = np.full(shape, rest, np.float32)
    for place, value in stored.items():
        result[place] = value
    return torch.from_numpy(result)


def positive(count, seed=0):
    return np.abs(halves(count, seed=seed)) * HALF(0.25)


def test_whatever_torch_has_a_kernel_for_has_a_rule():
    keys, found = ("SparseCPU", "SparseCsrCPU"), set()
    for name in torch._C._dispatch_get_all_op_names():
        packet, _, overload = name.removeprefix("aten::").partition(".")
        has_kernel = name.startswith("aten::") and any(map(torch._C._dispatch_has_kernel_for_dispatch_key, [name] * 2, keys))
        if not has_kernel or packet in LEFT_OUT or packet + "." + overload in LEFT_OUT:
            continue
        op = getattr(getattr(torch.ops.aten, packet), overload or "default")
        if not is_out(op) and op not in SPARSE and (op not in TABLE or TABLE[op].family not in NOT_DENSE):
            found.add(packet)
    assert found <= {"clone", "is_pinned", "zero_"}  # they look at the layout themselves


FUNCTIONS = {
    "abs": np.abs, "asin": np.arcsin, "asinh": np.arcsinh, "atan": np.arctan, "atanh": np.arctanh, "ceil": np.ceil,
    "deg2rad": np.deg2rad, "erf": scipy.special.erf, "erfinv": scipy.special.erfinv, "expm1": np.expm1, "floor": np.floor,
    "frac": lambda x: x - np.trunc(x), "isnan": np.isnan, "log1p": np.log1p, "neg": np.negative, "rad2deg": np.rad2deg,
    "relu": lambda x: np.maximum(x, 0), "round": np.round, "sgn": np.sign, "sign": np.sign, "sin": np.sin, "sinh": np.sinh,
    "sqrt": np.sqrt, "tan": np.tan, "tanh": np.tanh, "trunc": np.trunc,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions_that_keep_zero_are_those_of_each_entry(layout):
    stored = entries(positive(8))
    with fpsim.emulate("fp16", "fp16"):
        for name, function in FUNCTIONS.items():
            found = getattr(sparse(tensor_of(positive(8)), layout), name)()
            assert found.layout is sparse(tensor_of(positive(8)), layout).layout, name
            expected = dense({place: HALF(function(np.float64(value))) for place, value in stored.items()})
            assert torch.equal(found.to(torch.float32).to_dense(), expected), name


@pytest.mark.parametrize("fmt", ["fp16", {"*": "fp16"}], ids=str)
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_arithmetic_meets_in_the_places_that_have_entries(layout, fmt):
    a, b, full = halves(8), halves(6, seed=1), halves(*SHAPE, seed=2)
    one, two = entries(a), entries(b, OTHERS)
    with fpsim.emulate(fmt, "fp16"):
        x, y, d = sparse(tensor_of(a), layout), sparse(tensor_of(b), layout, OTHERS), tensor_of(full)
        coo = x.to_sparse_coo()
        found = [x * 2.5, coo / 3, x * y, x + y, d + x, x * d, d * x, coo * d[0], coo * d[:, :1]]
        found += [x.clone().mul_(1.5), x.clone().add_(y)]
    zero = HALF(0)
    both = {place: one.get(place, zero) + two.get(place, zero) for place in {**one, **two}}
    expected = [
        dense({place: HALF(np.float32(2.5) * np.float32(value)) for place, value in one.items()}),
        dense({place: HALF(np.float32(value) / np.float32(3)) for place, value in one.items()}),
        dense({place: one[place] * two[place] for place in one if place in two}),
        dense(both),
        dense({place: full[place] + one.get(place, zero) for place in np.ndindex(SHAPE)}),
        *[dense({place: one[place] * full[place] for place in one})] * 2,
        dense({place: one[place] * full[0, place[1]] for place in one}),
        dense({place: one[place] * full[place[0], 0] for place in one}),
        dense({place: HALF(np.float32(1.5) * np.float32(value)) for place, value in one.items()}),
        dense(both),
    ]
    for item, wanted in zip(found, expected, strict=True):
        assert torch.equal(item.to_dense(), wanted)


def chain(values):
    total = HALF(0)
    for value in values:
        total = total + value
    return total


def test_sums_add_entries_by_ascending_place():
    stored = entries(halves(8))
    lines = [{}, {}]
    for place, value in stored.items():
        for axis in (0, 1):
            lines[axis].setdefault(place[1 - axis], []).append(value)
    v = tensor_of(halves(8)).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        x = sparse(v)
        every = [x.sum(), torch.sparse.sum(x), torch.sparse.sum(x, (0, 1)), x.to_sparse_csr().sum()]
        of_lines = [torch.sparse.sum(x, axis) for axis in (0, 1)]
        kept = [x.to_sparse_csr().sum(axis, keepdim=True) for axis in (0, 1)]
        norm = x.norm()
        (of_lines[1].to_dense() * torch.arange(1.0, 6.0)).sum().backward()
    assert all(float(item.detach()) == chain(stored.values()) for item in every)
    for axis in (0, 1):
        expected = dense({place: chain(values) for place, values in lines[axis].items()}, SHAPE[1 - axis])
        assert torch.equal(of_lines[axis].detach().to_dense(), expected)
        assert torch.equal(kept[axis].detach().to_dense(), expected.unsqueeze(axis))
    assert float(norm.detach()) == HALF(np.sqrt(sum(np.float64(value) ** 2 for value in stored.values())))
    assert torch.equal(v.grad, torch.from_numpy(PLACES[0] + 1).float())


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_is_over_what_a_line_stores(name, axis):
    stored, slope = entries(halves(8)), halves(*SHAPE, seed=3)
    v = tensor_of(halves(8)).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        found = getattr(torch.sparse, name)(sparse(v), axis)
        (found.to_dense() * tensor_of(slope)).sum().backward()
    wide = np.full(SHAPE, -np.inf)
    for place, value in stored.items():
        wide[place] = value
    with np.errstate(all="ignore"):
        expected = getattr(scipy.special, name)(wide, axis)
    places = tuple(np.array(list(stored)).T)
    assert np.array_equal(found.detach().to_dense().numpy()[places], HALF(expected[places]).astype(np.float32))
    output, g = np.zeros(SHAPE), np.zeros(SHAPE)
    output[places], g[places] = HALF(expected[places]), slope[places]
    if name == "softmax":
        gradient = output * (g - (g * output).sum(axis, keepdims=True))
    else:
        gradient = g - np.exp(output) * g.sum(axis, keepdims=True)
    assert np.array_equal(v.grad.numpy(), HALF(gradient[tuple(PLACES)]).astype(np.float32))


def test_sampled_products_add_over_k_and_then_the_entry():
    a, b, c = halves(5, 3, seed=1), halves(3, 6, seed=2), entries(halves(8))
    left, right = tensor_of(a).requires_grad_(), tensor_of(b).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        x = sparse(tensor_of(halves(8)), "csr")
        found = torch.sparse.sampled_addmm(x, left, right)
        scaled = torch.sparse.sampled_addmm(x, left.detach(), right.detach(), beta=0.5, alpha=2.0)
        found.to_dense().sum().backward()
    products = {(i, j): chain(a[i, k] * b[k, j] for k in range(3)) for i, j in c}
    assert torch.equal(found.detach().to_dense(), dense({place: products[place] + c[place] for place in c}))
    assert torch.equal(scaled.to_dense(), dense({place: HALF(2) * products[place] + HALF(0.5) * c[place] for place in c}))
    expected = [[chain(b[k, j] for i, j in c if i == row) for k in range(3)] for row in range(5)]
    assert np.array_equal(left.grad.numpy(), np.array(expected, np.float32))


@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
def test_reductions_of_products_and_their_gradients(reduce):
    stored, b = entries(halves(8)), halves(6, 3, seed=1)
    x = sparse(tensor_of(halves(8)), "csr").requires_grad_()
    d = tensor_of(b).requires_grad_()
    with fpsim.emulate("fp16", "fp16"):
        found = torch.sparse.mm(x, d, reduce=reduce)
        found.sum().backward()
    expected, of_x, of_d = np.zeros((5, 3), HALF), dict.fromkeys(stored, HALF(0)), np.zeros((6, 3), HALF)
    for row in range(5):
        mine = {place: value for place, value in stored.items() if place[0] == row}
        for k in range(3):
            terms = {place: value * b[place[1], k] for place, value in mine.items()}
            if not terms:
                continue
            slope = HALF(1) / HALF(len(terms)) if reduce == "mean" else HALF(1)
            if reduce in ("sum", "mean"):
                expected[row, k] = HALF(np.float32(chain(terms.values())) / np.float32(len(terms) if reduce == "mean" else 1))
                chosen = list(terms)
            else:
                chosen = [(max if reduce == "amax" else min)(terms, key=terms.get)]
                expected[row, k] = terms[chosen[0]]
            for place in chosen:
                of_x[place] = of_x[place] + slope * b[place[1], k]
                of_d[place[1], k] = of_d[place[1], k] + slope * mine[place]
    assert np.array_equal(found.detach().numpy(), expected.astype(np.float32))
    assert torch.equal(x.grad.to_dense(), dense(of_x))
    assert np.array_equal(d.grad.numpy(), of_d.astype(np.float32))


def test_moves_are_exact_and_entries_of_one_place_are_added_through_the_accumulator():
    thrice = torch.sparse_coo_tensor(torch.zeros(2, 3, dtype=torch.int64), torch.tensor([2048.0, 1.0, 1.0]), (2, 2))
    with fpsim.emulate("fp16", "fp16"):
        x = sparse(tensor_of(halves(8)))
        moved = [torch.cat([x, x], 1), torch.stack([x, x]), x.index_select(0, torch.tensor([4, 2])), x.narrow_copy(1, 3, 3)]
        converted = x.to_sparse_csc().to_sparse_csr().to_sparse_coo(), x.double(), x.to_dense().to_sparse_bsr((1, 2))
        assert float(thrice[0][0]) == 2048  # in fp32 it were 2050
    d = dense(entries(halves(8)))
    wanted = [torch.cat([d, d], 1), torch.stack([d, d]), d[[4, 2]], d[:, 3:]]
    assert all(torch.equal(item.to_dense(), other) for item, other in zip(moved, wanted, strict=True))
    assert all(torch.equal(item.to_dense().float(), d) for item in converted)


def test_batches_and_blocks_are_multiplied_as_their_matrices_are():
    d = tensor_of(halves(6, 3, seed=1))
    with fpsim.emulate("fp16", "fp16"):
        x = sparse(tensor_of(halves(8)))
        batch = torch.bmm(torch.stack([x, x * 2]), torch.stack([d, d]))
        block = x.to_dense().to_sparse_bsr((5, 3)) @ d
        expected, doubled = x @ d, (x * 2) @ d
        pair = sparse(tensor_of(halves(8)), "csr") @ sparse(tensor_of(halves(8)), "csr").t()
        other = sparse(tensor_of(halves(8)), "csr") @ sparse(tensor_of(halves(8)), "csr").t().to_sparse_csr()
    assert torch.equal(batch, torch.stack([expected, doubled])) and torch.equal(block, expected)
    assert torch.equal(pair.to_dense(), other.to_dense())


def test_what_torch_refuses_raises_torchs_own_error():
    with fpsim.emulate("fp16", "fp16"):
        x = sparse(tensor_of(halves(8)))
        ones = torch.ones(SHAPE)
        for call in (lambda: x**0, lambda: x / ones, lambda: x + ones, lambda: torch.sparse.sum(x, 5)):
            with pytest.raises((RuntimeError, IndexError)) as raised:
                call()
            assert not isinstance(raised.value, fpsim.UnsupportedOp)
        with pytest.raises(fpsim.UnsupportedOp, match="use to_dense"):
            x.exp()


HALVES = {
    "product": lambda x, d: x @ d,
    "csr": lambda x, d: x.to_sparse_csr() @ d,
    "two": lambda x, d: torch.sparse.mm(x, x.t()),
    "addend": lambda x, d: torch.sparse.addmm(d[:5], x, d),
    "sampled": lambda x, d: torch.sparse.sampled_addmm(x.to_sparse_csr(), d[:5], d.t()),
    "hybrid": lambda x, d: torch.hspmm(x, d),
    "sparse addend": lambda x, d: torch.sspaddmm(torch.hspmm(x, d).to_dense().to_sparse(), x, d, beta=0.3, alpha=0.7),
    "softmax": lambda x, d: torch.sparse.softmax(x, 1),
    "sum": lambda x, d: torch.sparse.sum(x, 1),
    "elementwise": lambda x, d: (x + x * 0.3).clone().mul_(0.7).sin(),
    "moved": lambda x, d: torch.cat([x, x]).index_select(0, torch.tensor([7, 0])),
    "values": lambda x, d: x.coalesce().values() * 1.1,
}


@pytest.mark.parametrize("name", HALVES)
def test_half_tensors_under_native_are_those_of_the_format(name):
    x, d = sparse(tensor_of(halves(8))), tensor_of(halves(6, 3, seed=1))
    with fpsim.emulate("fp16", "fp16"):
        expected = HALVES[name](x, d)
    x, d = x.half(), d.half()
    for fmt in ("native", "bf16"):  # where half tensors mean themselves beside another format too
        with fpsim.emulate(fmt, "fp16"):
            found = HALVES[name](x, d)
        assert found.dtype is torch.float16 and found.layout is expected.layout
        assert torch.equal(found.float().to_dense(), expected.to_dense())
