"""The one table of rules: what emulation does with each torch operation.

A rule is a function `rule(machine, *args, **kwargs)` that gets the operation's own arguments and returns what the
operation returns. It runs below autograd with torch dispatch disabled. `machine.operand(tensor)` gives a
tensor of values of the format, `machine.finish(tensor)` rounds a fresh float32 or float64 result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from typing import Any

import torch

from fpsim.emulation.machine.protocol import Machine, Rule
from fpsim.emulation.numbers import Places, places, taking_numbers
from fpsim.emulation.promotion import PROMOTING, promoting
from fpsim.emulation.schemas import (
    INDEX_PUT,
    OF_THE_FIRST,
    inputs_of,
    is_out,
    name_of,
    names,
    outputs_and_inputs,
    overloads,
    tensors_in,
)

#: An operation of such operands as `SHORT` is for.
Short = Callable[..., torch.Tensor | None]

_UNINITIALIZED = ("aten::empty", "aten::new_empty")


@dataclass(frozen=True, eq=False)
class Entry:
    """One row of the table."""

    op: torch._ops.OpOverload
    family: str
    rule: Rule

    @cached_property
    def _dtype(self) -> int:
        return positions(self.op)[0]

    def wanted(self, args: Any, kwargs: dict[str, Any]) -> torch.dtype | None:
        """The dtype that a call asks for."""
        return args[self._dtype] if 0 <= self._dtype < len(args) else kwargs.get("dtype")

    @cached_property
    def written(self) -> tuple[tuple[int, str], ...]:
        """Position and name of every argument that the operation writes to."""
        return positions(self.op)[1]

    @cached_property
    def numbers(self) -> Places:
        """Where it takes a number, or a tensor for which a number may stand."""
        return places(self.op)

    @cached_property
    def fills(self) -> bool:
        """Whether it may fill elements with the number that a tensor holds."""
        return name_of(self.op) in OF_THE_FIRST or name_of(self.op) in INDEX_PUT

    @cached_property
    def computes_nothing(self) -> bool:
        """Whether its results are views, or memory with whatever is in it."""
        return self.family == "view" or self.op._schema.name.startswith(_UNINITIALIZED)


TABLE: dict[torch._ops.OpOverload, Entry] = {}

#: The same, operation to function: what the dispatch mode looks up.
RULES: dict[torch._ops.OpOverload, Rule] = {}

#: By the identity of an operation, what computes it from float32 tensors that all hold values of the format, and numbers after
#: the first; None is for its rule to do.
SHORT: dict[int, Short] = {}

#: What it looks up under granularity="primitive": there composite operations run as their steps.
PRIMITIVE: dict[torch._ops.OpOverload, Rule] = {}

#: What it looks up where an operand is complex.
COMPLEX: dict[torch._ops.OpOverload, Rule] = {}

#: What it looks up where an operand is sparse and the rule takes dense ones alone.
SPARSE: dict[torch._ops.OpOverload, Rule] = {}

#: What looks into a sparse tensor, whatever its dtype is.
PARTS_OF_SPARSE: set[torch._ops.OpOverload] = set()

#: The operations that have steps.
STEPS: set[torch._ops.OpOverload] = set()

#: What stands for an operation in float64, where torch has no kernel for it.
IN_FLOAT64: dict[torch._ops.OpOverload, Callable[..., Any]] = {}

#: Names of operations whose rule is one kernel of many steps.
WHOLE: set[str] = set()

#: Namespaces of other packages' operators, and what enters their rules: only once one arrives is its package there.
ARRIVING: dict[str, Callable[[], Any]] = {}


def register(
    op: torch._ops.OpOverload, *, family: str = "custom", steps: Callable[..., Any] | None = None
) -> Callable[[Rule], Rule]:
    """A decorator that makes a function the rule of one operator overload: torch's or a custom one's.

    Under granularity="primitive" the rule holds too, as an elementary step, unless there are `steps`: a function of the
    operation's own arguments, written in other operations of torch, each of which then meets its own rule.

    Example
    -------
    >>> @register(torch.ops.aten.hypot.default)                     # doctest: +SKIP
    ... def hypot(machine, a, b):
    ...     a, b = machine.operand(a).double(), machine.operand(b).double()
    ...     return machine.finish(torch.hypot(a, b))

    Raises
    ------
    TypeError : for anything but an OpOverload such as `torch.ops.aten.add.Tensor`.
    ValueError : if the operator has a rule already.
    """
    if not isinstance(op, torch._ops.OpOverload):
        raise TypeError(f"register takes an operator overload such as torch.ops.aten.add.Tensor, got {op!r}")

    def decorate(rule: Rule) -> Rule:
        if op in TABLE:
            raise ValueError(f"{op} already has a rule (family {TABLE[op].family!r})")
        enter(Entry(op, family, rule))
        if steps is not None:
            PRIMITIVE[op] = _in_steps(op, rule, steps)
            STEPS.add(op)
        return rule

    return decorate


def itself_in_float64(op: torch._ops.OpOverload, place: int = 0) -> Callable[[Rule], Rule]:
    """A decorator of a rule: where the argument in that place is float64, which means itself, the operation is torch's own."""

    def decorate(rule: Rule) -> Rule:
        @wraps(rule)
        def checked(machine: Machine, *args: Any, **kwargs: Any) -> Any:
            return op(*args, **kwargs) if args[place].dtype is torch.float64 else rule(machine, *args, **kwargs)

        return checked

    return decorate


