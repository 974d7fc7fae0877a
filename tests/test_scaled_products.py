"""Block-scaled products (MX, NVFP4) against rationals, a published model, and the edges; quantizers by their definition."""

import warnings
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import fpsim
from fpsim.hardware import UnconfirmedUnit, get_unit, quantize_blocks, scaled_product
from fpsim.numbers.formats import get_format
from fpsim.sums.units import products
from tests import units_oracle as oracle

ROWS = {row.kind: row for row in get_unit("b200").scaled}
CASES = [(row.kind, fmt) for row in ROWS.values() for fmt in row.operands] + [("mxf8f6f4", ("e4m3fn", "e2m1fn"))]

pytestmark = pytest.mark.filterwarnings("ignore::fpsim.hardware.UnconfirmedUnit")


def formats_of(fmt):
    return [get_format(name) for name in (fmt if isinstance(fmt, tuple) else (fmt, fmt))]


def values(fmt, shape, generator):
    """Values over the whole range of a narrow format, a fifth zeros."""
    low, high = fmt.emin - fmt.precision, min(fmt.emax, 20)
    x = generator.standard_normal(shape) * 2.0 ** generator.integers(max(low, -20), high, shape)
    x[generator.random(shape) < 0.2] = 0
    return fpsim.round(np.clip(x, -fmt.max_finite, fmt.max_finite), fmt).astype(np.float32)


def scales(row, shape, generator, spread):
    if row.scale == "e8m0fnu":
        return (2.0 ** generator.integers(-spread, spread + 1, shape)).astype(np.float32)
    x = np.abs(generator.standard_normal(shape)) * 2.0 ** generator.integers(-8, 8, shape)
    x[generator.random(shape) < 0.1] = 0
    return fpsim.round(np.minimum(x, 448), row.scale).astype(np.float32)


def expected(row, formats, a, b, a_scale, b_scale, c):
    exact = [
        [oracle.number(float(v)) for v in x] for x in (a, b, np.repeat(a_scale, row.scaled), np.repeat(b_scale, row.scaled))
    ]
    c = oracle.number(float(c))
    if row.model == "scaled block":
        return float(oracle.scaled_block(*exact, c, formats, row.block, row.fraction))
    return float(oracle.scaled_groups(*exact, c, get_format(row.scale).emin, row.block, row.group, row.fraction))


