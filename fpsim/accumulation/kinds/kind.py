"""What every kind of accumulator answers."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeVar

from fpsim.accumulation.instructions import Unit
from fpsim.accumulation.orders import Order, sequential
from fpsim.numbers.formats import Format
from fpsim.numbers.modes import Rounding


class Asked(Protocol):
    """What a kind asks of the accumulator that is of it: `accumulator.Accumulator`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def format(self) -> Format: ...
    @property
    def order(self) -> Order: ...
    @property
    def products(self) -> str: ...
    @property
    def promoted(self) -> Format | None: ...
    @property
    def unit(self) -> Unit | None: ...


Whole = TypeVar("Whole", bound=Asked)


class Kind:
    """A kind of accumulator: how it is written and checked, and what a sum made by it is.

    How it computes, and how far it errs, say the tables of `sums`, `theory` and `running` that have a row for each.
    """

    name: str
    #: Whether its name is the whole text, without a format.
    stands_alone = False
    #: Whether the product of the transposed factors is the transposed product, bit for bit.
    is_symmetric = True
    #: Whether its additions compute in the accumulator's format.
    computes = True
    #: How many addends are terms of its sum; what is beyond is added to the sum, rounded.
    own_addends = 0
    #: Whether its sum may be accumulated in the operands' own format where that is wider than 11 bits.
    widens = False
    #: Why its roundings cannot be counted; None where they can.
    uncounted: str | None = "it adds many terms at once"

    def check(self, accumulator: Asked) -> None:
        """Raise ValueError for parts that do not go together."""
        plain = accumulator.order == sequential and accumulator.products == "rounded" and accumulator.promoted is None
        if not plain:
            raise ValueError(f"accumulate: {self.name} takes no order, no fma or exact-products and no second format")

    def held(self, accumulator: Asked) -> Format | None:
        """The format whose values its sums are; None where a sum is exact until it is rounded to the result's format."""
        return accumulator.format

    def computing_formats(self, accumulator: Asked, rounding: Rounding) -> tuple[Format, ...]:
        """The formats that its additions compute in; ValueError for a rounding mode that it has not."""
        return (accumulator.format,) if self.computes else ()

    def for_sums(self, accumulator: Whole) -> Whole:
        """What adds terms that are no products."""
        return accumulator

    def text(self, accumulator: Asked) -> str:
        """What `get_accumulator` reads."""
        return self.name if self.stands_alone else f"{accumulator.format.name}:{self.name}"

    def __eq__(self, other: object) -> bool:
        """A kind equals its name."""
        return self is other or self.name == other

    def __hash__(self) -> int:
        return hash(self.name)

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<accumulator kind {self.name}>"

    def __reduce__(self) -> str:
        return self.name.upper()  # there is one of each, beside its class
