"""Sweeps of fma: triples of fp16 built to hit ties, double rounding, cancellation, subnormals and overflow."""

import numpy as np

import fpsim
from fpsim.numbers.rounding import Rounding
from tests import generators, integer_oracle, oracles
from tests.exhaustive.sweep import Result, sweep, total
from tests.strategies import DETERMINISTIC

SECTION = "Fused multiply-add"
PER_TASK = 2_000_000
BLOCK = 250_000


def fused(count, seed):
    fp16 = fpsim.get_format("fp16")
    found = Result(0, 0)
    for part in range(count // BLOCK):
        operands = generators.operands("fma", fp16, BLOCK, 1000 * seed + part, np.float32)
        for mode, want in zip(DETERMINISTIC, integer_oracle.results_in(DETERMINISTIC, "fma", operands, fp16), strict=True):
            found += Result(BLOCK, integer_oracle.differing(fpsim.fma(*operands, fp16, mode), want))
    return found


@sweep(SECTION, "10^8 hard triples of fp16 in each deterministic mode", "64-bit integers")
def hard_triples():
    return total(fused, ((PER_TASK, seed) for seed in range(50)))


def rationals(mode, count, seed):
    """The integer oracle itself, on the same kinds of triples."""
    fp16 = fpsim.get_format("fp16")
    operands = generators.operands("fma", fp16, count, seed, np.float32)
    rows = zip(*(x.tolist() for x in operands), strict=True)
    want = np.array([oracles.operate("fma", row, fp16, Rounding(mode)) for row in rows], np.float32)
    return Result(count, integer_oracle.differing(integer_oracle.results("fma", operands, fp16, Rounding(mode)), want))


@sweep("Oracles", "the integer oracle's fma, 10^6 hard triples of fp16", "exact rationals")
def oracle_of_fma():
    modes = [mode.value for mode in DETERMINISTIC]
    return total(rationals, [(modes[seed % len(modes)], 12_500, 7 + seed) for seed in range(80)])