def arrived(op: Any) -> Entry | None:
    """The row of an operation that had none, now that the rules of its package are entered; None without one."""
    enter_rules = ARRIVING.get(getattr(op, "namespace", ""))
    if enter_rules is not None:
        enter_rules()
    return TABLE.get(op)


def unregister(op: torch._ops.OpOverload) -> None:
    """Forget the rule of an operator, so that another can be registered. Raises KeyError if it has none."""
    del TABLE[op], RULES[op], PRIMITIVE[op]
    STEPS.discard(op)
    SHORT.pop(id(op), None)


def enter(entry: Entry) -> None:
    """Put a row into the table, in the place of the one that was there."""
    TABLE[entry.op] = entry
    SHORT.pop(id(entry.op), None)
    RULES[entry.op] = PRIMITIVE[entry.op] = taking_numbers(entry.op, name_of(entry.op), entry.rule)


def register_steps(ops: str, steps_for: Callable[[torch._ops.OpOverload], Callable[..., Any] | None]) -> None:
    """Give every functional overload of the named ops the steps that `steps_for` makes; in-place and `out=` forms follow.

    Steps are a function of the operation's own arguments, written in torch's operations: under "primitive" it is called with
    dispatch on, so that each of them meets its own rule; what it returns NotImplemented for is an elementary step itself. Where
    `steps_for` returns None there are none.
    """
    for name in names(ops):
        forms = overloads(name)
        if not forms:
            continue  # another torch has no such operation
        for op in forms.values():
            steps = steps_for(op) if op in RULES and not is_out(op) else None
            if steps is not None:
                PRIMITIVE[op] = _in_steps(op, RULES[op], steps)
                STEPS.add(op)
        for op, rule in derived_forms(name, {op: PRIMITIVE[op] for op in forms.values() if op in STEPS}):
            if op in TABLE:
                PRIMITIVE[op] = rule
                STEPS.add(op)


