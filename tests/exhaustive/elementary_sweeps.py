"""Sweeps of elementary functions: every input, the correct rounding, and the distance that makes it portable."""

import numpy as np

import fpsim
from fpsim.arrays import elementary
from tests import integer_oracle
from tests.elementary_reference import REFERENCE, pairs, quick_pairs, round_pairs
from tests.exhaustive.sweep import Result, sweep, total
from tests.strategies import NAMED, every_value

SECTION = "Elementary functions"
#: What float64's own errors must stay below; a distance of zero is an exact result, which has to be exact in float64.
LEAST = 2.0**-30


def all_inputs(fmt, name, start, stop, reference=pairs):
    values = every_value(fmt)[start:stop]
    high, low = reference(name, values)
    found = Result(0, 0)
    for mode in ("nearest-even", "nearest-away"):
        want, distance = round_pairs(high, low, fmt, away=mode == "nearest-away")
        got = getattr(elementary, name)(values, fmt, mode)
        near = distance[distance > 0]
        nearest = float(near.min()) if near.size else np.inf
        close = int(((distance > 0) & (distance < LEAST)).sum())
        found += Result(values.size, integer_oracle.differing(got, want) + close, nearest)
    return found


def _sweep_formats(formats, name):
    size, step = max(every_value(fmt).size for fmt in formats), 8192
    return total(all_inputs, [(fmt, name, start, start + step) for fmt in formats for start in range(0, size, step)])


SIXTEEN_BITS = [fpsim.get_format("fp16"), fpsim.get_format("bf16")]
FEWER_BITS = [fmt for fmt in NAMED if fmt.bits <= 8 and fmt.has_zero]

for _name in REFERENCE:
    sweep(SECTION, f"{_name} of all values of fp16 and bf16, to nearest (both modes)", "Arb, 120 bits")(
        lambda name=_name: _sweep_formats(SIXTEEN_BITS, name)
    )


@sweep(SECTION, "every function of all values of tf32, to nearest (both modes)", "long double; erf, erfc: Arb")
def all_of_tf32():
    tf32, step = fpsim.get_format("tf32"), 2**16
    starts = range(0, every_value(tf32).size, step)
    return total(all_inputs, [(tf32, name, start, start + step, quick_pairs) for name in REFERENCE for start in starts])


def narrow(fmt):
    return sum((all_inputs(fmt, name, 0, None) for name in REFERENCE), Result(0, 0))


@sweep(SECTION, "every function of all values of the 8-, 6- and 4-bit formats, to nearest (both modes)", "Arb, 120 bits")
def narrow_formats():
    return total(narrow, ((fmt,) for fmt in FEWER_BITS))
