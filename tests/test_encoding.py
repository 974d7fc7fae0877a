"""Codes and neighbors of every value of every narrow format, against ml_dtypes, NumPy and torch."""

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import fpsim
from tests import integer_oracle
from tests.strategies import LISTED, NAMED, VARIANTS, every_value

LIBRARY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16}
WITH_DTYPE = [(fmt, LIBRARY.get(fmt.name) or getattr(ml_dtypes, fmt.name)) for fmt in LISTED if fmt.name != "tf32"]


def same(got, want):
    with np.errstate(invalid="ignore"):  # NaNs of codes may be signaling
        return integer_oracle.mismatches(*(np.ravel(np.asarray(x, np.float64)) for x in (got, want))) == 0


@pytest.mark.parametrize(("fmt", "dtype"), WITH_DTYPE, ids=str)
def test_codes_are_those_of_the_library(fmt, dtype):
    unsigned = np.uint16 if fmt.bits == 16 else np.uint8
    codes = np.arange(2**fmt.bits, dtype=unsigned)
    values = codes.view(dtype).astype(np.float32)
    assert same(fpsim.decode(codes, fmt), values)
    numbers = ~np.isnan(values)
    encoded = fpsim.encode(values[numbers], fmt)
    assert encoded.dtype == unsigned and (encoded == codes[numbers]).all()


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("fp16", 0x7E00),
        ("bf16", 0x7FC0),
        ("fp32", 0x7FC00000),
        ("fp64", 0x7FF8000000000000),
        ("tf32", 0x3FE00),
        ("e5m2", 0x7E),
        ("e4m3fn", 0x7F),
        ("e4m3", 0x7C),
        ("e3m4", 0x78),
        ("e4m3b11fnuz", 0x80),
        ("e4m3fnuz", 0x80),
        ("e5m2fnuz", 0x80),
        ("e8m0fnu", 0xFF),
    ],
)
def test_nan_is_positive_and_quiet(name, code):
    assert fpsim.encode(float("nan"), name) == code
    assert fpsim.encode(np.float64(-np.nan), name) == code
    assert np.isnan(fpsim.decode(code, name))


@pytest.mark.parametrize("fmt", [fmt for fmt in LISTED + VARIANTS if fmt.bits <= 19], ids=str)
def test_decoding_and_encoding_invert_each_other(fmt):
    codes = np.arange(2**fmt.bits, dtype=np.uint64)
    values = fpsim.decode(codes, fmt)
    numbers = ~np.isnan(values)
    assert (fpsim.encode(values[numbers], fmt) == codes[numbers]).all()
    assert numbers.sum() >= 2 ** (fmt.bits - 1) or fmt.specials == "ieee"


@pytest.mark.parametrize(("name", "unsigned", "floating"), [("fp32", "u4", "f4"), ("fp64", "u8", "f8")])
def test_carriers_encode_as_their_own_bits(name, unsigned, floating):
    codes = np.random.default_rng(8).integers(0, 2**63, 100_000, dtype=np.uint64).astype(unsigned)
    values = codes.view(floating)
    assert same(fpsim.decode(codes, name), values)
    numbers = ~np.isnan(values)
    assert (fpsim.encode(values[numbers], name) == codes[numbers]).all()


def test_sizes_of_codes():
    sizes = {fmt.name: fpsim.encode(1.0 * np.ones(1), fmt).dtype.itemsize for fmt in NAMED}
    assert sizes["tf32"] == 4 and sizes["fp64"] == 8 and sizes["fp16"] == 2
    assert all(sizes[fmt.name] == 1 for fmt in NAMED if fmt.bits <= 8)
    assert fpsim.encode(1.0, "tf32") == 127 << 10  # right-aligned


