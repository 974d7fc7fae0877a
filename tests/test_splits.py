"""Products of fp32 numbers in parts, against bfloat16 parts of ml_dtypes added one after the other in NumPy's float32."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fpsim
from fpsim.accumulation import get_accumulator
from fpsim.numbers.formats import FP32
from fpsim.numbers.rounding import Rounding
from tests import sums_oracle as oracle

# Left part times right part, the smallest products first, as Triton's and XLA's kernels chain them.
PAIRS = {"bf16x3": "mid*high high*mid high*high"}
PAIRS["bf16x6"] = f"mid*mid low*high high*low {PAIRS['bf16x3']}"
PAIRS["bf16x9"] = f"low*low mid*low low*mid {PAIRS['bf16x6']}"
SPLITS = pytest.mark.parametrize("split", PAIRS)


def parts(x):
    made, rest = {}, np.asarray(x, np.float32)
    with np.errstate(invalid="ignore"):
        for name in ("high", "mid", "low"):
            made[name] = rest.astype(ml_dtypes.bfloat16).astype(np.float32)
            rest = rest - made[name]
    return made


def chained(a, b, split, addend=None):
    """a @ b in parts, the sum of each pair of parts beginning with that of the pairs before."""
    left, right = parts(a), parts(b)
    total = np.zeros((a.shape[0], b.shape[1]), np.float32)
    with np.errstate(all="ignore"):
        for pair in PAIRS[split].split():
            first, second = pair.split("*")
            if pair == "high*high":
                total[np.isnan(total)] = 0
            for k in range(a.shape[1]):
                total = total + left[first][:, k, None] * right[second][k]
        return total if addend is None else total + np.float32(addend)


def product(a, b, split, addend=None):
    return torch.from_numpy(chained(*(np.asarray(x.detach()) for x in (a, b)), split, addend))


def matrices(seed, rows, terms, columns, special=(), spread=30):
    generator = np.random.default_rng(seed)
    a, b = (generator.standard_normal(shape, np.float32) for shape in ((rows, terms), (terms, columns)))
    for x in (a, b):
        x *= np.float32(2.0) ** generator.integers(-spread, spread, x.shape)
        places = generator.random(x.shape) < 0.05
        if special:
            x[places] = generator.choice(np.array(special, np.float32), int(places.sum()))
    return a, b


LARGEST = float(np.finfo(np.float32).max)
SPECIAL = {
    "finite": (),
    "infinite": (np.inf, -np.inf),
    "nan": (np.nan, 0.0),
    "subnormal": (1e-40, -3e-45, 0.0, -0.0, 2.0**-126, 1.1 * 2.0**-133),
    "beyond bfloat16": (LARGEST, -LARGEST, np.inf),
    "overflowing": (1.7e38, -1.9e38, 2.9e38, 1e20),
}


@SPLITS
@pytest.mark.parametrize("special", SPECIAL)
def test_products_add_the_parts_in_their_order(split, special):
    for shape in ((5, 33, 40), (40, 17, 3), (1, 9, 1), (3, 0, 2)):
        a, b = matrices(sum(shape), *shape, SPECIAL[special])
        assert np.array_equal(fpsim.matmul(a, b, fmt=split), chained(a, b, split), equal_nan=True)
        assert np.array_equal(fpsim.dot(a[0], b[:, 0], fmt=split), chained(a[:1], b[:, :1], split)[0, 0], equal_nan=True)


@SPLITS
def test_infinite_factors_give_infinities_as_single_products_do(split):
    one, infinite = np.ones((1, 1), np.float32), np.full((1, 1), np.inf, np.float32)
    for a, b in ((one, infinite), (infinite, one), (infinite, infinite)):
        assert fpsim.matmul(a, -b, fmt=split).item() == -np.inf
    assert np.isnan(fpsim.matmul(infinite, 0 * one, fmt=split).item())


def exact(a, b):
    rows, columns = ([[Fraction(float(item)) for item in line] for line in lines] for lines in (a, b.T))
    return [[sum(x * y for x, y in zip(row, column, strict=True)) for column in columns] for row in rows]


@pytest.mark.parametrize(
    ("split", "bound"),
    # of |a| |b|: what a factor's parts leave out, 2^-17 each, and mid * mid; then both mid * low; then nothing
    [("bf16x3", 2.0**-15 + 2.0**-24), ("bf16x6", 2.0**-24 + 2.0**-33), ("bf16x9", 0.0)],
)
def test_what_is_left_out_is_within_the_known_bound(split, bound):
    a, b = matrices(1, 8, 12, 7)
    found = fpsim.matmul(a, b, fmt=split, accumulate="exact")
    magnitudes, worst = exact(np.abs(a), np.abs(b)), 0.0
    for i, row in enumerate(exact(a, b)):
        for j, true in enumerate(row):
            rounding = Fraction(float(np.spacing(np.abs(found[i, j])))) / 2
            error = abs(Fraction(float(found[i, j])) - true)
            assert error <= rounding + Fraction(bound) * magnitudes[i][j]
            worst = max(worst, float(error / magnitudes[i][j]))
    assert worst > bound / 32  # it is nearly reached
    assert (np.array_equal(found, fpsim.matmul(a, b, fmt="fp32", accumulate="exact"))) == (split == "bf16x9")


@SPLITS
def test_every_product_of_a_model_is_made_in_parts(split):
    torch.manual_seed(0)
    layer, batch = nn.Linear(33, 5), torch.randn(2, 33, 4)
    x, other = torch.randn(4, 33), torch.randn(2, 3, 33)
    gradients = [torch.randn(4, 5), torch.randn(2, 3, 4)]
    leaves = [item.requires_grad_() for item in (x, other, batch)]
    with fpsim.emulate({"*": "fp32", "product": split}):
        ends = [layer(x), other @ batch]
        torch.autograd.backward(ends, gradients)
        scaled = x.detach() * 1.1
    assert torch.equal(scaled, x.detach() * 1.1)  # what is no product is fp32's
    weight = layer.weight
    assert torch.equal(ends[0], product(x, weight.T, split, layer.bias.detach()))
    assert torch.equal(weight.grad, product(gradients[0].T, x, split))
    assert torch.equal(x.grad, product(gradients[0], weight, split))
    for k in range(2):
        assert torch.equal(ends[1][k], product(other[k], batch[k], split))
        assert torch.equal(other.grad[k], product(gradients[1][k], batch[k].T, split))
        assert torch.equal(batch.grad[k], product(other[k].T, gradients[1][k], split))
    assert all(leaf.grad is not None for leaf in leaves)


def of_groups(x, groups, axis):
    return np.split(np.asarray(x.detach()), groups, axis)


def dilated(gradient, stride, kernel, size):
    """What every tap of the input's gradient reads: zeros between strides and around."""
    images, channels, height, width = gradient.shape
    wide = np.zeros((images, channels, size + kernel - 1, size + kernel - 1), np.float32)
    wide[:, :, kernel - 1 :: stride, kernel - 1 :: stride][:, :, :height, :width] = gradient
    return np.lib.stride_tricks.sliding_window_view(wide, (kernel, kernel), (2, 3))  # (n, o, h, w, taps)


