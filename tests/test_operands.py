"""The check that operands are values of their format, against ml_dtypes and NumPy."""

import ml_dtypes
import numpy as np
import pytest

import fpsim
from fpsim.numbers.formats import get_format
from fpsim.numbers.operands import _are_values

DTYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e8m0fnu": ml_dtypes.float8_e8m0fnu,
}


@pytest.mark.parametrize("carrier", [np.float32, np.float64])
@pytest.mark.parametrize("name", DTYPES)
def test_every_value_is_taken_and_every_neighbor_refused(name, carrier):
    fmt, dtype = get_format(name), DTYPES[name]
    bits = np.dtype(dtype).itemsize * 8
    with np.errstate(invalid="ignore"):  # signaling NaNs
        values = np.arange(2**bits, dtype=f"u{bits // 8}").view(dtype).astype(carrier)
    assert _are_values(values, fmt)
    members = set(values.tolist())
    finite = values[np.isfinite(values)]
    for towards in (np.inf, -np.inf):
        near = np.nextafter(finite, carrier(towards))
        for x in near[:: max(1, near.size // 300)]:
            assert _are_values(np.array([x]), fmt) == (float(x) in members), x


FLUSHING = get_format("fp16").replace(name="fp16, flushing", flush="after")


@pytest.mark.parametrize("fmt", ["fp16", "fp32", FLUSHING, "e8m0fnu"], ids=str)
def test_one_element_among_many_is_found_wherever_it_lies(fmt):
    x, fmt = np.ones((3, 5000)), get_format(fmt)
    for array in (x, x.T, x[:, ::3], x[::-1]):
        assert _are_values(array, fmt)
        for place in ((0, 0), (1, 1), (-1, -1)):
            array[place] = 1 + 2.0**-30
            assert not _are_values(array, fmt)
            array[place] = 1


def test_the_first_element_that_is_none_is_named():
    x = np.ones((4, 70), np.float32)
    x[2, 3] = x[3, 1] = 1 + 2.0**-12
    with pytest.raises(ValueError, match=r"a\[2, 3\] = 1.000244140625 is no value of fp16; round it first"):
        fpsim.matmul(x, x.T, fmt="fp16")
