"""Rounding against rationals, and its laws over every format and mode."""

import subprocess
from fractions import Fraction
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import fpsim
from fpsim.numbers.rounding import Rounding
from tests import integer_oracle, oracles, quick_python
from tests.strategies import (
    DETERMINISTIC,
    LISTED,
    NAMED,
    VARIANTS,
    defined,
    edges,
    every_value,
    fits_float32,
    floats64,
    formats,
    modes,
)

SIGNED = [fmt for fmt in NAMED if fmt.has_zero]
CASES = [(fmt, mode) for fmt in SIGNED + VARIANTS for mode in DETERMINISTIC if defined(fmt, mode)]


def same(got, want):
    """Equal values, signs of zero and NaN-ness, element by element."""
    return integer_oracle.mismatches(*(np.ravel(np.asarray(x, np.float64)) for x in (got, want))) == 0


def name(case):
    return "-".join(str(part) for part in case)


@settings(max_examples=800, deadline=None)
@given(floats64(), formats(), modes())
def test_any_float64_rounds_as_rationals_do(x, fmt, mode):
    if defined(fmt, mode):
        assert same(fpsim.round(x, fmt, mode), oracles.round_float(x, fmt, mode))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES, ids=name)
def test_values_midpoints_and_their_neighbors(case, dtype):
    fmt, mode = case
    if fmt.bits > 16 or (dtype is np.float32 and not fits_float32(fmt)):
        pytest.skip("listed elsewhere, or not held by float32")
    x = edges(fmt, dtype)
    if x.size > 20_000:
        x = np.concatenate([x[::37], x[-2000:], x[:2000]])
    want = integer_oracle.results("round", [x], fmt, mode)
    assert same(fpsim.round(x, fmt, mode), want)


@pytest.mark.parametrize("case", [(fmt, mode) for fmt, mode in CASES if fmt.bits > 16], ids=name)
def test_wide_formats_at_random(case):
    fmt, mode = case
    generator = np.random.default_rng(2)
    bits = generator.integers(0, 2**64, 50_000, dtype=np.uint64)
    x = bits.view(np.float64)
    near = np.ldexp(generator.random(50_000) - 0.5, generator.integers(fmt.emin - fmt.precision - 3, fmt.emin + 4, 50_000))
    x = np.concatenate([x, near, [0.0, -0.0, np.inf, -np.inf, np.nan, fmt.max_finite, fmt.max_finite * (1 - 2**-52)]])
    if fmt.precision == 53:
        want = x  # float64 itself: every mode leaves a value as it is
    else:
        want = integer_oracle.results("round", [x], fmt, mode)
    assert same(fpsim.round(x, fmt, mode), want)


@pytest.mark.parametrize("mode", [mode for mode in DETERMINISTIC if mode is not Rounding.ODD], ids=str)
def test_the_scale_without_a_zero(mode):
    fmt = fpsim.get_format("e8m0fnu")
    x = np.concatenate([np.ldexp(m, np.arange(-140, 128)) for m in (1.0, 1.25, 1.5, 1.75, 1.5 - 2**-40, 1.5 + 2**-40)])
    x = np.concatenate([x, -x, [0.0, -0.0, np.inf, -np.inf, np.nan]])
    want = np.array([oracles.round_float(float(value), fmt, mode) for value in x])
    assert same(fpsim.round(x, fmt, mode), want)
    with np.errstate(over="ignore", under="ignore"):
        narrow = x.astype(np.float32)
    want = np.array([oracles.round_float(float(value), fmt, mode) for value in narrow])
    assert same(fpsim.round(narrow, fmt, mode), want)


def test_the_scale_is_never_odd():
    with pytest.raises(ValueError, match="odd"):
        fpsim.round(1.5, "e8m0fnu", "odd")