@SPLITS
@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (1, 2), (2, 1), (4, 1), (4, 2)])
def test_convolutions_multiply_the_weight_by_what_its_taps_read(split, groups, stride):
    torch.manual_seed(groups)
    images, channels, outputs, size, kernel = 2, 4, 8, 6, 2
    layer = nn.Conv2d(channels, outputs, kernel, stride=stride, groups=groups, bias=False)
    x = torch.randn(images, channels, size, size, requires_grad=True)
    with fpsim.emulate({"*": "fp32", "product": split}):
        y = layer(x)
        gradient = torch.randn(y.shape)
        y.backward(gradient)
    patches = functional.unfold(x.detach(), kernel, stride=stride)
    for group, weight in enumerate(of_groups(layer.weight, groups, 0)):
        matrix = weight.reshape(len(weight), -1)
        read = of_groups(patches, groups, 1)[group]  # (n, c kh kw, oh ow)
        slope, found = of_groups(gradient, groups, 1)[group], of_groups(y, groups, 1)[group]
        flat = slope.reshape(images, len(weight), -1)
        for image in range(images):
            assert np.array_equal(found[image].reshape(len(weight), -1), chained(matrix, read[image], split))
        rows, places = flat.swapaxes(0, 1).reshape(len(weight), -1), read.swapaxes(1, 2).reshape(-1, matrix.shape[1])
        of_weight = chained(rows, places, split)
        assert np.array_equal(of_groups(layer.weight.grad, groups, 0)[group].reshape(of_weight.shape), of_weight)
        taps = dilated(slope, stride, kernel, size)[..., ::-1, ::-1]
        columns = taps.transpose(1, 4, 5, 0, 2, 3).reshape(-1, images * size * size)
        of_input = chained(weight.swapaxes(0, 1).reshape(channels // groups, -1), columns, split)
        of_input = of_input.reshape(-1, images, size, size).swapaxes(0, 1)
        assert np.array_equal(of_groups(x.grad, groups, 1)[group], of_input)


X, IMAGE = torch.linspace(-1, 1, 120).reshape(4, 5, 6).exp(), torch.linspace(-3, 3, 72).reshape(1, 2, 6, 6).exp()
OPERATIONS = {
    "lstm": lambda: nn.LSTM(6, 3)(X)[0],
    "einsum": lambda: torch.einsum("abc,adc->abd", X, X),
    "baddbmm": lambda: torch.baddbmm(X, X @ X.mT, X, alpha=0.5, beta=2.0),
    "addbmm": lambda: torch.addbmm(X[0, :, :5], X, X.mT),
    "mv": lambda: X[0].mv(X[0, 0]),
    "dot": lambda: X[0, 0].dot(X[0, 1]),
    "grouped": lambda: torch._grouped_mm(IMAGE.view(9, 8), X.flatten()[:64].view(2, 8, 4), torch.tensor([4, 9]).int()),
    "sparse": lambda: torch.sparse.mm(X[0].to_sparse(), X[1].T),
    "complex": lambda: torch.view_as_real(torch.complex(X[0], X[1]) @ torch.complex(X[2].T, X[3].T)),
    "heads": lambda: nn.MultiheadAttention(6, 2, batch_first=True)(X, X, X)[0],
    "conv1d": lambda: functional.conv1d(X, X[:3, :, :2]),
    "conv_transpose2d": lambda: functional.conv_transpose2d(IMAGE, X.flatten()[:24].reshape(2, 3, 2, 2), stride=2),
    "conv3d": lambda: functional.conv3d(IMAGE.unsqueeze(2), X.flatten()[:24].reshape(3, 2, 1, 2, 2)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_all_products_of_three_parts_are_those_of_the_factors(operation):
    found = []
    for fmt in ({}, {"product": "bf16x9"}, {"product": "bf16x3"}):
        torch.manual_seed(0)
        with torch.no_grad(), fpsim.emulate({"*": "fp32", **fmt}, "exact"):
            found.append(OPERATIONS[operation]())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_zeros_between_strides_meet_parts_that_are_infinite():
    weight, gradient = torch.full((1, 1, 2, 2), LARGEST), torch.ones(1, 1, 2, 2)
    with fpsim.emulate({"*": "fp32", "product": "bf16x3"}):
        found = torch.nn.grad.conv2d_input((1, 1, 4, 4), weight, gradient, stride=2)
    assert found.isnan().all()


@SPLITS
def test_attention_makes_both_products_in_parts(split):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 6, 8) for _ in range(3))
    with fpsim.emulate({"*": "fp32", "product": split}):
        found = functional.scaled_dot_product_attention(q, k, v)
    scores = product(q[0, 0], k[0, 0].T, split).double() * float(np.float32(8**-0.5))
    assert torch.equal(found[0, 0], product(torch.softmax(scores, -1).float(), v[0, 0], split))


@SPLITS
@pytest.mark.parametrize("unit", ["h100", "a100"])
def test_a_unit_begins_a_new_instruction_with_every_pair(split, unit):
    a, b = (x.astype(np.float32) for x in matrices(3, 4, 21, 5))
    left, right, total = parts(a), parts(b), None
    for pair in PAIRS[split].split():
        first, second = pair.split("*")
        total = fpsim.hardware.product(left[first], right[second], unit=unit, fmt="bf16", addend=total)
    assert np.array_equal(fpsim.matmul(a, b, fmt=split, accumulate=unit), total)
    sim = fpsim.run(nn.Linear(21, 5, bias=False), {"*": "fp32", "product": split}, unit)
    with torch.no_grad():
        sim.weight.copy_(torch.from_numpy(b.T))
        assert np.array_equal(sim(torch.from_numpy(a)).numpy(), total)


#: Accumulators, and how many terms each takes at a time.
ACCUMULATORS = {
    "fp32:blocked(4)": 4, "fp32:lanes(4)": 4, "fp32:lanes(3,pairwise)": 3, "fp16:blocked(4)->fp32": 4, "fp32:split(3)->bf16": 1,
    "fp32:pairwise": 1, "fp32:kahan": 1, "fp32:fma": 1, "bf16": 1, "fp16": 1, "e5m2": 1, "exact": 1,
}  # fmt: skip


@pytest.mark.parametrize("accumulate", ACCUMULATORS)
def test_pairs_are_added_in_any_order_each_beginning_a_block(accumulate):
    split, accumulator = "bf16x6", get_accumulator(accumulate)
    a, b = (x * np.float32(2.0**-4) for x in matrices(4, 3, 10, 2, spread=4))
    block = ACCUMULATORS[accumulate]
    for mode in (Rounding.NEAREST_EVEN, Rounding.UP):
        found = fpsim.matmul(a, b, fmt=split, accumulate=accumulate, rounding=mode)
        left, right = parts(a), parts(b)
        for (i, j), element in np.ndenumerate(found):
            terms = []
            for pair in PAIRS[split].split():
                first, second = pair.split("*")
                terms += zip(left[first][i].tolist(), right[second][:, j].tolist(), strict=True)
                terms += [(0.0, 0.0)] * (-len(terms) % block)
            total, held = oracle.total_of(terms, accumulator, FP32, mode)
            assert element == oracle.finished(total, held, FP32, mode)


@pytest.mark.parametrize("accumulate", [*ACCUMULATORS, "h100"])
@pytest.mark.parametrize("special", ["finite", "infinite"])
def test_convolutions_and_batches_are_the_products_of_their_matrices(accumulate, special):
    settings = {"fmt": "bf16x3", "accumulate": accumulate}

    def numbers(seed, *shape):
        flat, _ = matrices(seed, 1, int(np.prod(shape)), 1, SPECIAL[special], spread=4)
        return flat.reshape(shape) * np.float32(2.0**-4)

    a, b = numbers(5, 40, 3, 8), numbers(6, 40, 8, 2)
    found = fpsim.matmul(a, b, **settings)
    for one in range(0, 40, 13):
        assert np.array_equal(found[one], fpsim.matmul(a[one], b[one], **settings), equal_nan=True)
    weight, x = numbers(7, 40, 1, 2, 2), numbers(8, 1, 40, 6, 6)
    found = fpsim.conv(x, weight, groups=40, **settings).reshape(40, -1)
    patches = functional.unfold(torch.from_numpy(x), 2).numpy().reshape(40, 4, 25)
    for one in range(0, 40, 13):
        whole = fpsim.matmul(weight[one].reshape(1, 4), patches[one], **settings)
        assert np.array_equal(found[one], whole[0], equal_nan=True)


def test_parts_are_rounded_in_the_mode_of_products():
    layer, x = nn.Linear(1, 1, bias=False), torch.tensor([[1.0 + 2.0**-9 + 2.0**-18]])
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for mode, expected in {"nearest-even": 1 + 2.0**-9, "up": 1 + 2.0**-9 + 2.0**-15}.items():
        sim = fpsim.run(layer, {"*": "fp32", "product": "bf16x3"}, rounding={"*": "nearest-even", "product": mode})
        assert float(sim(x).detach()) == expected
    assert float(fpsim.run(layer, {"*": "fp32", "product": "bf16x3"})(x).detach()) == 1 + 2.0**-9


def test_narrower_numbers_are_multiplied_whole_and_results_are_of_their_role():
    torch.manual_seed(0)
    layer, x = nn.Linear(9, 4, bias=False), torch.randn(5, 9).half().float()
    sim = fpsim.run(layer, {"*": "fp16", "product": "bf16x3"}, "exact")
    mid = 2.0**-16  # what mid * mid may be of a product, left out
    found, true = sim(x).detach().double(), x.double() @ sim.weight.detach().double().T
    magnitudes = x.abs().double() @ sim.weight.detach().abs().double().T
    assert torch.equal(found, found.half().double())
    assert ((found - true).abs() <= mid * magnitudes + 2.0**-11 * true.abs()).all()
    whole = fpsim.run(layer, {"*": "fp16", "product": "bf16x6"}, "exact")
    assert torch.equal(whole(x).detach(), fpsim.run(layer, "fp16", "exact")(x).detach())


def test_results_beyond_a_format_without_infinities_are_no_parts_that_are_nan():
    """The small products alone give 896, beyond e4m3fn, and the large ones 0."""
    layer, x = nn.Linear(1, 2, bias=False), torch.ones(1, 1, requires_grad=True)
    fmt = {"*": "fp32", "gradient": "e4m3fn", "product": "bf16x3"}
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1024 + 2.0], [1024.0]]))
    with fpsim.emulate(fmt, "exact"):
        layer(x).backward(torch.tensor([[448.0, -448.0]]))
    assert x.grad.isnan().all()


