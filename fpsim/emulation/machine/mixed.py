"""Settings by role and by module: before each operation the machine selects what it reads, adds in and rounds to.

A mark on memory says which format its values are of, and in which role they were made. The pass that is running says the rest:

forward    operands are read in the module's activation format; results are of it
backward   gradients are read in the gradient format, all else in the activation format; results are gradients
update     (an optimizer's step, and what reads gradients or optimizer state, or writes parameters, outside of modules and of
           the backward pass) operands are read as they are; results are of the optimizer format
What is written to parameters, buffers, gradients or optimizer state is of their own format. Reading a value in another
format than its own rounds a copy of it. Products of matrices and convolutions read their factors in the format of that role,
where there is one; where it is a split, factors are read as any other operand and multiplied in parts.

Sums go through the pass's accumulator. What is rounded to a role's format is rounded in that role's mode; in an update
everything is in the optimizer's. Where some rounding is stochastic, every rounding takes a key, so that what an operation draws
does not depend on how others round.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from fpsim.accumulation import Accumulator
from fpsim.accumulation.instructions import Formats
from fpsim.accumulation.kinds import UNIT
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.arithmetic import Arithmetic
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.mixed_arithmetic import arithmetic_of
from fpsim.emulation.machine.parts import COMPLEX64, joined as joined_parts, parts_of
from fpsim.emulation.machine.place import Surroundings
from fpsim.emulation.machine.policy import MixedPolicy
from fpsim.emulation.machine.roles import RoleTag
from fpsim.emulation.machine.selection import Selection, backward_selection, forward_selection, update_selection
from fpsim.emulation.machine.settings import ModuleSettings
from fpsim.emulation.machine.tensor_settings import settings_of_tensors
from fpsim.emulation.registry import TABLE, positions
from fpsim.emulation.schemas import names, tensors_in
from fpsim.numbers.rounding import Rounding
from fpsim.numbers.splits import Split
from fpsim.numbers.system import NumberSystem
from fpsim.sums.task import Sum

_FLOAT32 = torch.float32
#: Families whose rules round all that they make.
_ROUNDING_FAMILIES = frozenset(
    names("matmul convolution reduction softmax attention normalization loss elementwise elementary")
)
_NUMBER = torch.ops.aten._local_scalar_dense.default


class MixedMachine(FormatMachine):
    """A machine with several settings: `select` before each rule."""

    has_one_format = False
    _selected: Selection

    def __init__(self, policy: MixedPolicy, emulation: Surroundings):
        super().__init__(policy, emulation)
        self._policies = policy
        self._begin_era()

    def _begin_era(self) -> None:
        self._era = object()
        self._tags: dict[Any, RoleTag] = {}
        self._arithmetics: dict[Selection, Arithmetic] = {}
        self._targets: tuple[torch.Tensor, ...] = ()
        self._checks = False
        self._switch_to(forward_selection(self.settings_at("")))

    def forget_marks(self) -> None:
        self._begin_era()

    def role_tag(self, fmt: NumberSystem | None, role: str, module: ModuleSettings) -> RoleTag:
        """The one mark of that meaning."""
        key = (fmt, role, module)
        tag = self._tags.get(key)
        if tag is None:
            tag = self._tags[key] = RoleTag(fmt, role, module, self._era)
        return tag

    # Where an operation runs

    def settings_at(self, path: str) -> ModuleSettings:
        """The settings of a module; one that is no part of the model has those of what calls it."""
        settings = self._settings()
        while path not in settings:
            path = path.rpartition(".")[0]
        return settings[path]

    def _settings(self) -> dict[str, ModuleSettings]:
        settings = self.emulation.settings
        assert settings is not None
        return settings

    def epsilon(self, dtype: torch.dtype) -> float:
        return float(self.settings_at(self.path).formats.activation.ulp(np.ones(1))[0])

    def _backward_settings(self) -> ModuleSettings:
        node: Any = torch._C._current_autograd_node()
        parameter = getattr(node, "variable", None)
        if parameter is not None:  # the sum of gradients that meet in a parameter
            tag = self._tag_of(parameter)
            return tag.module if tag is not None else self.settings_at("")
        return self.settings_at(self.emulation.backward_path(strict=True))

    def select(self, op: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> None:
        """Choose what the operation reads, what adds its sums and what its results are rounded to."""
        targets = _targets(op, args, kwargs)
        if op is _NUMBER:  # Python gets what is there
            targets = (args[0],)
        held = self._mark_of(targets[0]) if targets and targets[0].dtype in (_FLOAT32, COMPLEX64) else None
        backward = self._goes_back()
        if self.optimizer is not None or (not backward and not self.places and self._updates(held, args, kwargs)):
            selection = self._selection_of_an_update(held, args, kwargs)
        else:
            selection = self._selection_of_a_pass(backward)
            if held is not None and held.role == "weight":
                selection = selection.storing(held.fmt or held.role_format, "weight", held.module)
        self._targets = targets
        self._checks = not self._rounds(op)
        if selection != self._selected:
            self._switch_to(selection)

    def _goes_back(self) -> bool:
        """Whether the backward pass is running, and no part of a forward pass within it."""
        return not self.places and torch._C._current_graph_task_id() != -1 and not _recomputes()

    def _selection_of_a_pass(self, backward: bool) -> Selection:
        return backward_selection(self._backward_settings()) if backward else forward_selection(self.settings_at(self.path))

    def _updates(self, held: RoleTag | None, args: Any, kwargs: dict[str, Any]) -> bool:
        if held is not None and held.role != "activation":
            return True
        marks = (self._tag_of(tensor) for tensor in tensors_in((*args, *kwargs.values())))
        return any(mark is not None and mark.role in ("gradient", "optimizer") for mark in marks)

    def _selection_of_an_update(self, held: RoleTag | None, args: Any, kwargs: dict[str, Any]) -> Selection:
        if held is not None and held.role != "activation":
            return update_selection(held.module, held.fmt or held.role_format, held.role)
        tensors = (item for item in tensors_in((*args, *kwargs.values())) if item.dtype in (_FLOAT32, COMPLEX64))
        marks = (self._mark_of(tensor) for tensor in tensors)
        first = next((mark for mark in marks if mark is not None and mark.role != "activation"), None)
        module = first.module if first is not None else self.settings_at(self.path)
        return update_selection(module, module.formats.optimizer, "optimizer")

    def _switch_to(self, selection: Selection) -> None:
        arithmetic = self._arithmetics.get(selection)
        if arithmetic is None:
            tag = self.role_tag(selection.result, selection.role, selection.module)
            arithmetic = self._arithmetics[selection] = arithmetic_of(selection, self._policies, tag)
        self.arithmetic = arithmetic
        self._selected = selection

    @contextmanager
    def as_forward(self) -> Iterator[None]:
        selection = self._selected
        self._switch_to(forward_selection(selection.module))
        try:
            yield
        finally:
            self._switch_to(selection)

    # Operands

    def _tag_of(self, tensor: torch.Tensor) -> RoleTag | None:
        try:
            tag: Any = tensor.untyped_storage()._fpsim  # type: ignore[attr-defined]
        except (AttributeError, NotImplementedError):
            return None
        return tag if type(tag) is RoleTag and tag.era is self._era else None

    def _mark_of(self, tensor: torch.Tensor) -> RoleTag | None:
        """What is known of a tensor; a parameter that holds other numbers is a weight all the same."""
        tag = self._tag_of(tensor)
        if tag is None and tensor.layout is not torch.strided:
            return self._tag_of(marks.stored(tensor))
        if tag is None and tensor.device.type == "cpu" and marks.owner_of(tensor) is not None:
            return self.role_tag(None, "weight", self.settings_at(""))
        return tag

    def made(self, tensor: torch.Tensor) -> bool:
        return self._tag_of(tensor) is not None

    def operand(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of values of the format in which the running operation reads it: itself, or a rounded copy."""
        if tensor.dtype is not _FLOAT32:
            self.check(tensor)
            return joined_parts(self.operand(parts_of(tensor))) if tensor.dtype is COMPLEX64 else tensor
        mark = self._tag_of(tensor)
        if mark is None:
            self.check(tensor)
            if marks.tag_on(tensor) is marks.EXEMPT:
                return tensor
            mark = self._first_seen(tensor)
        selection = self._selected
        wanted = selection.read_gradient if mark.role in ("gradient", "optimizer") else selection.read
        if wanted is None:
            wanted = mark.fmt or (mark.module.formats.optimizer if mark.role == "activation" else mark.role_format)
        if mark.fmt is wanted or (mark.fmt is not None and any(tensor is target for target in self._targets)):
            return tensor
        fresh = self._read_in(tensor, mark, wanted, self._mode_of_reading(mark))
        if self.reads is not None:
            self.reads(tensor, fresh)
        return fresh

    def factor(self, tensor: torch.Tensor) -> torch.Tensor:
        selection = self._selected
        wanted = selection.module.formats.product
        if wanted is None or isinstance(wanted, Split) or tensor.dtype is not _FLOAT32:
            return super().factor(tensor)
        mark = self._tag_of(tensor)
        if mark is None or mark.fmt is None:
            tensor = self.operand(tensor)
            mark = self._tag_of(tensor)
        if mark is None or mark.fmt is wanted:
            return tensor
        unit = self.arithmetic.product_task.accumulator.unit
        mode = selection.module.roundings.product or (unit.conversion_to(wanted.enclosing) if unit is not None else None)
        return self._read_in(tensor, mark, wanted, mode or self._mode_of_reading(mark))

    @property
    def has_factors(self) -> bool:  # type: ignore[override]
        return self._selected.module.formats.product is not None

    def _mode_of_reading(self, mark: RoleTag) -> Rounding:
        """That of the role whose format the pass reads such values in."""
        selection = self._selected
        reads_gradient = selection.by == "gradient" and mark.role in ("gradient", "optimizer")
        role = selection.by if selection.by == "optimizer" or reads_gradient else "activation"
        return getattr(selection.module.roundings, role)

    def _read_in(self, tensor: torch.Tensor, mark: RoleTag, fmt: NumberSystem, mode: Rounding) -> torch.Tensor:
        selection = self._selected
        self._switch_to(Selection(fmt, mark.role, selection.by, mark.module, mode, fmt, fmt))
        fresh = self.rounded_copy(tensor)
        self._switch_to(selection)
        return fresh

    def _first_seen(self, tensor: torch.Tensor) -> RoleTag:
        """From outside: in the forward pass an activation, in the backward pass a gradient. Its memory remembers which."""
        mark = self._mark_of(tensor)
        if mark is None:
            role = self._selected.role if self._selected.role != "weight" else "activation"
            mark = self.role_tag(None, role, self._selected.module)
            marks.claim(tensor, mark)
        return mark

    def held(self, tensor: torch.Tensor) -> torch.Tensor:
        mark = self._tag_of(tensor)
        return tensor if mark is not None and mark.fmt is not None else self.operand(tensor)

    def system_of(self, tensor: torch.Tensor) -> NumberSystem:
        mark = self._tag_of(tensor) if tensor.dtype is _FLOAT32 else None
        return mark.fmt if mark is not None and mark.fmt is not None else super().system_of(tensor)

    def sum_of(self, left: torch.Tensor, right: torch.Tensor) -> Sum:
        task = self.arithmetic.product_task
        if self.arithmetic.uniform or self._selected.module.formats.product is not None or task.accumulator.kind is not UNIT:
            return task
        marks = [self._tag_of(tensor) for tensor in (left, right)]
        first, second = (mark.fmt if mark is not None else None for mark in marks)
        if first is None or second is None:
            return task
        if not _takes(task.accumulator, (first.enclosing, second.enclosing)):
            return task
        one_will_do = first == second and _takes(task.accumulator, task.operand)
        return task if one_will_do else Sum.of(first, task.accumulator, task.rounding, task.result, second)

    # Results

    def exact(self, result: torch.Tensor) -> torch.Tensor:
        arithmetic = self.arithmetic
        closed = arithmetic.uniform and arithmetic.finishing.has_kernels  # a system may lack what a negation or a sign gives
        if closed or not self._checks or result.dtype not in (_FLOAT32, COMPLEX64):
            return super().exact(result)
        return self._round(result) if result.dtype is _FLOAT32 else joined_parts(self._round(parts_of(result)))

    def one_pass(
        self, operation: int, tensors: tuple[torch.Tensor, ...], factor: float = 1.0, into: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        return super().one_pass(operation, tensors, factor)  # what is to be written may be held in another format

    @staticmethod
    @lru_cache(maxsize=4096)
    def _rounds(op: torch._ops.OpOverload) -> bool:
        """Whether the rule has rounded what it calls exact; others hand on elements of operands of several formats."""
        return TABLE[op].family in _ROUNDING_FAMILIES

    def write(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        if target is result or target.dtype is not _FLOAT32:
            return super().write(target, result)
        if result.dtype is _FLOAT32 and marks.tag_on(result) is not self.arithmetic.tag and not self.arithmetic.uniform:
            result = self._round(result.detach().clone(memory_format=torch.preserve_format))
        before = self._tag_of(target)
        super().write(target, result)
        if before is not None and before is not self.arithmetic.tag and not marks.covers_storage(target):
            marks.claim(target, self.role_tag(None, before.role, before.module))
        return target

    def store(self, target: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        with self._storing(target):
            return super().store(target, result)

    def would_hold(self, target: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with self._storing(target):
            return super().would_hold(target, value)

    @contextmanager
    def _storing(self, target: torch.Tensor) -> Iterator[None]:
        """Results are rounded to what the target holds."""
        selection, mark = self._selected, self._mark_of(target)
        if mark is not None and mark.role != "activation":
            self._switch_to(selection.storing(mark.fmt or mark.role_format, mark.role, mark.module))
        try:
            yield
        finally:
            self._switch_to(selection)

    def formats_of(
        self, tensors: list[torch.Tensor], model: torch.nn.Module
    ) -> Iterator[tuple[torch.Tensor, NumberSystem, Rounding, marks.Tag]]:
        for tensor, module in settings_of_tensors(model, self._settings()):
            fmt = module.formats.weight
            yield tensor, fmt, module.roundings.weight, self.role_tag(fmt, "weight", module)

    def begin_step(self, optimizer: Any) -> None:
        """State from before this context was entered has the settings of its parameter's module."""
        super().begin_step(optimizer)
        for parameter, state in optimizer.state.items():
            tag = self._tag_of(parameter) if isinstance(parameter, torch.Tensor) else None
            if tag is None:
                continue
            for item in map(marks.stored, tensors_in([state])):
                if item.dim() and item.dtype in (_FLOAT32, COMPLEX64) and self._tag_of(item) is None:
                    marks.claim(item, self.role_tag(None, "optimizer", tag.module))

    @property
    def computes_as_torch(self) -> bool:
        return self._selected.module.is_native

    def made_as_torch(self, result: torch.Tensor) -> None:
        if result.dtype in (_FLOAT32, COMPLEX64) and marks.tag_on(result) is None:
            marks.claim(result, self.role_tag(None, self._selected.role, self._selected.module))

    def select_here(self) -> None:
        """As `select`, for what there is no rule for."""
        self._switch_to(self._selection_of_a_pass(self._goes_back()))

    def policy_of_small(self) -> tuple[Accumulator, Rounding]:
        selection = self._selected
        return getattr(selection.module.accumulators, selection.by), selection.rounding


def _takes(accumulator: Accumulator, operands: Formats) -> bool:
    assert accumulator.unit is not None
    return any(row.takes(operands) and accumulator.format.name in row.outputs for row in accumulator.unit.instructions)


def _recomputes() -> bool:
    """Whether a checkpoint is running part of a forward pass again, within the backward pass."""
    if not torch.is_grad_enabled():
        return False
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # type: ignore[attr-defined]
    if hooks is not None and "_recomputation_hook" in getattr(hooks[0], "__qualname__", ""):
        return True
    node: Any = torch._C._current_autograd_node()
    return node is not None and node.name() == "CheckpointFunctionBackward"


def _targets(op: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The tensors that hold an operation's results: written to, and all that it returns."""
    written = positions(op)[1]
    if not written or any(result.alias_info is None for result in op._schema.returns):
        return ()
    return tuple(tensors_in(args[index] if index < len(args) else kwargs.get(name) for index, name in written))