def test_settled_edges():
    """The cases that the meaning of the modes leaves open, as they were settled."""
    assert fpsim.round(464.0, "e4m3fn") == 448
    assert np.isnan(fpsim.round(464.0, "e4m3fn", "nearest-away"))
    assert fpsim.round(1e30, "e4m3fn", "odd") == 448
    assert fpsim.round(1e30, "fp16", "odd") == 65504
    assert fpsim.round(1e-30, "fp16", "odd") == 2.0**-24
    assert same(fpsim.round(-0.0, "e4m3fnuz"), 0.0)
    assert same(fpsim.round(-1e-30, "e4m3fnuz"), 0.0)
    assert fpsim.round(np.inf, "float6_e3m2fn") == 28
    assert fpsim.round(3.0, "e8m0fnu") == 4
    assert np.isnan(fpsim.round(0.0, "e8m0fnu"))
    assert fpsim.round(1e-45, "e8m0fnu") == 2.0**-127


def test_flushing_is_judged_before_or_after():
    x = np.nextafter(2.0**-14, 0)  # rounds up to the smallest normal number
    assert fpsim.round(x, fpsim.get_format("fp16").replace(flush="after")) == 2.0**-14
    assert fpsim.round(x, fpsim.get_format("fp16").replace(flush="before")) == 0.0
    assert same(fpsim.round(-(2.0**-16), fpsim.get_format("fp16").replace(flush="after"), "down"), -0.0)


@pytest.mark.parametrize("case", [(f, m) for f, m in CASES if f in LISTED], ids=name)
def test_values_stay(case):
    """Rounding is idempotent, whatever the mode."""
    fmt, mode = case
    values = every_value(fmt)
    values = values[np.isfinite(values)]
    kept = fpsim.round(values, fmt, mode)
    assert same(fpsim.round(kept, fmt, mode), kept)
    if fmt.flush is None:
        assert same(kept, values)


@settings(max_examples=300, deadline=None)
@given(st.lists(floats64().filter(lambda x: x == x), min_size=2, max_size=20), formats(), modes())
def test_order_is_kept(numbers, fmt, mode):
    if not defined(fmt, mode):
        return
    rounded = fpsim.round(np.sort(np.array(numbers)), fmt, mode)
    rounded = rounded[~np.isnan(rounded)]
    assert (np.diff(rounded[np.isfinite(rounded)]) >= 0).all()


@settings(max_examples=300, deadline=None)
@given(floats64(), formats())
def test_modes_mirror_and_bracket_each_other(x, fmt):
    up, down = fpsim.round(x, fmt, "up"), fpsim.round(x, fmt, "down")
    assert same(up, -fpsim.round(-x, fmt, "down") + (0.0 if fmt.specials == "fnuz" else -0.0))
    if np.isfinite(x) and np.isfinite([up, down]).all() and not fmt.flush and abs(x) <= fmt.max_finite:
        assert down <= x <= up
        assert fpsim.round(x, fmt) in (down, up)
        assert abs(Fraction(fpsim.round(x, fmt)) - Fraction(x)) <= Fraction(fpsim.ulp(x, fmt)) / 2


def test_odd_then_fewer_bits_is_one_rounding():
    """What rounding to odd is for: a later rounding to at least two bits fewer is right (Boldo and Melquiond 2008)."""
    wide = fpsim.Format("wide", precision=13, emin=-16, emax=16)
    x = edges(fpsim.get_format("fp16"), np.float64)[::11]
    odd = fpsim.round(x, wide, "odd")
    for mode in DETERMINISTIC:
        assert same(fpsim.round(odd, "fp16", mode), fpsim.round(x, "fp16", mode)), mode


@pytest.mark.parametrize("fmt", [f for f in NAMED if f.bits <= 16 and f.name not in ("fp16", "float8_e8m0fnu")], ids=str)
def test_nearest_even_is_that_of_ml_dtypes(fmt):
    dtype = getattr(ml_dtypes, {"bf16": "bfloat16"}.get(fmt.name, fmt.name))
    x = np.random.default_rng(3).integers(0, 2**32, 300_000, dtype=np.uint32).view(np.float32)
    if not fmt.has_nan:
        x = x[~np.isnan(x)]
    with np.errstate(all="ignore"):
        want = x.astype(dtype).astype(np.float32)
    assert same(fpsim.round(x, fmt), want)


def test_float64_is_rounded_once():
    x = 1 + 2.0**-11 + 2.0**-40
    assert fpsim.round(x, "fp16") == 1 + 2.0**-10
    assert fpsim.round(torch.tensor(x, dtype=torch.float64), "fp16").item() == 1 + 2.0**-10


