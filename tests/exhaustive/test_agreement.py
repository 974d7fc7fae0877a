"""float16 operations against torch's: the same bits, an ulp apart, or nearer to the exact result, as the page counts them."""

import operator

import numpy as np
import pytest
import torch

import fpsim

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.exhaustive.agreement import LEVEL, PAGE, by_torch, measured  # isort: skip

#: Probabilities inside are rounded to float16 in torch as here, so that either may come out nearer.
STEPS = {"nn_functional_scaled_dot_product_attention"}
#: What torch takes here unless it is held.
OWN = torch.backends.cpu.get_cpu_capability()
PARTS = 2


@pytest.mark.parametrize("function", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_elementary_operations_are_torchs_bit_for_bit(function):
    patterns = np.random.default_rng(0).integers(0, 1 << 16, (2, 200_000), dtype=np.uint16).view(np.float16)
    a, b = map(torch.from_numpy, patterns)
    wide = a.float(), b.float()
    with fpsim.emulate("native"):
        native = function(a, b)
    with fpsim.emulate("fp16"):
        carried = function(*wide)
    expected = function(a, b).numpy()
    for actual in (native.numpy(), carried.half().numpy()):
        assert np.array_equal(actual, expected, equal_nan=True)
        number = ~np.isnan(expected)
        assert np.array_equal(np.signbit(actual)[number], np.signbit(expected)[number])


def agree_or_are_nearer(rows):
    assert len(rows) > 400 // PARTS
    assert [row for row in rows if row.worse and row.name not in STEPS] == []


@pytest.mark.exhaustive
@pytest.mark.skipif(OWN not in (LEVEL, "AVX512"), reason=f"{OWN} lacks {LEVEL}: the next test takes what there is")
@pytest.mark.parametrize("part", range(PARTS))
def test_operations_agree_or_are_nearer_as_the_page_says(part):
    rows, level = measured(part, PARTS)
    assert level == LEVEL
    agree_or_are_nearer(rows)
    text = PAGE.read_text()
    if by_torch() not in text:
        pytest.skip(f"agreement was seen, but rows were not compared: the page is not {by_torch()}")
    lines = text.splitlines()
    assert [row for row in rows if not ((str(row) in lines) if row.differ else (f"`{row.name}`" in text))] == []


@pytest.mark.exhaustive
@pytest.mark.skipif(OWN == LEVEL, reason=f"{OWN} is what the test before takes")
@pytest.mark.parametrize("part", range(PARTS))
def test_operations_agree_or_are_nearer_with_all_of_this_processors_instructions(part):
    agree_or_are_nearer(measured(part, PARTS, held=False)[0])
