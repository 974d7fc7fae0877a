"""Recorded calls as no honest recorder writes them: one thing in the arguments of a call changed, the rest as it was."""

import copy

import numpy as np

from fpsim.recorder.bundle import SIZES

INTEGERS = (-1, 0, 1, 2, 40_000, 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 2**64)
INDICES = (-1, -(2**31), 2**20, 2**31 - 1, 2**40, 2**62, -(2**62))
NUMBERS = (float("nan"), float("inf"), 1e30, -1.0)
_FLOATS = {"float16": np.float16, "float32": np.float32, "float64": np.float64}


def changed_calls(bundle, record):
    """(what was changed, the record) for every change; tensors that it needs are added to the bundle."""
    for part in ("args", "kwargs"):
        for path, value in _places(record[part], ()):
            for what, new in _replacements(bundle, value):
                other = copy.deepcopy(record)
                holder = other[part]
                for step in path[:-1]:
                    holder = holder[step]
                holder[path[-1]] = new
                yield f"{part}{list(path)}: {what}", other
    yield "the last argument is missing", {**record, "args": record["args"][:-1]}
    yield "an argument more", {**record, "args": [*record["args"], 3]}
    yield "a name more", {**record, "kwargs": {**record["kwargs"], "dim": 2**40}}


def _places(value, path):
    if path:
        yield path, value
    if isinstance(value, list):
        for index, item in enumerate(value[:4]):
            yield from _places(item, (*path, index))
    elif isinstance(value, dict) and not (path and value.keys() & {"tensor", "float", "dtype", "device", "layout"}):
        for key, item in value.items():
            yield from _places(item, (*path, key))


def _replacements(bundle, value):
    if isinstance(value, bool) or value is None or isinstance(value, str):
        for new in (None, 1, "other", [2**40]):
            yield repr(new), new
    elif isinstance(value, int):
        for new in INTEGERS:
            yield repr(new), new
        yield "None", None
        yield "a list", [value] * 3
    elif isinstance(value, list):
        yield "empty", []
        yield "shorter", value[:-1]
        yield "twice as long", value * 2
        yield "very long", value * 10_000
        yield "None", None
    elif isinstance(value, dict) and "tensor" in value:
        for what, number in _tensors(bundle, value["tensor"]):
            yield what, {"tensor": number}
        yield "a number", 2**40
        yield "None", None
        yield "a list", [value, value, value]
    elif isinstance(value, dict) and "float" in value:
        for number in NUMBERS:
            yield repr(number), {"float": number.hex()}
    elif isinstance(value, dict) and "dtype" in value:
        for name in ("float64", "int64", "float8_e5m2", "complex64", "quint8", "load"):
            yield name, {"dtype": name}
    elif isinstance(value, dict):
        yield "an unknown kind", {"object": "x"}


def _tensors(bundle, number):
    dtype, shape, _, bits = bundle.tensors[number]
    for other in ("int64", "int32", "uint8", "bool", "float64", "float16", "bfloat16", "float8_e5m2"):
        if other != dtype:
            yield f"as {other}", _add(bundle, other, shape, np.ones(bits.size, f"u{SIZES[other]}"))
    size = bits.size
    yield "empty", _add(bundle, dtype, (0,), bits[:0])
    yield "flat", _add(bundle, dtype, (size,), bits)
    yield "a number", _add(bundle, dtype, (), np.ones(1, bits.dtype))
    yield "one dimension more", _add(bundle, dtype, (1, *shape), bits)
    if shape:
        yield "without its last dimension", _add(bundle, dtype, shape[:-1], np.resize(bits, int(np.prod(shape[:-1]))))
        yield "dimensions turned", _add(bundle, dtype, shape[::-1], bits)
        for axis in (0, -1):
            for step in (-1, 1):
                other = list(shape)
                other[axis] += step
                if other[axis] >= 0:
                    yield f"axis {axis} by {step:+d}", _add(bundle, dtype, other, np.resize(bits, int(np.prod(other))))
    if size and dtype in ("int64", "int32"):
        for value in INDICES:
            if abs(value) < 2 ** (8 * bits.itemsize - 1):
                for place in (0, size - 1):
                    yield f"{value} at {place}", _add(bundle, dtype, shape, _with(bits.view(dtype), place, value))
    if size and dtype in _FLOATS:
        for value in NUMBERS:
            filled = np.full(size, value, np.float64)
            with np.errstate(over="ignore"):
                yield f"all {value}", _add(bundle, dtype, shape, filled.astype(_FLOATS[dtype]))


def _with(values, place, value):
    values = values.copy()
    values[place] = value
    return values


def _add(bundle, dtype, shape, values):
    bits = np.ascontiguousarray(values).reshape(-1)
    return bundle.add_tensor(dtype, tuple(shape), (), bits.view(f"u{bits.itemsize}"))