# Kinds of arguments


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_keep_their_type_and_shape(dtype):
    x = np.linspace(-3, 3, 24, dtype=dtype).reshape(2, 3, 4)
    for view in (x, x.T, x[:, ::2], x[::-1], x[:, :0], x[0, 0, 0]):
        y = fpsim.round(view, "e5m2")
        assert type(y) is type(view) and y.dtype == dtype and y.shape == view.shape
        assert same(y, view.astype(ml_dtypes.float8_e5m2).astype(dtype)) or dtype is np.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tensors_keep_their_type_and_shape(dtype):
    x = torch.linspace(-3, 3, 24).reshape(2, 3, 4).to(dtype)
    for view in (x, x.T if x.ndim == 2 else x.permute(2, 1, 0), x[:, ::2], x[:, :0], x[0, 0, 0]):
        y = fpsim.round(view, "e5m2")
        assert y.dtype == dtype and y.shape == view.shape
        assert torch.equal(y.float(), view.to(torch.float8_e5m2).float())


def test_out_receives_the_result():
    x = np.linspace(0, 1, 50, dtype=np.float32)
    out = np.empty_like(x)
    assert fpsim.round(x, "e4m3fn", out=out) is out
    assert same(out, fpsim.round(x, "e4m3fn"))
    shifted = np.concatenate([x, x])
    fpsim.round(shifted[:-1], "e4m3fn", out=shifted[1:])  # overlapping memory
    assert same(shifted[1:51], fpsim.round(x, "e4m3fn"))


@pytest.mark.parametrize(
    ("x", "fmt", "error", "message"),
    [
        (np.arange(3), "fp16", TypeError, "float16, float32 or float64"),
        (1j, "fp16", TypeError, "real"),
        (np.zeros(2, np.complex64), "fp16", TypeError, "complex64"),
        (True, "fp16", TypeError, "real"),
        ("1", "fp16", TypeError, "number"),
        (np.zeros(2, np.float16), "bf16", ValueError, "cannot hold"),
        (torch.zeros(2, dtype=torch.bfloat16), "fp16", ValueError, "cannot hold"),
        (torch.zeros(2, dtype=torch.int32), "fp16", TypeError, "int32"),
        (torch.zeros(2, device="meta"), "fp16", TypeError, "CPU"),
        (0.5, "fp17", ValueError, "known are fp16"),
    ],
)
def test_bad_arguments(x, fmt, error, message):
    with pytest.raises(error, match=message):
        fpsim.round(x, fmt)


def test_bad_modes_and_seeds():
    with pytest.raises(ValueError, match="known are nearest-even"):
        fpsim.round(0.5, "fp16", "nearest")
    with pytest.raises(ValueError, match="needs seed"):
        fpsim.round(0.5, "fp16", "stochastic")
    with pytest.raises(ValueError, match="no use"):
        fpsim.round(0.5, "fp16", seed=1)


FLUSHING = """
import numpy as np, torch, fpsim
assert torch.set_flush_denormal(True)
one, refused = np.ones(3, np.float32), 0
calls = [
    lambda: fpsim.round(one, "fp16"), lambda: fpsim.add(one, one, "fp16"), lambda: fpsim.mul(one, one, "fp16"),
    lambda: fpsim.div(one, one, "fp16"), lambda: fpsim.sqrt(one, "fp16"), lambda: fpsim.fma(one, one, one, "fp16"),
    lambda: fpsim.encode(one, "fp16"), lambda: fpsim.decode(one.view(np.int32) >> 20, "fp16"),
    lambda: fpsim.ulp(one, "fp16"), lambda: fpsim.next_up(one, "fp16"), lambda: fpsim.next_down(one, "fp16"),
    lambda: fpsim.arrays.elementary.exp(one, "fp16"),
]
import fpsim.arrays.elementary
for call in calls:
    try:
        call()
    except ValueError as error:
        assert "flush" in str(error), error
        refused += 1
torch.set_flush_denormal(False)
for call in calls:
    call()
print(refused == len(calls))
"""


def test_a_process_that_flushes_subnormals_is_refused():
    done = subprocess.run(
        [quick_python.executable(), "-c", FLUSHING], capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False
    )
    assert done.stdout.strip() == "True", done.stderr
