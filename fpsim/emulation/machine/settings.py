"""What can be given by role and by module, and what each module has then: formats, accumulators, rounding modes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Generic, TypeVar

from fpsim.accumulation import Accumulator, get_accumulator
from fpsim.numbers.formats import FP32
from fpsim.numbers.names import get_system
from fpsim.numbers.rounding import Rounding, get_rounding
from fpsim.numbers.splits import Split, find_split
from fpsim.numbers.system import NumberSystem
from fpsim.sums.task import require_addable

T = TypeVar("T")


#: The format of all roles of a module in which each dtype means itself: there float32 tensors are torch's own.
NATIVE = FP32.replace(name="native")


@dataclass(frozen=True)
class ModuleFormats:
    """The formats of one module, by role.

    weight      what its parameters and float buffers hold
    activation  what its forward pass reads every operand in and rounds every result to
    gradient    what its part of the backward pass reads gradients in and rounds every result to
    optimizer   what an optimizer keeps for its parameters, and rounds intermediate results to
    product     what products of matrices and convolutions read their factors in, or the parts that they multiply of them;
                None: as for any other operation
    """

    weight: NumberSystem
    activation: NumberSystem
    gradient: NumberSystem
    optimizer: NumberSystem
    product: NumberSystem | Split | None = None

    def __post_init__(self) -> None:
        for role, fmt in vars(self).items():
            if role != "product" and isinstance(fmt, Split):
                raise ValueError(
                    f"fmt: {fmt} is how products multiply, for the role 'product' alone; {role!r} takes a format, as in "
                    f"{{'*': 'fp32', 'product': '{fmt}'}}"
                )


@dataclass(frozen=True)
class ModuleAccumulators:
    """What accumulates the sums of one module's forward pass (activation), backward pass (gradient) and updates (optimizer).

    product     the same for products of matrices and convolutions of every pass; None: as for any other sum
    """

    activation: Accumulator
    gradient: Accumulator
    optimizer: Accumulator
    product: Accumulator | None = None


@dataclass(frozen=True)
class ModuleRoundings:
    """The modes of one module, by role: that of what is rounded to the role's format outside of updates.

    optimizer   that of every rounding of an update, whatever it writes to
    product     None: that of the format in which any other operation reads the factor; parts are rounded to nearest even then
    """

    weight: Rounding
    activation: Rounding
    gradient: Rounding
    optimizer: Rounding
    product: Rounding | None = None


@dataclass(frozen=True, eq=False)
class ModuleSettings:
    """All settings of one module; two of one model are the same object where they are equal."""

    formats: ModuleFormats
    accumulators: ModuleAccumulators
    roundings: ModuleRoundings

    def __post_init__(self) -> None:
        split = self.formats.product
        if not isinstance(split, Split):
            return
        if self.roundings.product is Rounding.STOCHASTIC:
            raise ValueError(f"rounding: {split} has parts that are not drawn; 'product' takes a deterministic mode")
        of_products = self.accumulators.product
        for accumulator in vars(self.accumulators).values() if of_products is None else (of_products,):
            if accumulator is not None:
                require_addable(split, accumulator)

    @cached_property
    def is_native(self) -> bool:
        """Whether each dtype means itself in the module."""
        return self.formats.activation == NATIVE


@dataclass(frozen=True)
class Setting(Generic[T]):
    """An argument that may be a mapping: its name, what a value of it is called, the values of a module, how one is read."""

    argument: str
    noun: str
    of_module: type
    read: Callable[[Any], T]

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that have a value of their own."""
        return tuple(field.name for field in fields(self.of_module))

    @property
    def needed(self) -> tuple[str, ...]:
        """The roles that always have one."""
        return tuple(role for role in self.roles if role != "product")


def _read_format(value: Any) -> NumberSystem | Split:
    split = find_split(value)
    if split is not None:
        return split
    return NATIVE if isinstance(value, str) and value.strip().lower() == NATIVE.name else get_system(value)


FORMATS = Setting("fmt", "format", ModuleFormats, _read_format)
ACCUMULATORS = Setting("accumulate", "accumulator", ModuleAccumulators, get_accumulator)
ROUNDINGS = Setting("rounding", "mode", ModuleRoundings, get_rounding)
ROLES = FORMATS.roles