@pytest.mark.parametrize("spread", [1, 6, 60])
@pytest.mark.parametrize("kind, fmt", CASES, ids=str)
def test_against_rationals(kind, fmt, spread):
    row, formats = ROWS[kind], formats_of(fmt)
    generator = np.random.default_rng([spread, len(kind), len(str(fmt))])
    terms = 150 if spread == 6 else 128
    blocks = -(-terms // row.scaled)
    a, b = values(formats[0], (4, terms), generator), values(formats[1], (terms, 5), generator)
    half = terms // 4 * 2
    a[0, 1:half:2], b[1:half:2, 0] = a[0, 0:half:2], -b[0:half:2, 0]  # products that cancel
    left, right = scales(row, (4, blocks), generator, spread), scales(row, (blocks, 5), generator, spread)
    c = (generator.standard_normal((4, 5)) * 2.0 ** generator.integers(-spread, spread + 8, (4, 5))).astype(np.float32)
    got = scaled_product(a, b, left, right, kind=kind, fmt=fmt, addend=c)
    for i, j in np.ndindex(4, 5):
        want = expected(row, formats, a[i], b[:, j], left[i], right[:, j], c[i, j])
        assert got[i, j] == want, (i, j, float(got[i, j]).hex(), want.hex())


@pytest.mark.parametrize("kind, fmt", CASES, ids=str)
def test_infinite_terms_against_the_rules(kind, fmt):
    """Infinite operands and addends and NaN scales among finite terms that overflow before, in and after their block."""
    row, formats = ROWS[kind], formats_of(fmt)
    generator = np.random.default_rng([len(kind), len(str(fmt))])
    terms, shape = 32 * 6, (5, 6)
    blocks = terms // row.scaled
    a, b = values(formats[0], (shape[0], terms), generator), values(formats[1], (terms, shape[1]), generator)
    for x, own in ((a, formats[0]), (b, formats[1])):
        if own.has_infinity:
            where = generator.random(x.shape) < 0.01
            x[where] = np.copysign(np.inf, x[where])
    left, right = scales(row, (shape[0], blocks), generator, 60), scales(row, (blocks, shape[1]), generator, 60)
    if row.scale == "e8m0fnu":
        left[generator.random(left.shape) < 0.3] = right[generator.random(right.shape) < 0.3] = 2.0**66
    left[generator.random(left.shape) < 0.02] = np.nan
    c = np.copysign(np.float32(np.inf), generator.standard_normal(shape).astype(np.float32))
    c[generator.random(shape) < 0.5] = 1.5
    got = scaled_product(a, b, left, right, kind=kind, fmt=fmt, addend=c)
    for i, j in np.ndindex(*shape):
        want = expected(row, formats, a[i], b[:, j], left[i], right[:, j], c[i, j])
        assert np.array_equal(got[i, j], np.float32(want), equal_nan=True), (i, j, float(got[i, j]), want)


@pytest.mark.parametrize("kind, fmt", [("mxf8f6f4", "e4m3fn"), ("mxf4", "e2m1fn"), ("nvf4", "e2m1fn")])
def test_wrong_models_differ(kind, fmt):
    """One fraction bit less, or an alignment by what the products come to, is another machine."""
    row, formats = ROWS[kind], formats_of(fmt)
    generator = np.random.default_rng(0)
    a, b = values(formats[0], (20, 128), generator), values(formats[1], (128, 20), generator)
    blocks = 128 // row.scaled
    left, right = scales(row, (20, blocks), generator, 9), scales(row, (blocks, 20), generator, 9)
    got = scaled_product(a, b, left, right, kind=kind, fmt=fmt)
    narrower = replace(row, fraction=row.fraction - (1 if row.model == "scaled block" else 12))
    different = sum(
        got[i, j] != expected(narrower, formats, a[i], b[:, j], left[i], right[:, j], 0) for i, j in np.ndindex(20, 20)
    )
    assert different > 20


@pytest.mark.parametrize("kind, name, scale", [("mxf4", "mxf4.block32", "ue8m0"), ("nvf4", "mxf4nvf4.block16", "ue4m3")])
def test_a_published_model_agrees(kind, name, scale):
    """MMA-Sim's model of the same instruction, written by others, away from its floor for tiny sums."""
    nv_ptx = pytest.importorskip("mmasim.nv_ptx")
    import torch
    from mmasim.arithmetic import fdpa

    row, generator = ROWS[kind], np.random.default_rng(1)
    a, b = values(get_format("e2m1fn"), (16, 64), generator), values(get_format("e2m1fn"), (64, 8), generator)
    blocks = 64 // row.scaled
    left, right = scales(row, (16, blocks), generator, 5), scales(row, (blocks, 8), generator, 5)
    c = generator.standard_normal((16, 8)).astype(np.float32)
    instruction = f"m16n8k64.kind::{name}.f32.e2m1.e2m1.f32.{scale}"
    model = nv_ptx.MMABlockScale("RTX Blackwell", instruction).arithmetic_op
    assert isinstance(model, fdpa.MMA_GST_FDPA)
    kinds = {"ue8m0": torch.float8_e8m0fnu, "ue4m3": torch.float8_e4m3fn}
    halves = [torch.from_numpy(x).half() for x in (a, b)]
    given = [torch.from_numpy(x).to(kinds[scale]) for x in (left, right)]
    theirs = model(halves[0], halves[1], torch.from_numpy(c), *given)
    assert np.array_equal(theirs.numpy(), scaled_product(a, b, left, right, kind=kind, addend=c))


@pytest.mark.parametrize("fmt", ["e4m3fn", "e2m1fn"])
def test_scales_of_one_are_the_unscaled_unit(fmt):
    generator = np.random.default_rng(2)
    a, b = values(get_format(fmt), (40, 96), generator), values(get_format(fmt), (96, 50), generator)
    ones = np.ones((40, 3), np.float32), np.ones((3, 50), np.float32)
    plain = fpsim.hardware.product(a, b, unit="b200", fmt=fmt)
    assert np.array_equal(scaled_product(a, b, *ones, kind="mxf8f6f4", fmt=fmt), plain)
    tall = scaled_product(a, b[:, :3], ones[0], ones[1][:, :3], kind="mxf8f6f4", fmt=fmt)
    assert np.array_equal(tall, plain[:, :3])  # rows and columns change places inside


@pytest.mark.parametrize("kind", list(ROWS))
def test_specials(kind):
    row = ROWS[kind]
    fmt = "e5m2" if kind == "mxf8f6f4" else "e2m1fn"
    a, b = np.ones((1, row.scaled), np.float32), np.ones((row.scaled, 1), np.float32)
    one = np.ones((1, 1), np.float32)

    def of(a=a, b=b, left=one, right=one, c=None):
        return scaled_product(a, b, left, right, kind=kind, fmt=fmt, addend=c)[0, 0]

    assert of() == row.scaled
    assert of(a, -b).tobytes() == np.float32(-row.scaled).tobytes()
    assert of(0 * a, b).tobytes() == np.float32(0).tobytes()
    assert np.isnan(of(left=one * np.nan)) and np.isnan(of(c=one * np.nan)) and of(c=one * np.inf) == np.inf
    if kind == "mxf8f6f4":
        endless = a.copy()
        endless[0, 3] = np.inf
        assert of(endless, -b) == -np.inf and np.isnan(of(endless, b, c=-one * np.inf)) and np.isnan(of(endless, 0 * b))
    if row.scale == "e8m0fnu":
        top, low = one * np.float32(2.0**127), one * np.float32(2.0**-127)
        assert of(left=top, right=top) == np.inf and of(left=low, right=top) == row.scaled
        assert of(left=low, right=one * np.float32(2.0**-10)) == np.float32(row.scaled * 2.0**-137)
        assert of(left=low, right=low) == 0
    empty = scaled_product(a[:, :0], b[:0], one[:, :0], one[:0], kind=kind, fmt=fmt, addend=one)
    assert np.array_equal(empty, one)


def test_bad_input():
    a, b = np.ones((2, 64), np.float32), np.ones((64, 3), np.float32)
    left, right = np.ones((2, 2), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match="unit h100 has no scaled instruction 'mxf4'; it has none"):
        scaled_product(a, b, left, right, kind="mxf4", unit="h100")
    with pytest.raises(ValueError, match="it has mxf8f6f4, mxf4, nvf4"):
        scaled_product(a, b, left, right, kind="mx4")
    with pytest.raises(ValueError, match="fmt: mxf8f6f4 takes e4m3fn, e5m2, e3m2fn, e2m3fn, e2m1fn; name one"):
        scaled_product(a, b, left, right, kind="mxf8f6f4")
    with pytest.raises(ValueError, match="fmt: mxf4 takes e2m1fn, not float8_e4m3fn"):
        scaled_product(a, b, left, right, kind="mxf4", fmt="e4m3fn")
    with pytest.raises(ValueError, match=r"a_scale must be \(2, 4\), one scale for every 16 terms, got \(2, 2\)"):
        scaled_product(a, b, left, right, kind="nvf4")
    with pytest.raises(ValueError, match="is no value of float8_e8m0fnu"):
        scaled_product(a, b, 3 * left, right, kind="mxf4")
    with pytest.raises(ValueError, match="b_scale has a negative element"):
        scaled_product(a, b, np.ones((2, 4), np.float32), -np.ones((4, 3), np.float32), kind="nvf4")
    with pytest.raises(ValueError, match=r"a and b must be \(m, k\) and \(k, n\)"):
        scaled_product(a, a, left, left, kind="mxf4")
    with pytest.raises(ValueError, match="does not broadcast"):
        scaled_product(a, b, left, right, kind="mxf4", addend=np.ones(5, np.float32))


@pytest.mark.filterwarnings("default::fpsim.hardware.UnconfirmedUnit")
def test_unconfirmed_rows_say_so_once(monkeypatch):
    monkeypatch.setattr(products, "_warned", set())
    a, b, one = np.ones((1, 32), np.float32), np.ones((32, 1), np.float32), np.ones((1, 1), np.float32)
    with pytest.warns(UnconfirmedUnit, match="unit b200 with mxf4 operands is unconfirmed: published models only"):
        scaled_product(a, b, one, one, kind="mxf4")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scaled_product(a, b, one, one, kind="mxf4")


# Quantizers.


@pytest.mark.parametrize("kind, fmt", [case for case in CASES if isinstance(case[1], str)])
def test_quantized_blocks(kind, fmt):
    """Each block by the definition, in rationals; the scaled values lie within half a unit of the numbers, but for the top."""
    row, target = ROWS[kind], get_format(fmt)
    x = np.random.default_rng(3).standard_normal((3, 75)) * 3.0
    x[1, :40] = 0
    got, scale = quantize_blocks(x, kind=kind, fmt=fmt, axis=1)
    assert got.shape == x.shape and scale.shape == (3, -(-75 // row.scaled))
    for i, block in np.ndindex(*scale.shape):
        part = slice(block * row.scaled, (block + 1) * row.scaled)
        largest = np.abs(x[i, part]).max()
        if largest == 0:
            assert scale[i, block] == 1 and not got[i, part].any()
            continue
        if row.scale == "e8m0fnu":
            assert Fraction(float(scale[i, block])) == oracle.power(Fraction(largest), -999) / Fraction(2) ** target.emax
        else:
            assert scale[i, block] == fpsim.round(largest / 6.0, "e4m3fn")
        wanted = np.clip(x[i, part] / float(scale[i, block]), -target.max_finite, target.max_finite)
        assert np.array_equal(got[i, part], fpsim.round(wanted, target))
    turned, other = quantize_blocks(x.T, kind=kind, fmt=fmt, axis=0)
    assert np.array_equal(turned.T, got) and np.array_equal(other.T, scale)


def test_quantizers_of_extreme_blocks():
    x = np.array([[1e-40] * 32, [1e300] * 32, [2.0**-130] * 32])
    _, scale = quantize_blocks(x, kind="mxf4", axis=1)
    assert scale.reshape(-1).tolist() == [2.0**-127, 2.0**127, 2.0**-127]
    _, scale = quantize_blocks(x[:, :16], kind="nvf4", axis=1)
    assert scale.reshape(-1).tolist() == [2.0**-9, 448.0, 2.0**-9]
    with pytest.raises(ValueError, match="x must be a matrix of finite numbers"):
        quantize_blocks(np.array([[np.nan]]), kind="mxf4")
