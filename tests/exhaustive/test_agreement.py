"""float16 operations against torch's: the same bits, an ulp apart, or nearer to the exact result, as the page counts them."""

import operator

import numpy as np
import pytest
import torch

import fpsim

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.exhaustive.agreement import PAGE, compared, op_db, row_of  # isort: skip

#: Probabilities inside are rounded to float16 in torch as here, so that either may come out nearer.
STEPS = {"nn.functional.scaled_dot_product_attention"}


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


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("index", compared(), ids=lambda index: op_db[index].formatted_name)
def test_operations_agree_or_are_nearer(index):
    row = row_of(index)
    if row is None:
        pytest.skip("no float16 results, or complex ones")
    assert row.worse == 0 or op_db[index].name in STEPS
    here = f"torch {torch.__version__.split('+')[0]} on a CPU with {torch.backends.cpu.get_cpu_capability()}\n"
    text = PAGE.read_text()
    if here in text:
        assert (str(row) in text.splitlines()) if row.differ else (f"`{row.name}`" in text)
