"""What is called without its schema: torch has to see the same operation, and to give the same."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fpsim.emulation.rules.exact import DIRECT

ARGUMENTS = {
    "as_strided": [((2, 2), (1, 3)), ((2, 2), (1, 3), 1)],
    "detach": [()],
    "diagonal": [(), (1,), (-1, 1, 0), (0, 0, 2)],
    "expand": [((5, 2, 3, 4),)],
    "permute": [((2, 0, 1),)],
    "select.int": [(0, 1), (-1, -2)],
    "squeeze": [()],
    "squeeze.dim": [(0,), (-1,)],
    "squeeze.dims": [((0, 1),), ([-1],)],
    "t": [()],
    "transpose.int": [(0, 2), (-1, -2)],
    "unfold": [(2, 2, 1)],
    "unsqueeze": [(0,), (-1,)],
    "view": [((6, 4),), ([-1],)],
    "abs": [()],
    "clone": [()],
    "flip": [((0, 2),)],
    "index_select": [(1, torch.tensor([2, 0])), (-1, torch.tensor([1]))],
    "relu": [()],
    "tril": [(), (-1,)],
    "triu": [(), (1,)],
}
CASES = [(name, arguments) for name, several in ARGUMENTS.items() for arguments in several]


class Recorded(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


def name_of(op):
    return op._schema.name.removeprefix("aten::") + ("." + op._overloadname if op._overloadname != "default" else "")


def test_every_overload_has_arguments():
    assert {name_of(op) for op in DIRECT} == {*ARGUMENTS, "cat", "stack"}


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("is_parameter", [False, True])
def test_a_function_is_its_operation(name, arguments, is_parameter):
    packet, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.aten, packet), overload or "default")
    tensor = torch.arange(-9.0, 15.0).reshape(2, 3, 4) if packet != "t" else torch.arange(6.0).reshape(2, 3)
    if packet == "squeeze":
        tensor = tensor.reshape(1, 24, 1)
    if is_parameter:
        tensor = torch.nn.Parameter(tensor)
    with torch.no_grad(), Recorded() as recorded:
        result = DIRECT[op](tensor, *arguments)
        assert recorded.operations == [op]
        expected = op(tensor, *arguments)
    assert (result.shape, result.stride(), result.storage_offset()) == (
        expected.shape, expected.stride(), expected.storage_offset()
    )  # fmt: skip
    assert (result.dtype, type(result)) == (expected.dtype, type(expected))
    assert (result.data_ptr() == tensor.data_ptr()) == (expected.data_ptr() == tensor.data_ptr())
    assert torch.equal(result, expected)


@pytest.mark.parametrize("name", ["cat", "stack"])
@pytest.mark.parametrize("arguments", [(), (1,), (-1,)])
def test_a_function_of_a_list_is_its_operation(name, arguments):
    op = getattr(torch.ops.aten, name).default
    several = [torch.arange(6.0).reshape(2, 3), torch.full((2, 3), -0.0)]
    with Recorded() as recorded:
        result = DIRECT[op](several, *arguments)
        assert recorded.operations == [op]
        assert torch.equal(result, op(several, *arguments))