def test_kinds_of_arguments():
    assert type(fpsim.encode(1.0, "fp16")) is int and type(fpsim.decode(0x3C00, "fp16")) is float
    assert type(fpsim.encode(np.float32(1), "fp16")) is np.uint16
    tensor = fpsim.encode(torch.ones(2, 3), "bf16")
    assert tensor.dtype == torch.uint16 and tensor.shape == (2, 3)
    assert torch.equal(fpsim.decode(tensor, "bf16"), torch.ones(2, 3))
    assert fpsim.decode(np.zeros((0, 3), np.int8), "e5m2").shape == (0, 3)
    assert fpsim.decode(np.array([0, 1], np.uint64), "e11m30").dtype == np.float64


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fpsim.encode(0.1, "fp16"), ValueError, "x = 0.1 is no value of fp16"),
        (lambda: fpsim.encode(np.array([[1.0, 2.0], [0.3, 1.0]]), "e5m2"), ValueError, r"x\[1, 0\] = 0.3"),
        (lambda: fpsim.encode(65536.0, "fp16"), ValueError, "no value"),
        (lambda: fpsim.encode(np.inf, "e4m3fn"), ValueError, "no value"),
        (lambda: fpsim.encode(np.nan, "float4_e2m1fn"), ValueError, "no code"),
        (lambda: fpsim.encode(0.0, "e8m0fnu"), ValueError, "no value"),
        (lambda: fpsim.encode(np.arange(3), "fp16"), TypeError, "float16, float32 or float64"),
        (lambda: fpsim.decode(256, "e5m2"), ValueError, "0 to 255"),
        (lambda: fpsim.decode(-1, "e5m2"), ValueError, "0 to 255"),
        (lambda: fpsim.decode(np.array([1.0]), "e5m2"), TypeError, "integers"),
        (lambda: fpsim.decode(True, "e5m2"), TypeError, "int"),
        (lambda: fpsim.decode("1", "e5m2"), TypeError, "str"),
        (lambda: fpsim.decode(2**70, "fp64"), TypeError, "64 bits"),
        (lambda: fpsim.next_up(0.1, "fp16"), ValueError, "no value"),
        (lambda: fpsim.ulp(np.ones(1, np.float16), "bf16"), ValueError, "cannot hold"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_the_single_zero_encodes_as_zero():
    assert fpsim.encode(-0.0, "e4m3fnuz") == 0
    assert fpsim.encode(-0.0, "fp16") == 0x8000


@pytest.mark.parametrize("fmt", [fmt for fmt in LISTED if fmt.has_zero], ids=str)
def test_neighbors_are_the_next_values(fmt):
    values = every_value(fmt)
    finite = np.unique(values[np.isfinite(values)])  # one zero
    top = np.inf if fmt.specials == "ieee" else fmt.max_finite if fmt.saturate else np.nan
    up, down = fpsim.next_up(finite, fmt), fpsim.next_down(finite, fmt)
    assert same(up[:-1] + 0.0, finite[1:] + 0.0) and same(up[-1], top)
    assert same(down[1:] + 0.0, finite[:-1] + 0.0) and same(down[0], -top)
    zero = 0.0 if fmt.specials == "fnuz" else -0.0
    assert same(fpsim.next_up(-fmt.min_subnormal, fmt), zero)
    assert same(fpsim.next_up(-0.0, fmt), fmt.min_subnormal) and same(fpsim.next_down(0.0, fmt), -fmt.min_subnormal)
    assert np.isnan(fpsim.next_up(np.nan, fmt))
    if fmt.has_infinity:
        assert fpsim.next_up(np.inf, fmt) == np.inf and fpsim.next_up(-np.inf, fmt) == -fmt.max_finite


@given(st.floats(width=32, allow_nan=False))
def test_neighbors_in_fp32_are_those_of_numpy(x):
    with np.errstate(all="ignore"):
        assert same(fpsim.next_up(x, "fp32"), np.nextafter(np.float32(x), np.float32(np.inf)))
        assert same(fpsim.next_down(x, "fp32"), np.nextafter(np.float32(x), np.float32(-np.inf)))


def test_neighbors_of_the_scale_and_of_flushed_formats():
    assert fpsim.next_up(1.0, "e8m0fnu") == 2 and fpsim.next_down(1.0, "e8m0fnu") == 0.5
    assert np.isnan(fpsim.next_up(2.0**127, "e8m0fnu")) and fpsim.next_down(2.0**-127, "e8m0fnu") == 2.0**-127
    flushed = fpsim.get_format("fp16").replace(flush="after")
    assert fpsim.next_up(0.0, flushed) == 2.0**-14 and same(fpsim.next_down(2.0**-14, flushed), 0.0)


@pytest.mark.parametrize("fmt", [fmt for fmt in LISTED if fmt.has_zero], ids=str)
def test_ulp_is_the_distance_of_values(fmt):
    values = every_value(fmt)
    positive = np.unique(values[np.isfinite(values) & (values >= 0)])
    assert (fpsim.ulp(positive, fmt)[:-1] == np.diff(positive)).all()
    assert (fpsim.ulp(-positive, fmt) == fpsim.ulp(positive, fmt)).all()


def test_ulp_between_beyond_and_of_special_values():
    assert fpsim.ulp(0.1, "fp16") == 2.0**-14 and fpsim.ulp(1e6, "fp16") == 2.0**9
    assert fpsim.ulp(0.0, "fp16") == 2.0**-24 and fpsim.ulp(-np.inf, "fp16") == np.inf
    assert np.isnan(fpsim.ulp(np.nan, "fp16")) and fpsim.ulp(3.0, "e8m0fnu") == 2
    assert fpsim.ulp(np.float32([1, 2]), "bf16").dtype == np.float32
