"""What is called without its schema: torch has to see the same operations, and to give the same."""

import contextlib

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fpsim.emulation import TABLE
from fpsim.emulation.direct import direct
from tests.operators import indices, op_db

X, COUNTS, BITS = torch.arange(-9.0, 15.0).reshape(2, 3, 4), torch.arange(1, 7).reshape(2, 3), torch.tensor([True, False])
#: Beside what `made_up` finds, arguments of every form.
ARGUMENTS = {
    "as_strided": [(X, (2, 2), (1, 3)), (X, (2, 2), (1, 3), 1)],
    "detach": [(X,)],
    "diagonal": [(X,), (X, 1), (X, -1, 1, 0), (X, 0, 0, 2)],
    "expand": [(X, (5, 2, 3, 4))],
    "permute": [(X, (2, 0, 1))],
    "select.int": [(X, 0, 1), (X, -1, -2)],
    "slice.Tensor": [
        *((X,), (X, 0), (X, 1, 1), (X, 2, None, 3), (X, 2, 0, 2**63 - 1, 2), (X, 1, -2, -1), (X, 0, 5, 9), (X, 1, 2, 1)),
        *((X, -1, 1, 3), (X, -3, -1)),
    ],
    "squeeze": [(X.reshape(1, 24, 1),)],
    "squeeze.dim": [(X[:1], 0), (X[..., :1], -1)],
    "squeeze.dims": [(X.reshape(1, 1, 24), (0, 1)), (X[..., :1], [-1])],
    "t": [(X[0],)],
    "transpose.int": [(X, 0, 2), (X, -1, -2)],
    "unfold": [(X, 2, 2, 1)],
    "unsqueeze": [(X, 0), (X, -1)],
    "view": [(X, (6, 4)), (X, [-1])],
    "cat": [([X, X],), ([X, X], 1), ([X, -X], -1)],
    "stack": [([X, X],), ([X, X], 1), ([X, -X], -1)],
    "flip": [(X, (0, 2))],
    "index_select": [(X, 1, torch.tensor([2, 0])), (X, -1, torch.tensor([1]))],
    "tril": [(X,), (X, -1)],
    "triu": [(X,), (X, 1)],
    "split.sizes": [(X, [1, 1])],
    "split": [(X, [1, 1])],
    "split_with_sizes": [(X, [1, 2], 1)],
    "unsafe_split_with_sizes": [(X, [1, 1])],
    "view_copy.dtype": [(X, torch.int32)],
    "_unsafe_index.Tensor_hacked_twin": [(X, [torch.tensor([1])])],
    "_pack_padded_sequence": [(X, torch.tensor([3, 2]), True)],
    "repeat_interleave.self_Tensor": [(X, torch.tensor([2, 1]), 0)],
    "clamp": [(X, -1, 1), (X, None, 2.5)],
    "view_as_real": [(torch.complex(X, X),)],
    "index_fill.int_Tensor": [(X, 1, torch.tensor([1]), torch.tensor(2.0))],
    "reflection_pad3d": [(X[None], (1, 1, 1, 0, 1, 1))],
    "replication_pad3d": [(X[None], (1, 1, 1, 0, 1, 1))],
    "where.default": [(BITS,)],
    "_is_any_true": [(BITS,)],
    "_is_all_true": [(BITS,)],
    "_int_mm": [(torch.ones(20, 8, dtype=torch.int8), torch.ones(8, 8, dtype=torch.int8))],
    "eq.Tensor_list": [([X], [X])],
    "ne.Tensor_list": [([X], [X])],
    "fill.Tensor": [(X, torch.tensor(2.0))],
    "is_nonzero": [(X[0, 0, :1],)],
    "bucketize.Scalar": [(1, X[0, 0])],
    "searchsorted.Scalar": [(X[0, 0], 1)],
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": [
        (X, torch.tensor([0.5]), torch.tensor([1], dtype=torch.int32), torch.tensor([1]), 0, 15)
    ],
    "_fake_quantize_learnable_per_channel_affine": [(X, torch.ones(3), torch.zeros(3), 1, 0, 15)],
}
FAMILIES = ("view", "exact", "comparison", "constant", "elementwise", "elementary", "formula")


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


