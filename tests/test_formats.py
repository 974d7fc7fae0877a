"""Formats are data: the named ones against ml_dtypes, torch and NumPy, and what a format may not be."""

import ml_dtypes
import numpy as np
import pytest
import torch

import fpsim
from fpsim.numbers.formats import Format
from tests.strategies import NAMED

WITH_FINFO = [fmt for fmt in NAMED if fmt.name not in ("fp16", "fp32", "fp64", "tf32")]


@pytest.mark.parametrize("fmt", WITH_FINFO, ids=str)
def test_derived_numbers_are_those_of_ml_dtypes(fmt):
    info = ml_dtypes.finfo(getattr(ml_dtypes, {"bf16": "bfloat16"}.get(fmt.name, fmt.name)))
    assert fmt.bits == info.bits and fmt.precision == info.nmant + 1
    assert fmt.max_finite == float(info.max)
    assert fmt.min_normal == float(info.smallest_normal)
    assert fmt.min_subnormal == float(info.smallest_subnormal)
    assert 2 * fmt.unit_roundoff == float(info.eps) or fmt.name == "float8_e8m0fnu"


@pytest.mark.parametrize(("name", "dtype"), [("fp16", np.float16), ("fp32", np.float32), ("fp64", np.float64)])
def test_derived_numbers_are_those_of_numpy(name, dtype):
    fmt, info = fpsim.get_format(name), np.finfo(dtype)
    assert (fmt.bits, fmt.precision, fmt.max_finite) == (info.bits, info.nmant + 1, float(info.max))
    assert (fmt.min_normal, fmt.min_subnormal) == (float(info.smallest_normal), float(info.smallest_subnormal))


def test_tf32_has_19_bits():
    fmt = fpsim.get_format("tf32")
    assert (fmt.bits, fmt.precision, fmt.emin, fmt.emax) == (19, 11, -126, 127)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("half", "fp16"),
        ("FP16 ", "fp16"),
        ("e5m10", "fp16"),
        ("bfloat16", "bf16"),
        ("e4m3fn", "float8_e4m3fn"),
        ("fp8_e4m3", "float8_e4m3"),
        ("fp6_e3m2fn", "float6_e3m2fn"),
        ("e2m1fn", "float4_e2m1fn"),
        ("e8m0fnu", "float8_e8m0fnu"),
        (torch.float16, "fp16"),
        (torch.bfloat16, "bf16"),
        (torch.float8_e4m3fnuz, "float8_e4m3fnuz"),
        (np.float32, "fp32"),
        (np.dtype(np.float64), "fp64"),
        (ml_dtypes.float8_e3m4, "float8_e3m4"),
        (np.dtype(ml_dtypes.bfloat16), "bf16"),
    ],
)
def test_names_and_dtypes(given, name):
    assert fpsim.get_format(given) is fpsim.FORMATS[name]


def test_parametric_names():
    fmt = fpsim.get_format("e8m9")
    assert (fmt.precision, fmt.emin, fmt.emax, fmt.specials, fmt.bits) == (10, -126, 127, "ieee", 18)


@pytest.mark.parametrize("unknown", ["fp17", "", "e12m3", "e1m3", "e5m53", "e5"])
def test_unknown_names_say_what_there_is(unknown):
    with pytest.raises(ValueError, match=r"unknown format .*(fp16, bf16, fp32|2 to 11 exponent bits)"):
        fpsim.get_format(unknown)


@pytest.mark.parametrize("unknown", [np.int32, torch.int8, torch.complex64, np.dtype(bool)])
def test_other_dtypes_are_refused(unknown):
    with pytest.raises(ValueError, match="not a binary floating-point format"):
        fpsim.get_format(unknown)


@pytest.mark.parametrize("other", [16, None, object])
def test_other_objects_are_refused(other):
    with pytest.raises((TypeError, ValueError)):
        fpsim.get_format(other)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"precision": 0}, ValueError),
        ({"precision": 54}, ValueError),
        ({"precision": 11.0}, TypeError),
        ({"emin": 16}, ValueError),
        ({"emax": 1024}, ValueError),
        ({"emin": -1023}, ValueError),
        ({"specials": "none"}, ValueError),
        ({"flush": "always"}, ValueError),
        ({"specials": "finite"}, ValueError),
        ({"specials": "fn", "precision": 1}, ValueError),
        ({"signed": False}, ValueError),
        ({"name": ""}, TypeError),
    ],
)
def test_what_a_format_may_not_be(changes, error):
    with pytest.raises(error, match="Format"):
        fpsim.get_format("fp16").replace(**changes)


def test_formats_are_values():
    fp16 = fpsim.get_format("fp16")
    copy = Format("fp16", precision=11, emin=-14, emax=15)
    assert copy == fp16 and hash(copy) == hash(fp16) and str(copy) == "fp16"
    assert fp16.replace(flush="after") != fp16
    with pytest.raises(AttributeError):
        fp16.precision = 10
