"""Marks on tensor storages: which hold values of a format, and whose they are.

An attribute of `untyped_storage()` survives views and `detach`, is shared by aliases, and vanishes with the memory. Storages
that others can write (`memory.py`) are marked no more: what is in them is rounded whenever it is read.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch

from fpsim.emulation.schemas import tensors_in


class Tag:
    """Compared by identity; a machine takes a new one whenever its context is left."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def of_anything(self) -> Tag | None:
        """What is left to say of a storage that may hold any numbers."""
        return None


#: What a tensor with no meaning beside its elements is.
PLAIN_TYPES = {
    torch.Tensor,
    torch.nn.Parameter,
    torch.nn.Buffer,
    torch.nn.parameter.UninitializedParameter,
    torch.nn.parameter.UninitializedBuffer,
}

#: Layouts of sparse matrices by rows or columns, or by blocks of these.
COMPRESSED = frozenset((torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc))

#: A tensor's memory as an array, as torch has it: `Tensor.numpy` itself tells who else can write there.
array_of = torch._C.TensorBase.numpy
pointer_to = torch._C.TensorBase.data_ptr

#: On a storage that is read as it is and never rounded: an optimizer's step count.
EXEMPT = Tag("exempt")

#: Parameters that have a name, by identity, while they live.
_named: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()


def mark(tensor: torch.Tensor, tag: Tag) -> torch.Tensor:
    """Say that the tensor's whole storage, which nobody else has, holds values of the tag's format; returns the tensor."""
    tensor.untyped_storage()._fpsim = tag  # type: ignore[attr-defined]
    return tensor


def claim(tensor: torch.Tensor, tag: Tag) -> None:
    """`mark` a storage that the emulation did not make, unless others can write it."""
    judge(tensor)
    storage: Any = tensor.untyped_storage()
    storage._fpsim = tag.of_anything() if storage._fpsim_shared else tag


def judge(tensor: torch.Tensor) -> None:
    """Find out, before anything here makes an array of the tensor, whether its storage can be written by others."""
    storage: Any = tensor.untyped_storage()
    if not hasattr(storage, "_fpsim_shared"):
        seen = hasattr(storage, "_fpsim")  # marked before: since then every alias was seen
        storage._fpsim_shared = not seen and (not storage.resizable() or storage.is_shared())


def share(memory: Any) -> None:
    """Others can write a tensor or storage from now on."""
    try:
        storage = _storage_of(memory)
    except NotImplementedError:  # no storage: a sparse tensor, a wrapper
        return
    storage._fpsim_shared = True
    if getattr(storage, "_fpsim", None) is not EXEMPT:
        unmark(storage)


def _storage_of(memory: Any) -> Any:
    if isinstance(memory, torch.UntypedStorage):
        return memory
    return memory.untyped_storage() if isinstance(memory, torch.Tensor) else memory._untyped_storage


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """The dense tensor of what is stored: the values of a sparse matrix, of a dense one itself."""
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in COMPRESSED else tensor


def tag_on(tensor: torch.Tensor) -> Tag | None:
    """The tag on the tensor's storage; None too for tensors that have no storage."""
    try:
        return getattr(tensor.untyped_storage(), "_fpsim", None)
    except NotImplementedError:  # a sparse tensor, a wrapper
        return None