class Compared(TorchDispatchMode):
    """Every operation by its function too."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and direct(func) is not func:
            self.seen.add(func)
            compare(func, args, kwargs)
        return func(*args, **kwargs)


def name_of(op):
    return op._schema.name.removeprefix("aten::") + ("." + op._overloadname if op._overloadname != "default" else "")


def called(function, args, kwargs):
    """The operations that a function calls, and what it gives, errors too."""
    torch.default_generator.manual_seed(0)
    with Recorded() as recorded:
        try:
            return recorded.operations, function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - torch's own, of whatever kind
            return recorded.operations, type(error)


def compare(op, args, kwargs):
    (found, mine), (wanted, theirs) = (called(function, args, kwargs) for function in (direct(op), op))
    if isinstance(theirs, type) and theirs is not NotImplementedError:  # which argument is refused, torch finds out elsewhere
        assert isinstance(mine, type), op
        return
    whole = [torch.ops.aten.alias.default] if op is torch.ops.aten.slice.Tensor else wanted  # a slice of everything
    assert found in (wanted, whole), op
    written = not any(name in op._schema.name for name in ("empty", "_ctc_loss", "lstsq"))  # in whole, not in part
    for result, expected in zip(tree_leaves(mine), tree_leaves(theirs), strict=True):
        assert type(result) is type(expected), op
        if isinstance(result, torch.Tensor):
            assert (result.dtype, result.layout, result.shape) == (expected.dtype, expected.layout, expected.shape), op
        if isinstance(result, torch.Tensor) and result.layout is torch.strided:
            assert (result.stride(), result.storage_offset()) == (expected.stride(), expected.storage_offset()), op
            pointers = {item.data_ptr() for item in tree_leaves((args, kwargs)) if isinstance(item, torch.Tensor)}
            assert (result.data_ptr() in pointers) == (expected.data_ptr() in pointers), op
            if written:
                np.testing.assert_array_equal(result.numpy(force=True), expected.numpy(force=True), str(op))


def made_up(op):
    """Some arguments that the operation takes, by their types: the required ones alone."""
    for tensor in (X, COUNTS, X[0, 0], BITS):
        values = {
            "Tensor": tensor, "number": 2, "int": 1, "bool": True, "float": 0.5, "Optional[str]": "floor",
            "List[int]": [0], "List[Tensor]": [tensor], "Device": "cpu",
        }  # fmt: skip
        needed = [argument for argument in op._schema.arguments if not argument.has_default_value()]
        args = tuple(values.get(str(argument.type)) for argument in needed if not argument.kwarg_only)
        kwargs = {argument.name: values.get(str(argument.type)) for argument in needed if argument.kwarg_only}
        with contextlib.suppress(Exception):
            op(*args, **kwargs)
            return args, kwargs
    return None


def test_a_function_is_its_operation():
    seen = set()
    for dtype in (torch.float32, torch.int64):
        for index in indices(dtype):
            for sample in list(op_db[index].sample_inputs("cpu", dtype))[::4]:
                with torch.no_grad(), Compared(seen):
                    op_db[index](sample.input, *sample.args, **sample.kwargs)
    by_function = {op for op, entry in TABLE.items() if entry.family in FAMILIES and direct(op) is not op}
    for op in by_function:
        for args in ARGUMENTS.get(name_of(op), ()):
            for given in (args, tuple(torch.nn.Parameter(x) if x is X else x for x in args)):
                with torch.no_grad():
                    compare(op, given, {})
                seen.add(op)
        call = made_up(op) if op not in seen else None
        if call is not None:
            compare(op, *call)
            seen.add(op)
    assert len(by_function) > 400
    assert sorted(name_of(op) for op in by_function - seen) == []


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_is_listed_is_called_directly(name):
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")
    assert direct(op) is not op
