"""Torch's operator database with Python numbers that are no values of the dtype, against torch under fmt="native".

Every call agrees bit for bit or is listed in `number_exceptions`, with its reason; what is listed and agrees fails too. The
plain run takes the operations that torch computes in the tensor's dtype, those that only fill, and arithmetic.
"""

import pytest
import torch

from fpsim.emulation.schemas import names

pytest.importorskip("expecttest", reason="torch's operator database needs the package expecttest")

from tests.number_calls import NUMBERS, database_calls, differs, operation_calls, rounds_first  # isort: skip
from tests.number_exceptions import EXCEPTIONS, ROUNDED  # isort: skip
from tests.operators import indices, op_db  # isort: skip

pytestmark = pytest.mark.filterwarnings("ignore")

#: What the plain run takes.
QUICK = names(
    """
    eq lt ge fmod remainder pow __rpow__ searchsorted isin nn.functional.hardshrink nn.functional.softshrink
    nn.functional.threshold nn.functional.hardtanh clamp where masked_fill index_fill index_put constant_pad_nd full full_like
    new_full fill maximum lerp addcmul nn.functional.leaky_relu nn.functional.elu nan_to_num add sub mul ldexp nextafter
    heaviside addbmm linspace nn.functional.huber_loss nn.functional.layer_norm
    """
)

#: Whether torch's kernels here are those with which the exceptions were measured: others leave other elements to the tail of
#: their vectors and add in other orders, so that the places are the same, but not which dtypes and numbers show it.
MEASURED = torch.backends.cpu.get_cpu_capability() == "AVX512"

#: Samples of each operation, at most.
SAMPLES, SAMPLES_BELOW = 6, 12


def cases():
    for dtype in NUMBERS:
        for index in indices(dtype):
            op = op_db[index]
            marks = () if op.name in QUICK else (pytest.mark.exhaustive,)
            yield pytest.param(index, dtype, id=f"{op.formatted_name}-{dtype}".replace("torch.", ""), marks=marks)


def found_among(calls):
    """The keys of the calls that differ from torch; where the reason is that torch rounds the number first, it must."""
    found = set()
    for call in calls:
        if differs(call):
            found.add(call.key)
            if MEASURED and EXCEPTIONS.get(call.key) is ROUNDED:
                assert rounds_first(call), (call, call.by_torch(), call.by_fpsim())
    return found


def check(found, dtype, chosen):
    """What differs is what is listed; on a processor that was not measured, in the same places of the same operations."""
    if MEASURED:
        assert found == {key for key in EXCEPTIONS if key.dtype is dtype and chosen(key.name)}
    else:
        assert {key[:2] for key in found} <= {key[:2] for key in EXCEPTIONS if chosen(key.name)}


@pytest.mark.parametrize(("index", "dtype"), list(cases()))
def test_numbers_mean_what_they_mean_to_torch(index, dtype):
    found = found_among(database_calls(index, dtype, SAMPLES))
    check(found, dtype, lambda name: name == op_db[index].formatted_name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", list(NUMBERS), ids=str)
def test_numbers_of_what_is_called(dtype):
    """The operations that those of the database call, forward and backward, each number by itself."""
    found = set()
    for index in indices(dtype):
        found |= found_among(operation_calls(index, dtype, SAMPLES_BELOW))
    check(found, dtype, lambda name: "." in name)


def test_the_exceptions_are_of_operations_that_are_tried():
    known = {op_db[index].formatted_name for dtype in NUMBERS for index in indices(dtype)}
    for key in EXCEPTIONS:
        packet, _, overload = key.name.removeprefix("aten.").partition(".")
        assert key.name in known if not overload else hasattr(getattr(torch.ops.aten, packet), overload)
