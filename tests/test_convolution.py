"""Convolutions against explicit loops of rationals, against a whole im2col, and against torch where all is exact."""

import itertools
import tracemalloc
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.accumulation import get_accumulator
from fpsim.arrays.convolution import conv, conv_input_gradient, conv_weight_gradient
from fpsim.backend import threads
from fpsim.numbers.formats import get_format
from fpsim.numbers.rounding import Rounding
from fpsim.sums import convolutions
from fpsim.sums.geometry import Geometry
from fpsim.sums.taps import Taps
from fpsim.sums.task import Sum
from tests import sums_oracle as oracle
from tests.test_reductions import same_bits, values_of

TORCH = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@st.composite
def geometries(draw, most=3):
    """Shapes of x and weight, and the steps, of a convolution with a result."""
    axes = range(draw(st.integers(1, 3)))
    groups = draw(st.integers(1, 2))
    kernel = [draw(st.integers(1, most)) for _ in axes]
    steps = {
        "stride": [draw(st.integers(1, 3)) for _ in axes],
        "padding": [draw(st.integers(0, 2)) for _ in axes],
        "dilation": [draw(st.integers(1, 2)) for _ in axes],
    }
    least = [steps["dilation"][i] * (kernel[i] - 1) + 1 - 2 * steps["padding"][i] for i in axes]
    size = [max(1, least[i]) + draw(st.integers(0, 3)) for i in axes]
    channels, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    x = (draw(st.integers(1, 2)), channels, *size)
    return x, (outputs, channels // groups, *kernel), {**steps, "groups": groups}


def taps_of(x_shape, weight_shape, out_shape, steps):
    """For every element of the result: the pairs (place in the weight, place in x or None for padding), in order."""
    axes = range(len(x_shape) - 2)
    inner, outer = weight_shape[1], weight_shape[0] // steps["groups"]
    found = {}
    for n, o, *position in itertools.product(*map(range, out_shape)):
        pairs = []
        for c, *tap in itertools.product(*map(range, weight_shape[1:])):
            starts = [position[i] * steps["stride"][i] - steps["padding"][i] for i in axes]
            place = [starts[i] + tap[i] * steps["dilation"][i] for i in axes]
            inside = all(0 <= place[i] < x_shape[2 + i] for i in axes)
            pairs.append(((o, c, *tap), (n, o // outer * inner + c, *place) if inside else None))
        found[(n, o, *position)] = pairs
    return found


def loop(pairs_of, shape, accumulate, fmt, mode, bias=None):
    """The result whose elements are the sums of products that `pairs_of(element)` lists."""
    accumulator, target = get_accumulator(accumulate), get_format(fmt)
    out = np.empty(shape)
    for element in itertools.product(*map(range, shape)):
        total, held = oracle.total_of(pairs_of(element), accumulator, target, mode)
        if bias is not None:
            added = float(bias[element[1]])
            total = oracle.add(total, oracle.rounded(added, held, mode, added), held, mode)
        out[element] = oracle.finished(total, held, target, mode)
    return out


@settings(max_examples=25, deadline=None)
@given(
    geometries(most=2), st.sampled_from(["fp16", "fp32", "fp16:pairwise", "fp16:fma"]),
    st.sampled_from([Rounding.NEAREST_EVEN, Rounding.DOWN]), st.integers(0, 99),
)  # fmt: skip
def test_all_three_products_are_explicit_loops(geometry, accumulate, mode, seed):
    x_shape, weight_shape, steps = geometry
    x, weight = (values_of("fp16", shape, seed + i, specials=False) for i, shape in enumerate((x_shape, weight_shape)))
    bias = values_of("fp16", weight_shape[:1], seed + 2, specials=False)
    how = {"fmt": "fp16", "accumulate": accumulate, "rounding": mode}
    y = conv(x, weight, bias, **steps, **how)
    taps = taps_of(x_shape, weight_shape, y.shape, steps)

    def forward(element):
        return [(float(weight[w]), 0.0 if place is None else float(x[place])) for w, place in taps[element]]

    assert same_bits(y, loop(forward, y.shape, accumulate, "fp16", mode, bias))

    gradient = values_of("fp16", y.shape, seed + 3, specials=False)
    readers = {(w, place): element for element, pairs in taps.items() for w, place in pairs if place is not None}
    inner, outer = weight_shape[1], weight_shape[0] // steps["groups"]

    def input_gradient(element):
        group, c = divmod(element[1], inner)
        chain = itertools.product(range(group * outer, (group + 1) * outer), *map(range, weight_shape[2:]))
        places = [((o, c, *tap), readers.get(((o, c, *tap), element))) for o, *tap in chain]
        return [(float(weight[w]), 0.0 if reader is None else float(gradient[reader])) for w, reader in places]

    got = conv_input_gradient(gradient, weight, x_shape, **steps, **how)
    assert same_bits(got, loop(input_gradient, x_shape, accumulate, "fp16", mode))

    reads = {(element, w): place for element, pairs in taps.items() for w, place in pairs}

    def weight_gradient(w):
        chain = itertools.product(range(y.shape[0]), *map(range, y.shape[2:]))
        elements = [(n, w[0], *position) for n, *position in chain]
        places = [(element, reads[(element, w)]) for element in elements]
        return [(float(gradient[element]), 0.0 if place is None else float(x[place])) for element, place in places]

    got = conv_weight_gradient(gradient, x, weight_shape, **steps, **how)
    assert same_bits(got, loop(weight_gradient, weight_shape, accumulate, "fp16", mode))


BOUNDED = [
    ("fp16", "fp16", "nearest-even", None),
    ("bf16", "fp32", "nearest-even", None),
    ("bf16", "bf16:pairwise", "toward-zero", None),
    ("fp16", "fp16:fma", "stochastic", 3),
    ("fp16", "fp16:kahan", "nearest-even", None),
    ("fp16", "v100", "nearest-even", None),
]


@settings(max_examples=25, deadline=None)
@given(geometries(most=2), st.sampled_from(BOUNDED), st.integers(0, 99))
def test_error_bounds_hold_of_exact_convolutions(geometry, machine, seed):
    x_shape, weight_shape, steps = geometry
    fmt = machine[0]
    x, weight = (values_of(fmt, shape, seed + i, specials=False) for i, shape in enumerate((x_shape, weight_shape)))
    bias = values_of(fmt, weight_shape[:1], seed + 2, specials=False)
    options = {**steps, **dict(zip(("fmt", "accumulate", "rounding", "seed"), machine, strict=True))}
    y, bound = conv(x, weight, bias, error_bound=True, **options)
    assert same_bits(y, conv(x, weight, bias, **options))
    gradient = values_of(fmt, y.shape, seed + 3, specials=False)
    for_x = conv_input_gradient(gradient, weight, x_shape, error_bound=True, **options)
    for_weight = conv_weight_gradient(gradient, x, weight_shape, error_bound=True, **options)
    assert same_bits(for_x[0], conv_input_gradient(gradient, weight, x_shape, **options))
    assert same_bits(for_weight[0], conv_weight_gradient(gradient, x, weight_shape, **options))
    want = [{element: Fraction(float(bias[element[1]])) for element in np.ndindex(y.shape)}, defaultdict(int), defaultdict(int)]
    for element, pairs in taps_of(x_shape, weight_shape, y.shape, steps).items():
        for w, place in pairs:
            if place is not None:
                factors = [Fraction(float(v)) for v in (weight[w], x[place], gradient[element])]
                want[0][element] += factors[0] * factors[1]
                want[1][place] += factors[0] * factors[2]
                want[2][w] += factors[1] * factors[2]
    for (result, bounds), exact in zip(((y, bound), for_x, for_weight), want, strict=True):
        assert bounds.shape == result.shape
        for place in np.ndindex(result.shape):
            if bounds[place] < np.inf:
                assert abs(Fraction(float(result[place])) - exact[place]) <= Fraction(float(bounds[place]))


def test_error_bounds_are_those_of_the_whole_product(monkeypatch):
    x, weight = values_of("fp16", (2, 6, 9, 8), 1, specials=False), values_of("fp16", (5, 6, 3, 3), 2, specials=False)
    x, weight = x / 1024, weight / 1024
    x, weight = fpsim.round(x, "fp16"), fpsim.round(weight, "fp16")
    columns = whole_im2col(x, 3, 1, 1, 1)
    how = {"fmt": "fp16", "accumulate": "fp16"}
    want = fpsim.matmul(weight.reshape(5, -1), columns, error_bound=True, **how)[1]
    set_tiles(monkeypatch, 10_000)
    bound = conv(torch.from_numpy(x), torch.from_numpy(weight), padding=1, error_bound=True, **how)[1]
    assert isinstance(bound, torch.Tensor) and np.isfinite(want).any()
    assert np.array_equal(bound.numpy().reshape(2, 5, -1), want)
    with pytest.raises(ValueError, match="probability"):
        conv(x, weight, padding=1, error_bound=2.0, **how)


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(0, 60), st.sampled_from([np.float32, np.float64]), st.data())
def test_patches_are_what_each_tap_reads(geometry, longer, dtype, data):
    x_shape, weight_shape, steps = geometry
    x_shape = (*x_shape[:-1], x_shape[-1] + longer)  # lines of several vectors
    geometry = Geometry.of(x_shape, weight_shape, **steps)
    backward = data.draw(st.booleans())  # of a gradient: positions are those of the input, taps go the other way
    size, grid = (geometry.grid, geometry.size) if backward else (geometry.size, geometry.grid)
    axes = geometry.backward_axes if backward else geometry.forward_axes
    source = np.random.default_rng(longer).normal(size=(*x_shape[:2], *size)).astype(dtype)
    if data.draw(st.booleans()):  # channels last
        source = np.ascontiguousarray(source.transpose(0, 2, 3, 4, 1)).transpose(0, 4, 1, 2, 3)
    taps = Taps(source, geometry.kernel, grid, axes)
    some = [data.draw(st.integers(0, size - 1)) for size in (taps.count, taps.positions)]
    rows, columns = slice(some[0], taps.count), slice(some[1], data.draw(st.integers(some[1] + 1, taps.positions)))
    buffer = np.full((taps.count + 1) * taps.positions, np.nan, dtype)
    piece = taps.gather(rows, columns, buffer)
    wanted = np.zeros_like(piece)
    for i, j in np.ndindex(*piece.shape):
        channel, *tap = np.unravel_index(rows.start + i, (source.shape[1], *geometry.kernel))
        image, *position = np.unravel_index(columns.start + j, (source.shape[0], *grid))
        scaled = [int(position[k] * axes[k, 0] + axes[k, 1] + tap[k] * axes[k, 2]) for k in range(3)]
        place = [scaled[k] // int(axes[k, 3]) for k in range(3)]
        if all(scaled[k] % axes[k, 3] == 0 and 0 <= place[k] < source.shape[2 + k] for k in range(3)):
            wanted[i, j] = source[(image, channel, *place)]
    assert np.array_equal(piece, wanted) and np.isnan(buffer[piece.size :]).all()


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(0, 1000))
def test_small_whole_numbers_agree_with_torch(geometry, seed):
    x_shape, weight_shape, steps = geometry
    random = np.random.default_rng(seed)
    x, weight = (torch.from_numpy(random.integers(-4, 5, s).astype(np.float32)) for s in (x_shape, weight_shape))
    bias = torch.from_numpy(random.integers(-4, 5, weight_shape[0]).astype(np.float32))
    x.requires_grad_(), weight.requires_grad_()
    want = TORCH[len(x_shape) - 2](x, weight, bias, **steps)
    gradient = torch.from_numpy(random.integers(-4, 5, want.shape).astype(np.float32))
    want.backward(gradient)
    how = {**steps, "fmt": "fp32", "accumulate": "fp32"}
    assert torch.equal(conv(x, weight, bias, **how), want.detach())
    assert torch.equal(conv_input_gradient(gradient, weight, x_shape, **how), x.grad)
    assert torch.equal(conv_weight_gradient(gradient, x, weight_shape, **how), weight.grad)


def set_tiles(monkeypatch, size):
    for name in ("_POSITIONS_BYTES", "_TAPS_BYTES"):
        monkeypatch.setattr(convolutions, name, size)


def whole_im2col(x, kernel, stride, padding, dilation):
    """(n, c * kh * kw, oh * ow) by torch's own unfold."""
    return F.unfold(torch.from_numpy(x), kernel, dilation, padding, stride).numpy()


@pytest.mark.parametrize("accumulate", ["fp16", "bf16:lanes(4)", "fp32:fma", "fp16:kahan"])
@pytest.mark.parametrize("stride, padding, dilation", [(1, 1, 1), (2, 1, 1), (1, 0, 2)])
def test_tiles_are_the_whole_product(accumulate, stride, padding, dilation, monkeypatch):
    set_tiles(monkeypatch, 40_000)
    x, weight = values_of("fp16", (3, 6, 19, 17), 1, specials=False), values_of("fp16", (5, 6, 3, 3), 2, specials=False)
    how = {"fmt": "fp16", "accumulate": accumulate}
    steps = {"stride": stride, "padding": padding, "dilation": dilation}
    columns = whole_im2col(x, 3, stride, padding, dilation)
    y = conv(x, weight, **steps, **how)
    assert same_bits(y.reshape(3, 5, -1), fpsim.matmul(weight.reshape(5, -1), columns, **how))

    gradient = values_of("fp16", y.shape, 3, specials=False)
    rows = gradient.reshape(3, 5, -1).swapaxes(0, 1).reshape(5, -1)
    right = columns.swapaxes(1, 2).reshape(-1, columns.shape[1])
    got = conv_weight_gradient(gradient, x, weight.shape, **steps, **how)
    assert same_bits(got.reshape(5, -1), fpsim.matmul(rows, right, **how))

    spread = np.zeros((3, 5, 19 + 2 * dilation, 17 + 2 * dilation), np.float32)
    first = 2 * dilation - padding
    height, width = y.shape[2:]
    spread[:, :, first : first + stride * height : stride, first : first + stride * width : stride] = gradient
    patches = whole_im2col(spread, 3, 1, 0, dilation)
    # Unfolding reads kernel positions in ascending order of the place; the chain takes them in that of the weight.
    patches = patches.reshape(3, 5, 3, 3, -1)[:, :, ::-1, ::-1].reshape(3, 45, -1)
    factors = weight.swapaxes(0, 1).reshape(6, 45)
    got = conv_input_gradient(gradient, weight, x.shape, **steps, **how)
    assert same_bits(got.reshape(3, 6, -1), fpsim.matmul(factors, patches, **how))


def test_tiles_and_threads_never_change_a_bit(monkeypatch):
    x = values_of("fp16", (3, 8, 33, 40), 1, specials=False)
    weight = values_of("fp16", (40, 4, 3, 3), 2, specials=False)
    gradient = values_of("fp16", (3, 40, 33, 40), 3, specials=False)
    steps = {"padding": 1, "groups": 2, "fmt": "fp16", "accumulate": "fp16"}
    for more in ({}, {"rounding": "stochastic", "seed": 5}):
        results = []
        for tile, count in ((12 << 20, 1), (100_000, 2), (50_000, 4)):
            set_tiles(monkeypatch, tile)
            threads.set_num_threads(count)
            try:
                results.append(
                    (
                        conv(x, weight, **steps, **more),
                        conv_input_gradient(gradient, weight, x.shape, **steps, **more),
                        conv_weight_gradient(gradient, x, weight.shape, **steps, **more),
                    )
                )
            finally:
                threads.set_num_threads(None)
        for other in results[1:]:
            assert all(same_bits(left, right) for left, right in zip(results[0], other, strict=True))


@settings(max_examples=60, deadline=None)
@given(geometries(), st.sampled_from(["fp16", "bf16", "fp32", "e4m3fnuz"]), st.integers(0, 99))
def test_zeros_between_strides_can_be_left_out(geometry, accumulate, seed):
    x_shape, weight_shape, steps = geometry
    weight = values_of("fp16", weight_shape, seed, specials=False)
    y_shape = conv(np.zeros(x_shape, np.float32), weight, **steps, fmt="fp16").shape
    gradient = values_of("fp16", y_shape, seed + 1)
    how = {**steps, "fmt": "fp16", "accumulate": accumulate}
    fast = conv_input_gradient(gradient, weight, x_shape, **how)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(convolutions, "_zeros_can_be_left_out", lambda *_: False)
        assert same_bits(fast, conv_input_gradient(gradient, weight, x_shape, **how))


def test_zeros_between_strides_meet_infinite_weights():
    weight = np.array([[[np.inf, 1.0]]], np.float32)
    gradient = np.ones((1, 1, 2), np.float32)
    got = conv_input_gradient(gradient, weight, (1, 1, 4), stride=2, fmt="fp16")[0, 0]
    assert got[0] == np.inf and np.isnan(got[1]) and got[2] == np.inf


def test_layouts_and_types():
    x, weight = values_of("fp16", (2, 4, 9, 9), 1, specials=False), values_of("fp16", (6, 4, 3, 3), 2, specials=False)
    want = conv(x, weight, fmt="fp16", accumulate="fp16")
    last = x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
    flipped = np.flip(np.flip(x, 3).copy(), 3)
    for layout in (last, flipped, np.repeat(x, 2, axis=2)[:, :, ::2], np.asfortranarray(x)):
        assert same_bits(conv(layout, np.asfortranarray(weight), fmt="fp16", accumulate="fp16"), want)
    for dtype in (np.float16, np.float64):
        got = conv(x.astype(dtype), weight.astype(dtype), fmt="fp16", accumulate="fp16")
        assert got.dtype == dtype and same_bits(got, want)
    half = conv(torch.from_numpy(x).half(), torch.from_numpy(weight).half(), fmt="fp16", accumulate="fp16")
    assert half.dtype is torch.float16 and same_bits(half.numpy(), want)


def test_padding_is_multiplied():
    x, weight = np.ones((1, 1, 2), np.float32), np.array([[[np.inf, 1.0]]], np.float32)
    assert np.isnan(conv(x, weight, padding=1, fmt="fp16")[0, 0, 0])
    assert conv(x, weight, fmt="fp16")[0, 0, 0] == np.inf


def test_empty_batches():
    weight = np.ones((3, 2, 3), np.float32)
    assert conv(np.zeros((0, 2, 5), np.float32), weight, fmt="fp16").shape == (0, 3, 3)
    gradient, x = np.zeros((0, 3, 3), np.float32), np.zeros((0, 2, 5), np.float32)
    assert conv_input_gradient(gradient, weight, (0, 2, 5), fmt="fp16").shape == (0, 2, 5)
    got = conv_weight_gradient(gradient, x, weight.shape, fmt="fp16")
    assert same_bits(got, np.zeros(weight.shape))


def test_memory_is_bounded():
    """Operands and result, and no more than 64 MB: the whole im2col would take 600 MB."""
    x = np.ones((4, 64, 256, 256), np.float32)
    weight = np.ones((8, 64, 3, 3), np.float32)
    geometry = convolutions.Geometry.of(x.shape, weight.shape, padding=1)
    how = convolutions.Products(Sum.of(get_format("fp16"), get_accumulator("fp32"), Rounding.NEAREST_EVEN))
    out = np.empty(geometry.output_shape, np.float32)
    tracemalloc.start()
    try:
        convolutions.forward_into(x[:, :, None], weight[:, :, None], out, geometry, how)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert out[0, 0, 0, 5, 5] == 576


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"x": (2, 4)}, ValueError, "x must have shape"),
        ({"x": (2, 4, 5, 5, 5, 5)}, ValueError, "x must have shape"),
        ({"weight": (6, 4, 3)}, ValueError, "need as many axes"),
        ({"groups": 3}, ValueError, "groups = 3: x has 4 channels"),
        ({"weight": (6, 3, 3, 3)}, ValueError, "groups = 1: x has 4 channels, weight .* takes 3"),
        ({"weight": (6, 4, 0, 3)}, ValueError, "kernel axis of size 0"),
        ({"weight": (6, 4, 9, 3)}, ValueError, "larger than axis 2 of x"),
        ({"stride": 0}, ValueError, "stride must be at least 1"),
        ({"stride": (1, 2, 3)}, ValueError, "stride must be one number or 2"),
        ({"padding": -1}, ValueError, "padding must be at least 0"),
        ({"dilation": 1.5}, TypeError, "dilation must be a whole number"),
        ({"bias": (5,)}, ValueError, r"bias has shape \(5,\), it must have \(6,\)"),
        ({"fmt": "fp17"}, ValueError, "unknown format"),
        ({"accumulate": "v100", "fmt": "bf16"}, ValueError, "no instruction for bf16"),
        ({"rounding": "stochastic"}, ValueError, "needs seed"),
    ],
)
def test_bad_input(changes, error, message):
    shapes = {"x": (2, 4, 7, 7), "weight": (6, 4, 3, 3)}
    arguments = {"fmt": "fp16", **shapes, **changes}
    arrays = {name: np.ones(arguments.pop(name), np.float32) for name in ("x", "weight", "bias") if name in arguments}
    with pytest.raises(error, match=message):
        conv(**arrays, **arguments)


def test_bad_gradients_and_values():
    x, weight = np.ones((2, 4, 7, 7), np.float32), np.ones((6, 4, 3, 3), np.float32)
    with pytest.raises(ValueError, match=r"gradient has shape \(2, 6, 7, 7\), it must have \(2, 6, 5, 5\)"):
        conv_input_gradient(np.ones((2, 6, 7, 7), np.float32), weight, x.shape, fmt="fp16")
    with pytest.raises(ValueError, match=r"gradient has shape"):
        conv_weight_gradient(np.ones((2, 6, 5), np.float32), x, weight.shape, fmt="fp16")
    with pytest.raises(ValueError, match=r"weight\[0, 0, 0, 0\] = .* is no value of fp16"):
        conv(x, weight + np.float32(1e-5), fmt="fp16")
