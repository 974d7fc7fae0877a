"""Signaling NaNs: no public function warns of them or traps, whatever the dtype, and every result's NaN is quiet."""

import inspect
import warnings

import numpy as np
import pytest
import torch

import fpsim
from fpsim.arrays import elementary
from fpsim.numbers import arguments

HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)
SINGLE = np.array([0x7F800001, 0xFF812345, 0x7FC00000, 0x3F800000, 0xC0400000, 0x00000000] * 40, np.uint32).view(np.float32)
DOUBLE = np.array([0x7FF0000000000001, 0xFFF0000012345678, 0x7FF8000000000000, 0x3FF0000000000000] * 40, np.uint64).view(
    np.float64
)
KINDS = {
    "float16": (HALF, "fp16"),
    "float32": (SINGLE, "bf16"),
    "float32 in fp32": (SINGLE, "fp32"),
    "float64": (DOUBLE, "fp16"),
    "float16 tensor": (torch.from_numpy(HALF.view(np.int16)).view(torch.float16), "fp16"),
    "bfloat16 tensor": (torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16), "bf16"),
}


def table(x, start=0, size=192):
    """The first elements as a matrix of 8 rows."""
    return x[start : start + size // 8 * 8].reshape(8, -1)


def image(x):
    return table(x, size=160)[:, :16].reshape(1, 2, 8, 8)


ONE = {name: getattr(fpsim, name) for name in ("next_down", "next_up", "sqrt", "ulp", "encode")} | {
    name: getattr(fpsim, name) for name in elementary.NAMES
}
TWO = {name: getattr(fpsim, name) for name in ("add", "div", "mul", "sub")}
ACCUMULATORS = ("fp32", "{}", "{}:fma", "{}:kahan", "exact", "fp32:pairwise", "native", "{}:pairwise:exact-products")
CALLS = (
    {name: lambda x, fmt, f=f: f(x, fmt) for name, f in ONE.items()}
    | {name: lambda x, fmt, f=f: f(x, x, fmt) for name, f in TWO.items()}
    | {f"{name} down": lambda x, fmt, f=f: f(x, x, fmt, "down") for name, f in TWO.items()}
    | {f"round {mode}": lambda x, fmt, mode=mode: fpsim.round(x, fmt, mode) for mode in ("nearest-even", "up", "odd")}
    | {
        "round stochastic": lambda x, fmt: fpsim.round(x, fmt, "stochastic", seed=1),
        "round to a scale": lambda x, fmt: fpsim.round(x, "e8m0fnu"),
        "round to e4m3fn": lambda x, fmt: fpsim.round(x, "e4m3fn"),
        "fma": lambda x, fmt: fpsim.fma(x, x, x, fmt),
        "conv": lambda x, fmt: fpsim.conv(image(x), image(x)[:, :, :3, :3], fmt=fmt),
        "conv_input_gradient": lambda x, fmt: fpsim.conv_input_gradient(
            image(x)[:, :1, :6, :6], image(x)[:, :, :3, :3], (1, 2, 8, 8), fmt=fmt
        ),
        "conv_weight_gradient": lambda x, fmt: fpsim.conv_weight_gradient(
            image(x)[:, :1, :6, :6], image(x), (1, 2, 3, 3), fmt=fmt
        ),
        "dot": lambda x, fmt: fpsim.dot(x[:200], x[:200], fmt=fmt),
        "error bound": lambda x, fmt: fpsim.matmul(table(x), table(x).T, fmt=fmt, error_bound=True)[0],
        "counters": lambda x, fmt: fpsim.matmul(table(x), table(x).T, fmt=fmt, counters=fpsim.Counters()),
        "stochastic products": lambda x, fmt: fpsim.matmul(
            table(x), table(x).T, fmt=fmt, accumulate=f"{fmt}", rounding="stochastic", seed=1
        ),
    }
    | {
        f"matmul {name}": lambda x, fmt, name=name: fpsim.matmul(table(x), table(x).T, fmt=fmt, accumulate=name.format(fmt))
        for name in ACCUMULATORS
    }
    | {
        f"sum {name}": lambda x, fmt, name=name: fpsim.sum(table(x), axis=1, fmt=fmt, accumulate=name.format(fmt))
        for name in ACCUMULATORS
        if ":fma" not in name and "exact-products" not in name
    }
    | {
        f"{name} {accumulate}": lambda x, fmt, name=name, accumulate=accumulate: getattr(fpsim, name)(
            table(x), axis=1, fmt=fmt, accumulate=accumulate.format(fmt)
        )
        for name in ("mean", "cumsum")
        for accumulate in ("fp32", "{}")
    }
)
UNITS = {
    unit: lambda x, fmt, unit=unit: fpsim.matmul(table(x), table(x).T, fmt=fmt, accumulate=unit)
    for unit in ("h100", "a100", "avx512_bf16", "mi300")
}


def is_signaling(x):
    bits = x.view({2: np.uint16, 4: np.uint32, 8: np.uint64}[x.itemsize])
    quiet = {2: 0x0200, 4: 0x00400000, 8: 0x0008000000000000}[x.itemsize]
    return np.isnan(x) & ((bits & quiet) == 0)


def takes_an_array(function):
    return inspect.isfunction(function) and next(iter(inspect.signature(function).parameters), "") in ("x", "a")


def test_every_function_of_arrays_is_here():
    """Those that take x or a of a format's values."""
    taken = {name for name in fpsim.__all__ if takes_an_array(getattr(fpsim, name))}
    assert taken <= {call.split()[0] for call in CALLS}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("call", [*CALLS, *UNITS])
def test_signaling_nans_are_no_event(kind, call):
    x, fmt = KINDS[kind]
    if call in UNITS and (fmt == "fp32" or (call == "avx512_bf16") != (fmt == "bf16")):
        pytest.skip("not an operand of the unit")
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* is unconfirmed")
        try:
            result = (CALLS | UNITS)[call](x, fmt)
        except ValueError as error:
            pytest.skip(str(error))
    values = result.float().numpy() if isinstance(result, torch.Tensor) and result.is_floating_point() else np.asarray(result)
    if values.dtype.kind == "f":
        assert not is_signaling(values).any()


def test_a_carrier_of_half_holds_quiet_nans():
    """No float instruction touches a float16, so that none can trap: widened by its bits."""
    carrier, _ = arguments.as_carrier(HALF, fpsim.get_format("fp16"), "x")
    assert not is_signaling(carrier).any() and np.array_equal(carrier, HALF.astype(np.float32), equal_nan=True)
