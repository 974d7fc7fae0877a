"""Which module of a model an operation belongs to: the one being called, or the one that made the autograd node being run."""

from __future__ import annotations

import bisect
import operator
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from fpsim.emulation.dispatch.names import ModuleNames
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.machine import FormatMachine
from fpsim.emulation.machine.results import Time
from fpsim.emulation.machine.settings import ModuleSettings

_sequence = torch._C._autograd._get_sequence_nr  # type: ignore[attr-defined]
_number = operator.itemgetter(0)
_KEPT_NODES = 200_000
_FEW_NODES = 64
_ACCUMULATION = 2**62  # nodes that store a gradient have the largest number there is


class ModulePaths:
    """The paths of modules as they are called. `settings` are those by path, where there are several."""

    def __init__(self, settings: dict[str, ModuleSettings] | None):
        self.settings = settings
        self.names: dict[int, str] = {}  # the paths of the modules of its model
        self.others = ModuleNames()
        self.modules: dict[str, tuple[type, int]] = {}  # by path, in the order of their first calls: class and parameters

    @property
    def machine(self) -> FormatMachine:
        """This thread's machine."""
        raise NotImplementedError

    @property
    def is_entered(self) -> bool:
        """Whether this thread itself entered the context; else its graph is of no thread that did."""
        raise NotImplementedError

    def enter_module(self, module: torch.nn.Module) -> None:
        machine = self.machine
        machine.places.append((machine.path, machine.calls))
        path = self.names.get(id(module))
        if path is None:
            path, fresh = self.others.path_of(module, machine.path)
            if fresh:
                for name, parameter in module.named_parameters():
                    marks.set_parameter(parameter, f"{path}.{name}", f"{path}.{name}".rpartition(".")[0])
        if path and path not in self.modules:
            sizes = (item.numel() for item in module.parameters() if not is_lazy(item))
            self.modules[path] = type(module), sum(sizes)
        machine.path = path
        machine.calls = 0
        self._note(machine.path)

    def leave_module(self) -> None:
        machine = self.machine
        if machine.places:
            machine.path, machine.calls = machine.places.pop()
            self._note(machine.path)

    def _note(self, path: str) -> None:
        """Remember that autograd nodes made from now on belong to this path."""
        if torch.is_grad_enabled():
            if not self.is_entered:  # autograd numbers its nodes in each thread from 0
                if self.settings is not None:
                    raise RuntimeError("checkpoints are nested too deep for settings by module; use use_reentrant=False")
                return
            machine, nodes, number = self.machine, self.machine.nodes, _sequence()
            if nodes and nodes[-1][0] == number:  # no node was made since
                nodes.pop()
            if len(nodes) > _KEPT_NODES:
                del nodes[: _KEPT_NODES // 2]
                machine.first_node = nodes[0][0]
            nodes.append((number, path, machine.time))

    def forget_nodes(self) -> None:
        """Forget which modules made the nodes of graphs that are gone; called whenever the context is left."""
        machine = self.machine
        machine.time = Time()
        if len(machine.nodes) > machine.many_nodes:
            machine.nodes = [item for item in machine.nodes if not item[2].is_over]
            machine.many_nodes = _FEW_NODES + 2 * len(machine.nodes)  # so that looking costs little beside making

    def forget_backward(self) -> None:
        """A training step is over: where paths are but names in a report, those of a finished backward pass are forgotten."""
        self.machine.calls = 0
        if self.settings is None and torch._C._current_graph_task_id() == -1:  # else a graph may be used later
            self.machine.nodes.clear()

    def backward_path(self, strict: bool = False) -> str:
        """The module whose forward pass made the autograd node that is running, or whose parameter's gradient it stores.

        If strict, stored gradients are of no module, and a node from so long ago that nothing is known of it raises
        RuntimeError.
        """
        node: Any = torch._C._current_autograd_node()
        if node is None:
            return self.machine.path
        number = node._sequence_nr()
        if number >= _ACCUMULATION and not strict:
            return marks.module_of((node.variable,)) or ""
        if strict and number < self.machine.first_node:
            raise RuntimeError(
                f"this graph was made more than {_KEPT_NODES // 4} calls of modules ago: its formats are forgotten"
            )
        nodes = self.machine.nodes
        last = bisect.bisect_right(nodes, number, key=_number) - 1
        return nodes[last][1] if 0 <= last and number < _ACCUMULATION else ""