def steps(ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that makes a function the steps of the named ops."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        register_steps(ops, lambda op: function)
        return function

    return decorate


def _in_steps(op: torch._ops.OpOverload, rule: Rule, function: Callable[..., Any]) -> Rule:
    def compute(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        dtypes = {tensor.dtype for tensor in tensors_in((*args, *kwargs.values()))}
        if torch.float64 in dtypes and torch.float32 not in dtypes:  # float64 means itself
            return rule(machine, *args, **kwargs)
        with machine.dispatching():
            result = function(*args, **kwargs)
        return rule(machine, *args, **kwargs) if result is NotImplemented else result

    return promoting(op, compute) if op in PROMOTING else compute


def register_functional(
    ops: str | Iterable[str], family: str, rule_for: Callable[[torch._ops.OpOverload], Rule | None]
) -> None:
    """Give every overload of the named ops the rule that `rule_for` makes, and derive the in-place and `out=` forms.

    Where `rule_for` returns None the overload stays without a rule.
    """
    for name in ops.split() if isinstance(ops, str) else ops:
        functional = {key: op for key, op in overloads(name).items() if not is_out(op)}
        for op in functional.values():
            rule = rule_for(op)
            if rule is not None:
                register(op, family=family)(rule)
        rules = {op: RULES[op] for op in functional.values() if op in RULES}
        for op, rule in derived_forms(name, rules):
            register(op, family=family)(rule)


def enter_other_forms(families: Iterable[str]) -> None:
    """Give the in-place and `out=` forms that have no rule yet the one of the operation, in these families."""
    functional: dict[str, dict[torch._ops.OpOverload, Rule]] = {}
    for op, entry in TABLE.items():
        if entry.family in families and not is_out(op):
            functional.setdefault(name_of(op), {})[op] = RULES[op]
    for name, rules in functional.items():
        family = TABLE[next(iter(rules))].family
        for op, rule in list(derived_forms(name, rules)):
            if op not in TABLE:
                enter(Entry(op, family, rule))


def register_complex(ops: Iterable[str], rule_for: Callable[[torch._ops.OpOverload], Rule | None]) -> None:
    """Give every overload of the named ops a rule for complex operands, beside that for real ones; other forms follow."""
    for name in ops:
        functional = {op: rule_for(op) for op in overloads(name).values() if not is_out(op)}
        rules = {op: rule for op, rule in functional.items() if rule is not None}
        COMPLEX.update(rules)
        COMPLEX.update(derived_forms(name, rules))


def derived_forms(
    name: str, rules: dict[torch._ops.OpOverload, Rule]
) -> Iterator[tuple[torch._ops.OpOverload, Rule]]:
    """The in-place and `out=` overloads of an op, and what the rules of its functional ones make of them."""
    for op in overloads(f"{name}_").values():
        alike = [rule for candidate, rule in rules.items() if inputs_of(candidate) == inputs_of(op)]
        if alike and not is_out(op):
            yield op, in_place(alike[0])
    for op in overloads(name).values():
        if is_out(op):
            outputs, inputs = outputs_and_inputs(op)
            alike = [rule for candidate, rule in rules.items() if inputs_of(candidate) == inputs]
            if alike:
                yield op, with_out(alike[0], outputs)


@lru_cache(maxsize=4096)
def positions(op: torch._ops.OpOverload) -> tuple[int, tuple[tuple[int, str], ...]]:
    """(where `dtype` is among the arguments, or -1; (position, name) of every argument that the operation writes to)."""
    dtype, written = -1, []
    for index, argument in enumerate(op._schema.arguments):
        if argument.name == "dtype":
            dtype = index
        is_statistic = argument.name in ("running_mean", "running_var") and TABLE[op].family == "normalization"
        if is_statistic or (argument.alias_info is not None and argument.alias_info.is_write):
            written.append((index, argument.name))
    return dtype, tuple(written)


def written_by(op: torch._ops.OpOverload, args: Any, kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a call that the operation writes to."""
    return [args[index] if index < len(args) else kwargs.get(name) for index, name in positions(op)[1]]


def in_place(rule: Rule) -> Rule:
    """The rule of the in-place form: the result is written to the first argument."""

    def write_to_self(machine: Machine, self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return machine.write(self, rule(machine, self, *args, **kwargs))

    return write_to_self


def with_out(rule: Rule, outputs: list[str]) -> Rule:
    """The rule of the `out=` form: results are written to the named keyword arguments, resized where empty."""

    def write_to_out(machine: Machine, *args: Any, **kwargs: Any) -> Any:
        targets = [kwargs.pop(name) for name in outputs]
        results = rule(machine, *args, **kwargs)
        for target, result in zip(targets, results if isinstance(results, tuple) else (results,), strict=True):
            if target.shape != result.shape:
                target.resize_(result.shape)
            machine.write(target, result)
        return tuple(targets) if len(targets) > 1 else targets[0]

    return write_to_out
