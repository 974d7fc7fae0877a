"""`run`: a model as a machine with other arithmetic would compute it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from fpsim.backend.subnormals import refuse_flush_to_zero
from fpsim.emulation.dispatch.border import call_inside, inside_another_module
from fpsim.emulation.dispatch.context import Emulation, current
from fpsim.emulation.dispatch.entering import computes, entering, resumed
from fpsim.emulation.dispatch.hooks import Guard, guard_modules, guard_outputs, guard_parameter, install_optimizer_hooks
from fpsim.emulation.dispatch.mode import run_as_written
from fpsim.emulation.machine import marks
from fpsim.emulation.machine.policy import Policy, make_policy
from fpsim.emulation.observers.conversion import Conversion
from fpsim.emulation.observers.observer import Observer, get_observers
from fpsim.emulation.state import check_state, check_tensors, held_by, round_state
from fpsim.report.report import Report

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
#: What every module has for itself, a simulation too: its methods, and its hooks.
_OF_MODULES = frozenset(dir(nn.Module())) - {*_SHARED, "training"}


class Simulation(nn.Module):
    """A model under emulation. Made by `run`.

    Calling it, or a method of the model that is reached through it (`sim.generate(...)`), evaluates the model emulated.
    `with sim:` emulates everything in the block: forward pass, backward pass, optimizer. Its parameters, buffers, submodules,
    attributes and the keys of its `state_dict` are the model's. So is what is set or deleted on it, new names included;
    parameters and modules that are set are rounded as `run` rounds.

    As a module of a plain network it computes both of its passes emulated, while the network around it is torch's own.

    Raises OutsideContext where a module of the model is called by itself outside the context, AttributeError where an attribute
    that is the simulation's own (`policy`, `report`) is set or deleted.
    """

    _conversions: list[Conversion]
    _owner: tuple[str, weakref.ref[Emulation]]
    _held: dict[int, tuple[str, torch.Tensor]]  # the parameters, by identity, that were guarded when it was entered last

    def __init__(self, model: nn.Module, policy: Policy):
        super().__init__()
        object.__setattr__(self, "policy", policy)
        self._adopt(model)
        self._begin()

    def _adopt(self, model: nn.Module) -> None:
        # The model is no submodule, so names have no prefix: its own dictionaries are this module's.
        object.__setattr__(self, "model", model)
        for name in _SHARED:
            self.__dict__[name] = model.__dict__[name]
        self.__dict__.pop("training", None)  # it is the model's

    def _begin(self) -> None:
        emulation = Emulation(self.policy)
        object.__setattr__(self, "_emulation", emulation)
        object.__setattr__(self, "_guard", Guard(emulation))
        emulation.guard = self._guard
        install_optimizer_hooks()
        object.__setattr__(self, "_owner", ("emulated", weakref.ref(emulation)))
        object.__setattr__(self, "_held", {})
        object.__setattr__(self, "_conversions", [])
        self._take_hold(converts=True)

    def _take_hold(self, converts: bool = False) -> None:
        """Check, round and guard what the model holds now: a script may have put other modules or parameters in.

        converts : whether parameters that are not themselves any more are noted, for observers
        """
        self._adopt(self.model)  # a list of modules has other dictionaries once an item of it was deleted
        paths = dict(self.model.named_modules(remove_duplicate=False))
        first: dict[int, tuple[str, torch.nn.Module]] = {}
        for name, module in paths.items():
            first.setdefault(id(module), (name, module))
        modules = list(first.values())
        parameters, buffers = held_by(modules)
        check_tensors((*parameters.values(), *buffers.values()), self.policy)
        self._emulation.settings = self.policy.resolve(paths, self._emulation.settings)
        names = {id(module): name or type(module).__name__ for name, module in modules}
        names[id(self)] = ""
        self._emulation.names = names
        if not self.policy.is_identity:  # else it is torch itself, outside too
            guard_modules((module for _, module in modules), self._emulation)
        own = type(self.model).__name__
        fresh = {
            key: (name, name.rpartition(".")[0] or own)
            for key, (name, item) in parameters.items()
            if converts or key not in self._held or marks.owner_of(item) != self._owner
        }
        tensors = [tensor for _, tensor in (*parameters.values(), *buffers.values())]
        formats = self._emulation.machine.formats_of(tensors, self.model)
        self._conversions.extend(round_state(formats, self.policy.seed, fresh if converts else {}))
        for key, of in fresh.items():
            parameter = parameters[key][1]
            marks.set_owner(parameter, *self._owner)
            marks.set_parameter(parameter, *of)
            guard_parameter(parameter, self._guard)
        object.__setattr__(self, "_held", parameters)

    def __enter__(self) -> Simulation:
        if not self._emulation.active:
            self._take_hold()
        self._emulation.__enter__()
        return self

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        self._emulation.__exit__(kind, value, traceback)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_part():
            return call_inside(self._call, self._emulation, args, kwargs)
        return self._call(*args, **kwargs)

    def _is_part(self) -> bool:
        """Whether a plain network, which nothing emulates, is calling this as one of its modules."""
        plain = current() is None and torch.is_grad_enabled() and not self.policy.is_identity
        return plain and inside_another_module(self)

    def _call(self, *args: Any, **kwargs: Any) -> Any:
        with self:  # what is hooked to the simulation runs inside as well
            return super().__call__(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's output, emulated."""
        with self:
            outputs = self.model(*args, **kwargs)
        guard_outputs(outputs, self._guard)
        return resumed(outputs, self._entered)

    def report(self) -> Report:
        """What happened to the numbers since the start or `reset_report`, by module and operation."""
        return self._emulation.report()

    def reset_report(self) -> None:
        """Start counting anew."""
        self._emulation.reset()

    def observe(self, observe: Any) -> None:
        """Tell observers (one, its name, or several) of every operation from now on; raises what `run` raises for them."""
        told = self._emulation.observers
        self._emulation.observe(observe)
        for observer in self._emulation.observers:
            for conversion in self._conversions if observer not in told else ():
                observer.after_conversion(conversion)

    def unobserve(self, observer: Observer) -> None:
        """Tell this observer no more. Raises ValueError if it is told nothing."""
        self._emulation.unobserve(observer)

    def crosscheck(self, bundle: Any) -> Any:
        """What another machine recorded of this model (`fpsim.recording`), each operation computed again under this policy.

        Returns a `ModelCheck`, whose `first` is the first operation that differs. Raises what `crosscheck_model` raises.
        """
        from fpsim.emulation.replay.model import crosscheck_model

        return crosscheck_model(bundle, self.policy)

    def rng_state(self) -> dict[str, int]:
        """Where the draws of stochastic rounding stand; `set_rng_state` goes back there."""
        return {"training_step": self._emulation.training_step, "calls": self._emulation.machine.calls}

    def set_rng_state(self, state: dict[str, int]) -> None:
        """Continue from what `rng_state` returned."""
        self._emulation.training_step = state["training_step"]
        self._emulation.machine.calls = state["calls"]

    # The module's surface is the model's

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        result = self.model.load_state_dict(state_dict, strict=strict, assign=assign)
        self._take_hold()
        return result

    def train(self, mode: bool = True) -> Simulation:
        self.model.train(mode)
        return self

    def __getattr__(self, name: str) -> Any:
        if name in ("model", "_emulation", "_guard", "policy"):
            raise AttributeError(name)
        with self._reading() if computes(self.model, name) else nullcontext():
            return entering(getattr(self.model, name), self._entered)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OF_MODULES:
            return super().__setattr__(name, value)
        with self._writing(name) as runs_code:
            setattr(self.model, name, value)
        if runs_code or isinstance(value, (nn.Parameter, nn.Module)) or name in (*_SHARED, *self._buffers):
            self._take_hold()

    def __delattr__(self, name: str) -> None:
        if name in _OF_MODULES:
            return super().__delattr__(name)
        with self._writing(name):
            delattr(self.model, name)

    @contextmanager
    def _writing(self, name: str) -> Iterator[bool]:
        """For an attribute of the model to be set or deleted: whether that runs code of the model."""
        if name not in _SHARED and (name in self.__dict__ or hasattr(type(self), name)):
            raise AttributeError(f"{name!r} is the simulation's own and stays; an attribute of the model is sim.model.{name}")
        own: Any = type(self.model).__setattr__
        runs_code = computes(self.model, name) or own is not nn.Module.__setattr__
        with self._reading() if runs_code else nullcontext():
            yield runs_code

    def _entered(self) -> Simulation:
        return self

    def _reading(self) -> AbstractContextManager[Any]:
        """For code that an attribute or an item runs: this emulation, unless another one is in force."""
        return self._emulation if current() is None else nullcontext()

    def __getitem__(self, index: Any) -> Any:
        with self._reading():
            return self.model[index]  # type: ignore[index]

    def __len__(self) -> int:
        return len(self.model)  # type: ignore[arg-type]

    def __iter__(self) -> Any:
        return resumed(iter(self.model), self._entered)  # type: ignore[call-overload]

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        inner = repr(self.model).replace("\n", "\n  ")
        return f"Simulation({self.policy})(\n  {inner}\n)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Simulation:
        duplicate = memo[id(self)] = type(self).__new__(type(self))  # the model may hold a method of its simulation
        memo[id(self.policy)] = self.policy
        duplicate.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return duplicate

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in super().__getstate__().items() if name in _OF_MODULES}
        return {"model": self.model, "policy": self.policy, "own": own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(state.get("own", ()))
        object.__setattr__(self, "policy", state["policy"])
        self._adopt(state["model"])
        self._begin()


run_as_written(Simulation.__call__)
run_as_written(Simulation._call)
run_as_written(Simulation.forward)


def _copies_of_compressed(model: nn.Module) -> dict[int, Any]:
    """Copies of buffers that torch's own deepcopy has no way to copy, by identity."""
    return {id(item): item.clone() for item in model.buffers() if item.layout in marks.COMPRESSED}


def run(
    model: nn.Module,
    fmt: Any = "fp16",
    accumulate: Any = None,
    rounding: Any = "nearest-even",
    seed: int | None = None,
    granularity: str = "kernel",
    inplace: bool = False,
    observe: Any = None,
    on_nonfinite: str | None = None,
    all_reduce: str = "rank-order",
) -> Simulation:
    """A `Simulation` of the model: a copy of it whose parameters and buffers are rounded to the format.

    Parameters
    ----------
    model : any `nn.Module` in float32 on the CPU. It is left as it is unless `inplace`.
    fmt : the format that every float32 tensor holds; what `get_format` takes. Or "native": each dtype means itself, so
        that `.half()` and `.bfloat16()` models and `torch.autocast` are emulated, and float32 and float64 are torch's own.
    accumulate : how products and sums are accumulated; left out, fp32 in sequence.
    rounding, seed : the rounding mode of every rounding; "stochastic" needs a seed.
        fmt, accumulate and rounding may each be a mapping from roles, patterns of module paths and classes of modules.
    granularity : "kernel" rounds once per torch operation, "primitive" every elementary operation.
    inplace : use the model itself; its parameters are rounded.
    observe : what is told of every operation: an `fpsim.emulation.Observer`, the name of one, or several of these. A copy of
        the simulation is not observed.
    all_reduce : how sums over the ranks of `torch.distributed` are made: "rank-order", through the accumulator, or "ring" or
        "tree" as NCCL has them, in the tensor's format or another one ("ring:fp32").
    on_nonfinite : "raise" stops with `NonFinite` at the first infinity or NaN that was not asked for, "warn" says it once: what
        it was made of, where, and the operations behind it.

    Raises
    ------
    TypeError : not a module; not an observer.
    UnsupportedTensor : parameters of which none is float32, another device; never where fmt="fp32" with
        accumulate="native" is torch itself.
    ValueError : unknown names, float64 parameters, a model that cannot be copied (use inplace=True).
    RuntimeError : under `torch.inference_mode`, where parameters could never be trained.

    NaN in a weight stays NaN; infinities become what the format has for them.
    """
    policy = make_policy(fmt, accumulate, rounding, seed, granularity, all_reduce)
    refuse_flush_to_zero()
    if not isinstance(model, nn.Module):
        raise TypeError(f"run takes a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, Simulation):
        raise TypeError("this model is a Simulation already; run its .model")
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "run() under torch.inference_mode() would make parameters that can never be trained; call it outside"
        )
    check_state(model, policy)
    observers = get_observers(observe, on_nonfinite)
    if inplace:
        simulation = Simulation(model, policy)
        simulation.observe(observers)
        return simulation
    try:
        duplicate = copy.deepcopy(model, _copies_of_compressed(model))
    except Exception as error:
        raise ValueError(f"the model cannot be copied ({error}); run(model, inplace=True) uses the model itself") from error
    simulation = Simulation(duplicate, policy)
    simulation.observe(observers)
    reference = weakref.ref(simulation._emulation)
    for parameter in model.parameters():
        if (marks.owner_of(parameter) or ("script",))[0] == "script":
            marks.set_owner(parameter, "original", reference)
    return simulation