def unmark(memory: Any) -> None:
    """Forget what a tensor's storage (or a storage) holds."""
    storage = _storage_of(memory)
    tag = getattr(storage, "_fpsim", None)
    if tag is not None:
        storage._fpsim = tag.of_anything()


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements lie side by side in memory, in whatever order of axes, none twice."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size == 0:
            return True
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def covers_storage(tensor: torch.Tensor) -> bool:
    """Whether the tensor's elements are the whole of its storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes() and (
        tensor.is_contiguous() or is_dense(tensor)
    )


def set_owner(tensor: torch.Tensor, role: str, owner: Any) -> None:
    """Say whose parameter this storage is; role is "emulated" or "original"."""
    tensor.untyped_storage()._fpsim_owner = (role, owner)  # type: ignore[attr-defined]


def owner_of(tensor: torch.Tensor) -> tuple[str, Any] | None:
    """What `set_owner` said, or None."""
    return getattr(tensor.untyped_storage(), "_fpsim_owner", None)


def set_parameter(tensor: torch.Tensor, name: str = "", module: str | None = None) -> None:
    """Say that this storage is a parameter's, of which updates are counted; nothing where the tensor has no storage.

    It keeps the first name that it was given, and the first path of a module.
    """
    try:
        storage: Any = tensor.untyped_storage()
        storage._fpsim_parameter = getattr(storage, "_fpsim_parameter", "") or name
        if name:
            _named[id(tensor)] = tensor
        if module is not None:
            set_module(tensor, module)
    except (NotImplementedError, RuntimeError, ValueError):  # of another layout, or not initialized yet
        return


def is_parameter(tensor: torch.Tensor) -> bool:
    """Whether `set_parameter` said so."""
    try:
        return hasattr(tensor.untyped_storage(), "_fpsim_parameter")
    except (NotImplementedError, RuntimeError, ValueError):  # as there
        return False


def name_of_parameter(tensor: torch.Tensor) -> str:
    """The name that `set_parameter` was given; "" without one, and for what is no parameter."""
    return getattr(tensor.untyped_storage(), "_fpsim_parameter", "") if is_parameter(tensor) else ""


def parameter_with_gradient(tensor: torch.Tensor) -> torch.Tensor | None:
    """The parameter with a name whose `.grad` begins where this strided tensor does; None if there is none."""
    pointer = pointer_to(tensor)
    for parameter in list(_named.values()) if pointer else ():
        gradient = parameter.grad if parameter.is_leaf else None
        if gradient is not None and gradient.layout is torch.strided and pointer_to(gradient) == pointer:
            return parameter
    return None


def set_module(tensor: torch.Tensor, path: str) -> None:
    """Say whose storage this is to an optimizer: a module's parameter, its gradient, its state, or computed of these.

    It keeps the first path that it was given.
    """
    storage: Any = stored(tensor).untyped_storage()
    if not hasattr(storage, "_fpsim_module"):
        storage._fpsim_module = path


def set_beside(values: Iterable[Any], parameter: torch.Tensor) -> None:
    """Say of the tensors among values, sparse ones too, that they are of the module that the parameter is of, if of one."""
    path = module_of((parameter,))
    if path is not None:
        for item in tensors_in(values):
            if item.layout is torch.strided:
                set_module(item, path)
            elif item.layout is torch.sparse_coo:
                with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
                    set_module(item, path)


def module_of(values: Iterable[Any]) -> str | None:
    """What `set_module` said of the tensors among values; None where it said nothing, or something else of another one."""
    found = None
    for value in values:
        if isinstance(value, torch.Tensor):
            try:
                path = getattr(value.untyped_storage(), "_fpsim_module", None)
            except NotImplementedError:  # as in `tag_on`
                path = None
        elif isinstance(value, (list, tuple)):
            path = module_of(value)
        else:
            continue
        if path is not None and path != found:
            if found is not None:
                return None
            found = path
    return found


def set_change(tensor: torch.Tensor, source: torch.Tensor, meant: Any, scales: bool) -> None:
    """Say which elements a tensor was meant to differ in from the source that it was computed from, and if it is a multiple."""
    tensor.untyped_storage()._fpsim_change = (pointer_to(source), source.shape, meant, scales)  # type: ignore[attr-defined]


def change_of(tensor: Any, source: torch.Tensor) -> Any:
    """What `set_change` said of this tensor and this source; None where nothing was."""
    change = getattr(tensor.untyped_storage(), "_fpsim_change", None)
    if change is None or change[0] != pointer_to(source) or change[1] != source.shape:
        return None
    return change[2]


def is_multiple(tensor: Any, source: torch.Tensor) -> bool:
    """Whether a tensor is the source itself, or the source multiplied by a number, as `set_change` said."""
    if not isinstance(tensor, torch.Tensor) or tensor.layout is not torch.strided:
        return False
    if pointer_to(tensor) == pointer_to(source) and tensor.shape == source.shape and tensor.stride() == source.stride():
        return True
    change = change_of(tensor, source)
    return change is not None and tensor.shape == source.shape and tensor.untyped_storage()._fpsim_change[3]  # type: ignore[attr-defined]