def test_infinities_are_counted_as_what_they_end_as():
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    rows = []
    for fmt in ("fp32", {"*": "fp32", "product": "bf16x3"}):
        sim = fpsim.run(layer, fmt, "fp32")
        with torch.no_grad():
            assert sim(torch.tensor([[torch.inf, 1.0], [1.0, 1.0]])).tolist() == [[torch.inf], [2.0]]
        rows.append(sim.report().by_operation()["mm"])
    assert rows[0].nonfinite > 0 and rows[0] == rows[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fmt": "bf16x3"}, r"bf16x3 is a way to multiply .* the role 'product'"),
        ({"fmt": {"*": "bf16x6"}}, "bf16x6 is how products multiply, for the role 'product' alone; 'weight' takes"),
        ({"fmt": {"*": "fp32", "gradient": "bf16x3"}}, "'gradient' takes a format"),
        ({"fmt": {"product": "bf16x3"}}, "no format for the role 'weight'"),
        ({"fmt": {"*": "native", "product": "bf16x3"}}, '"native" is of all roles'),
        ({"accumulate": "native"}, "accumulate='native' leaves that to the library"),
        ({"accumulate": {"*": "fp32", "gradient": "native"}}, "'product': 'fp32'"),
        ({"accumulate": "bf16x3"}, "bf16x3 is a way to multiply"),
        ({"accumulate": "amx_fp16"}, "has no instruction for bf16 operands"),
        ({"rounding": {"*": "nearest-even", "product": "stochastic"}, "seed": 0}, "takes a deterministic mode"),
    ],
)
def test_what_cannot_be_multiplied_in_parts_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fpsim.run(nn.Linear(2, 2), **{"fmt": {"*": "fp32", "product": "bf16x3"}, **settings})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fpsim.sum(x, fmt="bf16x3"), "way to multiply"),
        (lambda x: fpsim.add(x, x, fmt="bf16x9"), "way to multiply"),
        (lambda x: fpsim.matmul(x, x, fmt="bf16x3", accumulate="native"), "leaves that to the library"),
        (lambda x: fpsim.matmul(x, x, fmt="bf16x3", error_bound=True), "no error bounds for products in parts, as bf16x3's"),
        (lambda x: fpsim.matmul(x.astype(float) + 2.0**-40, x, fmt="bf16x3"), "no value of fp32"),
        (
            lambda x: fpsim.certify(nn.Linear(2, 2).eval(), torch.ones(1, 2), fmt={"*": "fp32", "product": "bf16x3"}),
            "several formats",
        ),
    ],
)
def test_functions_that_do_not_multiply_in_parts_say_so(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.ones((2, 2), np.float32))
