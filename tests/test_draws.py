"""Draws of stochastic rounding: uniform and uncorrelated over steps, over elements and over seeds, in high and low bits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fpsim.backend.numba.compiler import kernel
from fpsim.backend.numba.random import element_hash, step_draw
from fpsim.numbers.rounding import draw_key

LEAVES = 2**31  # leaf k draws as step 2^31 + k
ONE_IN = 1e-6  # how unlikely a result must be to fail; the draws are fixed, so that a test that passes always does


@kernel
def draw_table(keys, elements, steps, out):
    for i in range(keys.size):
        for j in range(elements.size):
            bits = element_hash(keys[i], elements[j])
            for k in range(steps.size):
                out[i, j, k] = step_draw(bits, steps[k])


def table(seeds: int, elements: int, steps: np.ndarray) -> np.ndarray:
    keys = np.array([draw_key(seed) for seed in range(seeds)], dtype=np.uint64)
    out = np.empty((seeds, elements, steps.size), np.uint32)
    draw_table(keys, np.arange(elements), steps.astype(np.uint32), out)
    return out


def sequences() -> dict[str, np.ndarray]:
    """Draws as (sequences, draws of one): neighbors along a row differ in the step, the element or the seed alone."""
    nodes, leaves = np.arange(4096), LEAVES + np.arange(4096)
    return {
        "steps": table(4, 64, nodes).reshape(-1, 4096),
        "leaves": table(4, 64, leaves).reshape(-1, 4096),
        "leaf and node": table(4, 64, np.stack([leaves, nodes], axis=1).reshape(-1)).reshape(-1, 8192),
        "elements": np.moveaxis(table(4, 4096, nodes[:64]), 1, 2).reshape(-1, 4096),
        "elements of a column": np.moveaxis(table(1, 2**18, nodes[:8])[:, ::512], 1, 2).reshape(-1, 512),
        "seeds": np.moveaxis(table(1024, 16, nodes[:16]), 0, 2).reshape(-1, 1024),
    }


SEQUENCES = sequences()
WINDOWS = {"high": 24, "middle": 12, "low": 0}  # the shift that leaves 8 bits


def p_value(counts: np.ndarray) -> float:
    return float(stats.chisquare(counts.reshape(-1)).pvalue)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_bytes_are_uniform(name: str, window: str) -> None:
    values = SEQUENCES[name] >> np.uint32(WINDOWS[window]) & 255
    assert ONE_IN < p_value(np.bincount(values.reshape(-1), minlength=256)) < 1 - ONE_IN


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("name", SEQUENCES)
def test_pairs_are_uniform(name: str, window: str, lag: int) -> None:
    """The top 5 bits of each window, of draws `lag` apart: 1024 pairs equally likely."""
    values = SEQUENCES[name] >> np.uint32(WINDOWS[window] + 3) & 31
    pairs = values[:, :-lag] * np.uint32(32) + values[:, lag:]
    assert ONE_IN < p_value(np.bincount(pairs.reshape(-1), minlength=1024)) < 1 - ONE_IN


@pytest.mark.parametrize("lag", [1, 2, 3, 8, 64])
@pytest.mark.parametrize("name", SEQUENCES)
def test_serial_correlation_vanishes(name: str, lag: int) -> None:
    """The mean product of centered draws `lag` apart, over everything and within each sequence."""
    centered = (SEQUENCES[name] + 0.5) / 2**32 - 0.5
    products = centered[:, :-lag] * centered[:, lag:] * 12  # mean 0, variance 1 for independent uniform draws
    assert abs(products.mean()) * np.sqrt(products.size) < 4.9
    each = products.mean(axis=1) * np.sqrt(products.shape[1])
    assert np.abs(each).max() < stats.norm.isf(ONE_IN / each.size) + 0.3
    assert abs(each.var() - 1) < 6 * np.sqrt(2 / each.size) + 0.02


@pytest.mark.parametrize("shift", [0, 5, 13, 21, 27, 31])
def test_single_bits_are_fair_and_independent(shift: int) -> None:
    for name, draws in SEQUENCES.items():
        bits = (draws >> np.uint32(shift) & 1).astype(np.int64)
        count = bits.size
        assert abs(bits.sum() - count / 2) < 5 * np.sqrt(count) / 2, name
        changes = bits[:, 1:] ^ bits[:, :-1]
        assert abs(changes.sum() - changes.size / 2) < 5 * np.sqrt(changes.size) / 2, name


def test_sums_of_many_elements_stay_binomial() -> None:
    """How many of 64 elements round up with probability 1/4 at one step: what an average of a batch sees."""
    draws = table(1, 64 * 256, np.arange(256))[0].reshape(256, 64, 256)
    ups = (draws < 2**30).sum(axis=1).reshape(-1)
    counts = np.bincount(ups, minlength=65)[6:28]
    expected = stats.binom.pmf(np.arange(6, 28), 64, 0.25)
    assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > ONE_IN
